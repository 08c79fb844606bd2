"""Tables sharded in every way compute what one unsharded model does."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import problem
import pytest
import torch
from problem import Recorder
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.ranker.batch import collate
from learn_torchrec.ranker.build import (
    build_ranker,
    load_ranker,
    save_ranker,
)
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.training import planning
from learn_torchrec.training.optim import dense_optimizer, warmup_decay
from learn_torchrec.training.sharding import table_of
from learn_torchrec.training.table_optimizer import replicated_optimizer

WORKER = Path(__file__).with_name("sharding_worker.py")


def launch(ranks: int, out: Path) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), str(WORKER), str(out)]
    root = f"{WORKER.parents[2]}{os.pathsep}{WORKER.parent}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def column_parts(
    tables: dict[str, nn.Parameter], width: int
) -> dict[str, nn.Parameter]:
    """Return views of `width` columns of the tables, each with its gradient.

    Row-wise Adagrad keeps one state for a row of what it is given, so where columns
    lie apart it is another optimizer than that of whole rows.
    """
    parts = {}
    for name, table in tables.items():
        for first in range(0, table.shape[1], width):
            columns = slice(first, first + width)
            part = nn.Parameter(table.data[:, columns])
            parts[f"{name}/{first}"] = part

            def give_gradient(table, part=part, columns=columns):
                part.grad = table.grad[:, columns]

            table.register_post_accumulate_grad_hook(give_gradient)
    return parts


def unsharded(case: str, config: RankerConfig) -> tuple[list[float], list[float]]:
    """Losses and scores of plain modules and plain optimizers, step by step."""
    impressions = problem.impressions(config)
    task = problem.unsharded(config)
    tables = {n: p for n, p in task.named_parameters() if table_of(n)}
    others = [(n, p) for n, p in task.named_parameters() if not table_of(n)]
    parts = column_parts(tables, problem.column_width(case))
    optimizer = CombinedOptimizer(
        [
            dense_optimizer(others, config.optimizer),
            replicated_optimizer(parts, config.tables),
        ]
    )
    steps = problem.ROWS // problem.BATCH
    schedule = warmup_decay(
        optimizer, steps, config.optimizer.warmup, config.training.decay
    )
    losses = []
    for batch in impressions.batches(epoch=0):
        task.zero_grad()
        loss, _ = task(batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    rows = impressions.encoder()(problem.table())
    with torch.no_grad():
        rows = rows.take(np.arange(len(rows)))
        _, output = task(collate(rows, impressions.learn))
    return losses, torch.sigmoid(output.logits["cvr"]).tolist()


def taken_rows(config) -> list[int]:
    """The rows of the first epoch, known by their hours."""
    hours = problem.table()["hour"].to_pylist()
    return [
        hours.index(hour)
        for batch in problem.impressions(config).batches(epoch=0)
        for hour in batch.dense_features[:, 0].tolist()
    ]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_kind_equals_the_unsharded_model(ranks, tmp_path, one_rank):
    managed = problem.config("row_wise/sgd", managed=True)
    fresh = build_ranker(managed, problem.SHAPE, one_rank)
    save_ranker(fresh, tmp_path / "out.one")
    results = launch(ranks, tmp_path / "out.json")
    for case in problem.ARCHITECTURE_CASES:
        result = results["architecture"][case]
        check_equal(result, case, problem.architecture(case))
        names = ["ShardedEmbeddingBagCollection", "ShardedEmbeddingCollection"]
        assert result["pipelined"] == [names] * 2, case
    for case in problem.CASES:
        result = results[case]
        check_equal(result, case, problem.config(case))
        assert result["pipelined"] == [["ShardedEmbeddingBagCollection"]] * 2, case
        if case == "auto":
            continue
        kind = case.partition("/")[0]
        for line in result["plan"].splitlines():
            assert f", {kind}, " in line, (case, line)
            divided = problem.column_width(case) < problem.EMBEDDING_DIM
            assert ("columns 4-8" in line) == divided, (case, line)
    table = problem.table()
    learned = evaluate_auc(
        table["user_id"].combine_chunks(),
        table["label"].to_numpy(),
        np.array(results["auto"]["scores"]),
    )
    assert learned["auc"] > 0.9
    facts, taken = results["auto"]["facts"], taken_rows(problem.config("auto"))
    items = table["item_id"].to_numpy()[taken]
    assert facts["rows"] == len(taken) == problem.ROWS // problem.BATCH * problem.BATCH
    assert facts["ids_left_out"] == {"item_id": int((items >= 36).sum())}
    assert facts["missing_vectors"]["item_vectors"] == int((items >= 35).sum())
    assert facts["tasks"] == [{"name": "cvr", "label": "label", "score": "score"}]
    assert all(value > 0 for value in results["auto"]["auxiliary_loss"])
    check_managed(results["managed"])
    load_ranker(fresh, tmp_path / "out.model")  # of more ranks, on one
    found = score(fresh, problem.impressions(managed), 50, one_rank)["score"]
    np.testing.assert_allclose(found, results["managed"]["scores"], rtol=1e-5)
    assert len(set(results["refusals"])) == 1
    assert "found no plan" in results["refusals"][0]
    assert "t_user_id nonsense" in results["refusals"][0]


def check_equal(result: dict, case: str, config: RankerConfig) -> None:
    losses, scores = unsharded(case, config)
    np.testing.assert_allclose(result["loss"], losses, rtol=1e-4, err_msg=case)
    np.testing.assert_allclose(
        result["scores"], scores, rtol=1e-4, atol=1e-5, err_msg=case
    )


def check_managed(result: dict) -> None:
    names = [
        "ShardedEmbeddingBagCollection",
        "ShardedManagedCollisionEmbeddingBagCollection",
    ]
    assert result["pipelined"] == [names] * 2
    assert np.isfinite(result["loss"]).all()
    np.testing.assert_allclose(result["restored_scores"], result["scores"], rtol=1e-6)
    assert "cannot load the managed_collision tables" in result["of_fewer_ranks"]


@pytest.mark.parametrize(
    ("tables", "managed", "message"),
    [
        ({"optimizer": "adam"}, False, "optimizer=adam: fbgemm has no Adam .* CPU"),
        ({"weight_decay": 0.1}, False, "weight_decay=0.1: fbgemm ignores weight decay"),
        ({}, True, "rowwise_adagrad: .* feature 'user_id' .managed_collision"),
    ],
)
def test_what_fbgemm_lacks_on_the_cpu_is_refused(tables, managed, message, one_rank):
    config = problem.config("auto", managed)
    config = dataclasses.replace(
        config, tables=dataclasses.replace(config.tables, **tables)
    )
    with pytest.raises(UserError, match=message):
        build_ranker(config, problem.SHAPE, one_rank)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", ["auto", "data_parallel", "row_wise/sgd"])
def test_on_cuda_it_is_the_same(case, one_rank):
    config = problem.config(case)
    losses, scores = unsharded(case, config)
    rows, log = problem.impressions(config), Recorder()
    model, *_ = train_ranker(config, rows, one_rank, log)
    found = score(model, rows, 50, one_rank)["score"]
    np.testing.assert_allclose([x["loss"] for x in log.lines], losses, rtol=1e-3)
    np.testing.assert_allclose(found, scores, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kernel", ["fused_uvm_caching", "fused_uvm"])
def test_tables_in_host_memory_learn_the_same(kernel, one_rank, monkeypatch):
    monkeypatch.setattr(planning, "_KERNELS_ON_CUDA", (kernel,))
    config = problem.config("row_wise")
    losses, scores = unsharded("row_wise", config)
    rows, log, plans = problem.impressions(config), Recorder(), []
    model, *_ = train_ranker(config, rows, one_rank, log, plans.append)
    assert f"row_wise, {kernel}:" in plans[0]
    found = score(model, rows, 50, one_rank)["score"]
    np.testing.assert_allclose([x["loss"] for x in log.lines], losses, rtol=1e-3)
    np.testing.assert_allclose(found, scores, rtol=1e-3, atol=1e-4)


def test_the_plan_is_printed(one_rank):
    plans = []
    build_ranker(problem.config("row_wise"), problem.SHAPE, one_rank, plans.append)
    assert plans[0].splitlines()[2] == (
        "t_user_id: 32 x 8, row_wise, fused: rank 0 rows 0-32 columns 0-8"
    )
