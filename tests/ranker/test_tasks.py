"""Several tasks in one ranker: losses by hand, gradients, metrics and predictions."""

import dataclasses
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_model import make_batch, tables

from learn_torchrec import AuxiliaryNetwork, LearnFeatures, LearnRanker
from learn_torchrec.apps import main as command_line
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.metrics import TrainingMetrics
from learn_torchrec.ranker.model import LearnRankerTrain
from learn_torchrec.ranker.tasks import (
    TaskConfig,
    describe_tasks,
    joint_logits,
    scores,
)

CTR = TaskConfig(name="ctr", label="click", weight=2.0, auxiliary_weight=0)
CVR = TaskConfig(name="cvr", weight=0.5, auxiliary_weight=0.3)
CVR_GIVEN = dataclasses.replace(CVR, given="ctr")
A = torch.tensor([0.3, -4.0, 60.0, -60.0, -60.0])
B = torch.tensor([-1.2, 5.0, 60.0, 60.0, -60.0])


def logit(p):
    return math.log(p / (1 - p))


def probability(x):
    return 1 / (1 + math.exp(-x))


def test_the_joint_logit_is_that_of_the_product():
    joint = joint_logits([CTR, CVR_GIVEN], {"ctr": A, "cvr": B})
    assert joint["ctr"] is A
    for a, b, found in zip(A[:2], B[:2], joint["cvr"][:2], strict=True):
        assert found.item() == pytest.approx(
            logit(probability(a) * probability(b)), rel=1e-5
        )
    # Where a product of floats is 1 or 0, the logit still tells how far it is.
    assert joint["cvr"][2:].tolist() == pytest.approx([60 - math.log(2), -60, -120])
    separate = joint_logits([CTR, CVR], {"ctr": A, "cvr": B})
    assert separate["cvr"] is B


def test_a_chain_multiplies_all_its_probabilities():
    third = TaskConfig(name="kept", given="cvr")
    logits = {"ctr": A[:2], "cvr": B[:2], "kept": torch.tensor([0.5, 1.0])}
    found = torch.sigmoid(joint_logits([CTR, CVR_GIVEN, third], logits)["kept"])
    expected = torch.stack([torch.sigmoid(x) for x in logits.values()]).prod(dim=0)
    torch.testing.assert_close(found, expected)


def make_two(tasks, learn=None):
    torch.manual_seed(0)
    ranker = LearnRanker(
        tables(), 3, [16, 8], [16, 1], learn, tasks=[task.name for task in tasks]
    )
    batch = make_batch(rows=256, vectors=learn is not None)
    clicks = torch.rand(256, generator=torch.Generator().manual_seed(6)) < 0.5
    batch.labels["click"] = torch.maximum(batch.labels["label"], clicks.float())
    batch.weights = torch.rand(256, generator=torch.Generator().manual_seed(7))
    return LearnRankerTrain(ranker, tasks), batch


@pytest.mark.parametrize("cvr", [CVR, CVR_GIVEN])
def test_the_loss_of_two_tasks_by_hand(cvr):
    network = AuxiliaryNetwork(4, tasks=["cvr"])
    task, batch = make_two([CTR, cvr], LearnFeatures(4, network))
    loss, output = task(batch)
    click, bought = (
        torch.sigmoid(output.logits["ctr"]),
        torch.sigmoid(output.logits["cvr"]),
    )
    if cvr.given:
        bought = click * bought
    _, auxiliary = network(batch.learn.user_vectors, batch.learn.item_vectors)

    def bce(p, labels):
        losses = -(labels * p.log() + (1 - labels) * (1 - p).log())
        return (batch.weights * losses).mean()

    head = bce(torch.sigmoid(auxiliary["cvr"]), batch.labels["label"])
    expected = 2 * bce(click, batch.labels["click"])
    expected += 0.5 * bce(bought, batch.labels["label"]) + 0.3 * head
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(output.auxiliary_loss, head)


@pytest.mark.parametrize("cvr", [CVR, CVR_GIVEN])
def test_gradients_reach_both_over_archs_and_what_they_share(cvr):
    task, batch = make_two([CTR, cvr])
    task(batch)[0].backward()
    names = dict(task.named_parameters())
    for name, parameter in names.items():
        assert (parameter.grad != 0).any(), name
    assert any("over_arch.ctr." in name for name in names)
    assert any("over_arch.cvr." in name for name in names)

    # A task's own loss reaches its over-arch, and of a product both factors.
    ctr_only, _ = make_two([CTR, cvr])
    batch.labels["click"] = torch.zeros(256)
    for over_arch, depends in (("ctr", True), ("cvr", False)):
        ctr_only.zero_grad()
        logits, _, _ = ctr_only.ranker(batch.dense_features, batch.sparse_features)
        logits["ctr"].sum().backward()
        grads = [
            p.grad
            for name, p in ctr_only.named_parameters()
            if f"over_arch.{over_arch}." in name
        ]
        assert all((g is not None and bool((g != 0).any())) == depends for g in grads)


def test_there_is_an_auxiliary_head_for_each_weight_above_zero():
    tasks = [CTR, CVR, TaskConfig(name="like", auxiliary_label="click")]
    heads = [task.name for task in tasks if task.auxiliary_weight]
    network = AuxiliaryNetwork(4, tasks=heads)
    task, batch = make_two(tasks, LearnFeatures(4, network))
    task(batch)[0].backward()
    assert list(network.head) == ["cvr", "like"]
    for name, parameter in network.named_parameters():
        assert (parameter.grad != 0).any(), name


def test_scores_and_what_the_manifest_says_of_them():
    logits = {"ctr": A, "cvr": B}
    one = scores([CVR], {"cvr": B})
    assert one.keys() == {"score"}
    assert one["score"].equal(torch.sigmoid(B))
    two = scores([CTR, CVR], logits)
    assert two["score_ctr"].equal(torch.sigmoid(A))
    assert two["score_cvr"].equal(torch.sigmoid(B))
    joint = scores([CTR, CVR_GIVEN], logits)
    assert set(joint) == {"score_ctr", "score_cvr", "score_cvr_and_ctr"}
    product = torch.sigmoid(A) * torch.sigmoid(B)
    torch.testing.assert_close(joint["score_cvr_and_ctr"], product)
    ctr = {"name": "ctr", "label": "click", "score": "score_ctr"}
    cvr = {"name": "cvr", "label": "label"}
    assert describe_tasks([CVR]) == [{**cvr, "score": "score"}]
    assert describe_tasks([CTR, CVR]) == [ctr, {**cvr, "score": "score_cvr"}]
    assert describe_tasks([CTR, CVR_GIVEN]) == [
        ctr,
        {**cvr, "score": "score_cvr_and_ctr"},
    ]


def test_metrics_of_each_task(one_rank):
    task, batch = make_two([CTR, CVR_GIVEN])
    output = task(batch)[1]
    metrics = TrainingMetrics(task.tasks, 256, one_rank)
    metrics.add(output)
    found = metrics.result()
    assert found.keys() == {"ne_ctr", "ne_cvr", "calibration_ctr", "calibration_cvr"}
    predicted = torch.sigmoid(joint_logits(task.tasks, output.logits)["cvr"])
    weights, labels = batch.weights, batch.labels["label"]
    expected = float((weights * predicted).sum() / (weights * labels).sum())
    assert found["calibration_cvr"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "tasks: configure at least one"),
        ([CVR, CVR], "tasks: two have the name 'cvr'"),
        ([CVR_GIVEN, CTR], "cvr is given 'ctr', which is not an earlier task"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        RankerConfig(tasks=tuple(tasks))


@pytest.mark.parametrize("name", ["", "CTR", "c.tr", "items"])
def test_bad_names_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        TaskConfig(name=name)


@pytest.fixture
def shop(tmp_path):
    out = tmp_path / "shop"
    command_line.main(
        [
            *("data", "market", "--users=80", "--items=50", "--days=8"),
            *("--impressions=4000", f"--out={out}"),
        ]
    )
    return out


def test_ctr_and_cvr_from_the_command_line(shop, tmp_path, capsys):
    tasks = [
        {"name": "ctr", "label": "click"},
        {"name": "cvr", "label": "label", "given": "ctr"},
    ]

    def run(app, out, *options, tasks=tasks):
        settings = [
            f"ranker.tasks={json.dumps(tasks)}",
            "ranker.features.sparse=user_id,item_id",
            "ranker.features.dense=log_price,hour",
            "ranker.training.batch_size=64",
            "ranker.training.epochs=2",
        ]
        command_line.main(
            [
                *(app, f"--data=parquet:{shop}", f"--out={tmp_path / out}", *options),
                *(f"--set={setting}" for setting in settings),
            ]
        )
        return tmp_path / out

    ranker = run("train-ranker", "ranker")
    lines = [json.loads(line) for line in (ranker / "log.jsonl").open()]
    assert {"ne_ctr", "ne_cvr", "calibration_ctr"} <= set(lines[-1])
    assert lines[-1]["loss"] < lines[0]["loss"]
    predictions = run("predict", "predictions", f"--ranker={ranker}")
    facts = json.loads((predictions / "manifest.json").read_text())["facts"]
    assert facts["tasks"] == [
        {"name": "ctr", "label": "click", "score": "score_ctr"},
        {"name": "cvr", "label": "label", "score": "score_cvr_and_ctr"},
    ]
    rows = pq.read_table(predictions / "predictions.parquet")
    ctr, cvr, joint = (
        rows[name].to_numpy()
        for name in ("score_ctr", "score_cvr", "score_cvr_and_ctr")
    )
    np.testing.assert_allclose(joint, ctr * cvr, rtol=1e-5)
    assert {"click", "label"} <= set(rows.column_names)
    assert "score" not in rows.column_names
    assert ctr.mean() == pytest.approx(rows["click"].to_numpy().mean(), rel=0.5)
    with pytest.raises(SystemExit):
        run("train-ranker", "refused", tasks=[{"name": "ctr", "label": "clicks"}])
    assert "column 'clicks' is missing" in capsys.readouterr().err
