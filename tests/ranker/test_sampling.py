"""Sampled negatives: a constant on the logit makes scores those of all rows."""

import dataclasses
import math

import numpy as np
import problem
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from problem import Recorder

from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.datasets.loading.time_range import Interval
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.ranker.batch import collate
from learn_torchrec.ranker.build import build_task
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerModelConfig,
    RankerTrainingConfig,
)
from learn_torchrec.ranker.features import FeaturesConfig, HashedFeature
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.sampling import logit_offsets
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.tasks import TaskConfig
from learn_torchrec.ranker.training import train_ranker
from learn_torchrec.ranker.validation import Validation
from learn_torchrec.training.optim import OptimizerConfig
from learn_torchrec.training.sharding import init_tables

CONFIG = RankerConfig(
    features=FeaturesConfig(
        sparse=(HashedFeature(column="user_id", num_embeddings=8),), dense=("x",)
    ),
    model=RankerModelConfig(embedding_dim=4, dense_layers=(8,), over_layers=(8,)),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    training=RankerTrainingConfig(epochs=4, batch_size=256),
)


def rows_of(labels, **columns) -> pa.Table:
    count = len(labels)
    table = {
        "user_id": np.arange(count) % 8,
        "item_id": np.arange(count),
        "timestamp": np.arange(count),
        "label": np.asarray(labels, np.int64),
        "x": np.zeros(count, np.float32),
    }
    return pa.table(table | columns)


def impressions(table: pa.Table, config: RankerConfig = CONFIG) -> Impressions:
    return Impressions(TableRows(table, None, "impressions"), config, None)


def test_the_offset_by_hand(one_rank):
    rates = pa.array([1.0, 0.5, 0.25, None, 0.1])  # a positive's rate does not count
    weights = pa.array([1.0, 2.0, 1.0, 3.0, 5.0])
    labels = [1, 0, 0, 0, 1]
    plain = impressions(rows_of(labels, sampling_rate=rates))
    assert logit_offsets(plain) == {"cvr": pytest.approx(math.log(7 / 3))}
    weighted = impressions(rows_of(labels, sampling_rate=rates, weight=weights))
    assert logit_offsets(weighted) == {"cvr": pytest.approx(math.log(11 / 6))}
    assert logit_offsets(impressions(rows_of(labels))) == {}
    ones = pa.array([0.5, 1.0, 1.0, 1.0, 0.5])
    assert logit_offsets(impressions(rows_of(labels, sampling_rate=ones))) == {}


def test_each_task_has_the_offset_of_its_label(one_rank):
    tasks = (TaskConfig(name="ctr", label="click"), TaskConfig(given="ctr"))
    config = dataclasses.replace(CONFIG, tasks=tasks)
    rates = pa.array([0.5, 0.5, 0.25, 1.0])
    table = rows_of([1, 0, 0, 1], click=[1, 1, 0, 1], sampling_rate=rates)
    assert logit_offsets(impressions(table, config)) == {
        "ctr": pytest.approx(math.log(4)),
        "cvr": pytest.approx(math.log(3)),
    }


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5])
def test_a_rate_that_is_no_chance_is_refused(rate, one_rank):
    table = rows_of([0, 1], sampling_rate=[0.5, rate])
    with pytest.raises(UserError, match=f"'sampling_rate' is {rate:g} in row 1"):
        logit_offsets(impressions(table))


def test_of_parquet_only_a_few_columns_are_read(one_rank, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    table = rows_of(
        random.random(1000) < 0.3, sampling_rate=random.uniform(0.1, 1, 1000)
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=90)
    interval = Interval("timestamp", 100, 700, ("user_id", "item_id", "label"))
    streamed = Impressions(
        RowGroups(tmp_path / "rows.parquet", None, interval), CONFIG, None
    )
    held = Impressions(TableRows(table, interval, "rows"), CONFIG, None)
    read, original = set(), RowGroups._decoded

    def decoded(self, *asked):
        for piece in original(self, *asked):
            read.update(piece.column_names)
            yield piece

    monkeypatch.setattr(RowGroups, "_decoded", decoded)
    found = logit_offsets(streamed)["cvr"]
    assert read == {"user_id", "item_id", "timestamp", "label", "sampling_rate"}
    assert found == pytest.approx(logit_offsets(held)["cvr"], rel=1e-12)


def test_it_is_said_once_what_weights_and_rates_do(one_rank, caplog):
    caplog.set_level("INFO", logger="learn_torchrec")
    labels, ones = np.arange(600) % 2, np.ones(600)
    for columns in ({"weight": ones}, {"sampling_rate": ones}, {}):
        rows = impressions(rows_of(labels, **columns))
        train_ranker(CONFIG, rows, one_rank, Recorder())
    said = [line for line in caplog.messages if line.startswith("column ")]
    assert said[0] == "column 'weight' weights the rows in training and in the metrics"
    assert "'sampling_rate': scores will be probabilities among all rows" in said[1]
    assert len(said) == 2


def test_with_the_offset_the_loss_is_that_of_a_shifted_bias():
    """Loss and gradients are equal, and so the order that is learned."""
    config = problem.config("auto")
    rows = problem.impressions(config)
    encoded = rows.encoder()(problem.table())
    found = []
    for offset in (0.0, 1.7):
        offsets = {"cvr": offset} if offset else None
        task = build_task(config, problem.SHAPE, torch.device("cpu"), offsets)
        task.ranker.sparse_arch.to_empty(device="cpu")
        init_tables(task, 0)
        bias = task.ranker.over_arch.model[-1].bias
        with torch.no_grad():
            bias -= offset
        loss, output = task(collate(encoded, rows.learn))
        loss.backward()
        gradients = [p.grad.clone() for p in task.parameters() if p.grad is not None]
        found.append((loss, output.logits["cvr"], gradients))
    (plain, logits, expected), (shifted, moved, gradients) = found
    torch.testing.assert_close(shifted, plain)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved, logits - 1.7)


def test_scores_are_those_among_all_rows(one_rank):
    random = np.random.default_rng(1)
    count, rate = 60_000, 0.2
    x = random.normal(size=count).astype(np.float32)
    labels = random.random(count) < 1 / (1 + np.exp(3 - x))  # 7 % are positive
    everything = rows_of(labels, x=x)
    kept = labels | (random.random(count) < rate)
    rates = np.where(labels, 1.0, rate)  # known for negatives alone
    sampled = everything.append_column("sampling_rate", pa.array(rates)).filter(kept)
    found = {}
    for name, table in (
        ("offset", sampled),
        ("none", sampled.drop_columns("sampling_rate")),
    ):
        model, facts, _ = train_ranker(CONFIG, impressions(table), one_rank, Recorder())
        scores = score(model, impressions(everything), 1000, one_rank)["score"]
        users = everything["user_id"].combine_chunks()
        found[name] = evaluate_auc(users, labels, scores), facts
        if name == "offset":  # the sampled rows stand for all
            rows = Validation(CONFIG, impressions(table), one_rank)
            validated = rows.evaluate(model, 1)
    (metrics, facts), (without, _) = found["offset"], found["none"]
    assert metrics["calibration"] == pytest.approx(1, abs=0.02)
    for one in ("calibration", "ne"):
        assert validated[one] == pytest.approx(metrics[one], abs=0.02)
    assert without["calibration"] > 3  # what it would have been
    assert metrics["auc"] == pytest.approx(without["auc"], abs=1e-3)
    assert facts["logit_offsets"] == {"cvr": pytest.approx(math.log(5))}
