"""Validation while the ranker trains: early stopping, the best weights, resuming."""

import dataclasses
import json

import numpy as np
import problem
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_torchrec.apps import train_ranker as app
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.split import SplitTimes, validation_from
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.ranker.build import build_ranker
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerModelConfig,
    RankerTrainingConfig,
    ValidationConfig,
)
from learn_torchrec.ranker.features import (
    FeaturesConfig,
    HashedFeature,
    ManagedCollisionFeature,
)
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.tasks import TaskConfig
from learn_torchrec.ranker.training import best_passes, train_ranker
from learn_torchrec.ranker.validation import HeldOut, Validation
from learn_torchrec.training.checkpoint import CheckpointConfig, Checkpoints
from learn_torchrec.training.optim import OptimizerConfig
from learn_torchrec.training.table_optimizer import TableOptimizerConfig

USERS = HashedFeature(column="user_id", num_embeddings=40)
HASHED = HashedFeature(column="item_id", num_embeddings=4000)
MANAGED = ManagedCollisionFeature(column="item_id", num_embeddings=90)
ROWS, CUT, BATCH = 1600, 1280, 64
CONFIG = RankerConfig(
    features=FeaturesConfig(sparse=(HASHED,), dense=("x",)),
    model=RankerModelConfig(embedding_dim=8, dense_layers=(8,), over_layers=(16,)),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    tables=TableOptimizerConfig(learning_rate=0.3),
    training=RankerTrainingConfig(epochs=6, batch_size=BATCH, eviction_interval=4),
    validation=ValidationConfig(share=0.2, every_steps=8, patience=3),
)


def table() -> pa.Table:
    """Labels that depend weakly on `x`; what items say of them is noise to learn."""
    random = np.random.default_rng(0)
    x = random.normal(size=ROWS).astype(np.float32)
    labels = random.random(ROWS) < 1 / (1 + np.exp(-x))
    return pa.table(
        {
            "user_id": random.integers(0, 40, ROWS),
            "item_id": random.integers(0, 500, ROWS),
            "timestamp": np.arange(ROWS),
            "label": labels.astype(np.float32),
            "x": x,
        }
    )


def impressions(rows: pa.Table, config: RankerConfig = CONFIG) -> Impressions:
    return Impressions(TableRows(rows, None, "impressions"), config, None)


def held_out(config: RankerConfig = CONFIG, rows: pa.Table | None = None) -> HeldOut:
    rows = table() if rows is None else rows
    return HeldOut(
        impressions(rows.slice(0, CUT), config), impressions(rows.slice(CUT), config)
    )


def with_validation(**changes) -> RankerConfig:
    validation = dataclasses.replace(CONFIG.validation, **changes)
    return dataclasses.replace(CONFIG, validation=validation)


class Recorder(problem.Recorder):
    def position(self) -> int:
        return 0


class Snapshots:
    """Stands where checkpoints do and copies the weights of one step."""

    watchdog = None

    def __init__(self, step: int) -> None:
        self._step, self.weights = step, {}

    def latest(self):
        return None

    def after_step(self, step, state, progress, write, pin) -> None:
        del progress, write, pin
        if step == self._step:
            self.weights = copied(state()["model"])


def copied(state) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([s.tensor.flatten() for s in value.local_shards()]).clone()
        if hasattr(value, "local_shards")
        else value.clone()
        for name, value in state.items()
    }


def assert_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def test_it_stops_where_held_out_rows_get_worse_and_keeps_the_best(one_rank, tmp_path):
    config, log = with_validation(refit=False), Recorder()
    kept = Checkpoints(tmp_path / "out", {}, CheckpointConfig(every_steps=0))
    rows = held_out(config)
    model, facts, _ = train_ranker(
        config, impressions(table()), one_rank, log, None, kept, None, rows
    )
    found = facts["validation"]
    values = [one["value"] for one in found["evaluations"]]
    best = int(np.argmax(values))
    assert best > 0
    assert len(values) == best + 1 + 3  # the patience
    steps_in_all = CUT // BATCH * 6
    assert found["stopped_early"]
    assert found["evaluations"][-1]["step"] < steps_in_all // 2
    assert facts["steps"] == found["best_step"] == (best + 1) * 8
    # The weights are those of a run that never validates, after as many steps.
    plain = Snapshots(found["best_step"])
    train_ranker(config, rows.earlier, one_rank, Recorder(), checkpoints=plain)
    assert_equal(copied(model.state_dict()), plain.weights)
    # The metrics are the evaluation's, of these weights and all held-out rows.
    scores = score(model, rows.latest, 100, one_rank)["score"]
    last = table().slice(CUT)
    metrics = evaluate_auc(
        last["user_id"].combine_chunks(), last["label"].to_numpy(), scores
    )
    logged = [line for line in log.lines if "validation_uauc" in line]
    assert [line["step"] for line in logged] == [8 * n for n in range(1, best + 5)]
    for name in ("uauc", "auc", "ne", "calibration"):
        assert logged[best][f"validation_{name}"] == pytest.approx(metrics[name])


def test_refit_takes_as_many_passes_over_all_rows(one_rank):
    rows = held_out()
    model, facts, _ = train_ranker(
        CONFIG, impressions(table()), one_rank, Recorder(), held_out=rows
    )
    passes, found = best_passes(CONFIG, held_out(), one_rank, Recorder())
    assert facts["validation"] == found
    assert passes == found["best_step"] / (CUT // BATCH)
    assert facts["steps"] == round(passes * (ROWS // BATCH))
    plain = Snapshots(facts["steps"])
    train_ranker(CONFIG, impressions(table()), one_rank, Recorder(), checkpoints=plain)
    assert_equal(copied(model.state_dict()), plain.weights)


@pytest.mark.parametrize("ids", [HASHED, MANAGED])
def test_evaluating_changes_no_weight(ids, one_rank):
    """Not even in the middle of an epoch, with batches in flight."""
    config = dataclasses.replace(
        with_validation(every_steps=3, patience=10_000),
        features=FeaturesConfig(sparse=(ids, USERS), dense=("x",)),
        tables=TableOptimizerConfig(optimizer="sgd"),
    )
    some, none = Snapshots(50), Snapshots(50)
    train_ranker(
        config,
        impressions(table(), config),
        one_rank,
        Recorder(),
        checkpoints=some,
        held_out=held_out(config),
    )
    train_ranker(
        config, held_out(config).earlier, one_rank, Recorder(), checkpoints=none
    )
    assert_equal(some.weights, none.weights)


def test_of_several_tasks_the_mean_decides(one_rank):
    tasks = (TaskConfig(name="ctr", label="click"), TaskConfig(given="ctr"))
    config = dataclasses.replace(with_validation(metric="auc"), tasks=tasks)
    clicks = np.maximum(table()["label"].to_numpy(), np.arange(ROWS) % 2)
    rows = table().append_column("click", pa.array(clicks))
    latest = held_out(config, rows).latest
    model = build_ranker(config, None, one_rank)
    validation = Validation(config, latest, one_rank)
    found = validation.evaluate(model, 1)
    scores = score(model, latest, 100, one_rank)
    last = rows.slice(CUT)
    for task, label, name in (
        ("ctr", "click", "score_ctr"),
        ("cvr", "label", "score_cvr_and_ctr"),
    ):
        users, labels = last["user_id"].combine_chunks(), last[label].to_numpy()
        expected = evaluate_auc(users, labels, scores[name])
        for one in ("auc", "uauc", "ne"):
            assert found[f"{one}_{task}"] == pytest.approx(expected[one])
    mean = (found["auc_ctr"] + found["auc_cvr"]) / 2
    assert validation.best["value"] == pytest.approx(mean)


def test_the_best_is_the_first_of_equals_and_patience_counts_from_it(one_rank):
    validation = Validation(CONFIG, held_out().latest, one_rank)
    for step, value in enumerate((0.1, 0.3, 0.3, 0.2, 0.1), 1):
        assert not validation.is_over
        validation.evaluations.append({"step": step, "value": value})
        assert validation.has_improved == (step <= 2)
    assert validation.best_step == 2
    assert validation.is_over


@pytest.mark.parametrize(("every", "due"), [(0, [10, 20, 25]), (8, [8, 16, 24, 25])])
def test_when_it_evaluates(every, due, one_rank):
    config = with_validation(every_steps=every)
    validation = Validation(config, held_out().latest, one_rank)
    found = [step for step in range(1, 26) if validation.is_due(step, 10, 25)]
    for step in range(25):
        following = next(due for due in found if due > step)
        assert validation.steps_until_due(step, 10, 25) == following - step
    assert found == due


def test_without_a_user_of_both_labels_auc_decides(one_rank, caplog):
    rows = table().set_column(0, "user_id", pa.array(np.arange(ROWS)))
    caplog.set_level("INFO", logger="learn_torchrec")
    _, found = best_passes(CONFIG, held_out(rows=rows), one_rank, Recorder())
    for one in found["evaluations"]:
        assert "uauc" not in one
        assert one["value"] == one["auc"]
    assert caplog.text.count("no user has both labels") == 1


def test_entropy_is_better_when_it_is_lower(one_rank):
    config = with_validation(metric="ne")
    _, found = best_passes(config, held_out(config), one_rank, Recorder())
    entropies = [one["ne"] for one in found["evaluations"]]
    assert found["best_step"] == 8 * (1 + int(np.argmin(entropies)))


def test_the_cut_is_by_time_and_keeps_a_second_together():
    times = SplitTimes(towers_until=10, test_from=20)
    shown = np.array([3, 11, 10, 12, 15, 15, 15, 18, 19, 20, 31])
    assert validation_from(shown, times, 0.3) == 15
    assert validation_from(shown, times, 0.1) == 19
    assert validation_from(np.array([3, 31]), times, 0.1) == 20


SETTINGS = [
    "split.towers_until=50%",
    "split.test_from=80%",
    "ranker.training.epochs=1",
    "ranker.features.dense=hour",
    "ranker.training.batch_size=64",
    'ranker.features.sparse=[{"column": "user_id", "num_embeddings": 90}]',
]


def run(market, out, *settings) -> dict:
    """Train from the command line; return the manifest."""
    overrides = [f"--set={one}" for one in (*SETTINGS, *settings)]
    app.main(["--data", f"parquet:{market}", "--out", str(out), *overrides])
    return json.loads((out / "manifest.json").read_text())


def weights(manifest) -> list[str]:
    files = manifest["files"].items()
    return [one["sha256"] for name, one in files if name.endswith(".distcp")]


def test_without_a_share_the_other_settings_change_nothing(market, tmp_path):
    plain = run(market, tmp_path / "plain")
    assert "validation" not in plain["facts"]
    off = "ranker.validation."
    others = [f"{off}patience=1", f"{off}every_steps=1", f"{off}refit=false"]
    found = run(market, tmp_path / "off", *others)
    assert weights(found) == weights(plain)
    log = (tmp_path / "off/log.jsonl").read_text()
    assert "validation" not in log


@pytest.mark.parametrize("streams", ["false", "true"])
def test_the_latest_training_rows_validate(streams, market, tmp_path):
    share = "ranker.validation.share=0.25"
    streams = f"ranker.training.stream.enabled={streams}"
    manifest = run(market, tmp_path / "out", share, streams)
    rows = pq.read_table(market / "impressions.parquet")["timestamp"].to_numpy()
    log = pq.read_table(market / "interactions.parquet")["timestamp"].to_numpy()
    first, end = np.quantile(log, [0.5, 0.8], method="lower")
    inside = ((rows >= first) & (rows < end)).sum()
    found = manifest["facts"]["validation"]
    assert found["rows"] == pytest.approx(0.25 * inside, abs=1)
    assert len(found["evaluations"]) == 1  # one epoch
    assert manifest["facts"]["steps"] == inside // 64  # of all rows, the latest too


@pytest.mark.parametrize(
    ("column", "of", "message"),
    [
        ("label", lambda t: t > t[1800], "'label' is 1 in all 180 rows to validate on"),
        ("label", lambda t: t < t[1800], "'label' is 0 in all 180 rows to validate on"),
        ("timestamp", lambda t: t[1600], "=0.2: leaves 0 of 3000 rows to train on and"),
    ],
)
def test_rows_that_cannot_validate_are_refused_before_training(
    column, of, message, market, tmp_path
):
    path = market / "impressions.parquet"
    table = pq.read_table(path)
    times = table["timestamp"].to_numpy()
    values = np.broadcast_to(np.asarray(of(times), np.int64), len(times))
    place = table.column_names.index(column)
    table = table.set_column(place, column, pa.array(values))
    pq.write_table(table, path)
    with pytest.raises(UserError, match=message):
        run(market, tmp_path / "out", "ranker.validation.share=0.2")
    assert not (tmp_path / "logs").exists()
