"""Nothing that a stage uses on an impression comes from its time or later."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from vectors_artefact import write_vectors

from learn_torchrec.apps import main as command_line
from learn_torchrec.apps import train_ranker
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerTrainingConfig,
    StreamConfig,
)
from learn_torchrec.ranker.features import FeaturesConfig
from learn_torchrec.ranker.learn.content import reduced_content
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.statistics import TargetStatistics, mean_of_history

CUTOFF, LATE = 40 * 86_400, 48 * 86_400
GRID = 40_000  # seconds; times are rounded down to it, so that many are equal
SMALL = [
    "towers.model.encoder.width=16",
    "towers.model.encoder.feed_forward_dim=32",
    "towers.training.epochs=2",
    "towers.training.batch_size=16",
    f"split.towers_until={CUTOFF}",
    f"split.test_from={LATE}",
]


def test_a_planted_leak_is_refused(market, tmp_path, capsys):
    """Vectors whose towers saw the impressions' time do not reach the ranker."""
    vectors = np.zeros((40, 2))
    names = [f"u-{user}" for user in range(40)]
    write_vectors(
        tmp_path / "late",
        users=(names, range(41), [0] * 40, vectors),
        items=([f"i-{item}" for item in range(100, 140)], vectors),
        cutoff=50 * 86_400,
    )
    with pytest.raises(SystemExit) as caught:
        command_line.main(
            [
                *("train-ranker", "--data", f"parquet:{market}"),
                *("--vectors", str(tmp_path / "late"), "--out", str(tmp_path / "out")),
                *("--set", "ranker.features.sparse=user_id", "ranker.features.dense="),
            ]
        )
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: leak: the vectors' towers learned from events up to")
    assert not (tmp_path / "out").exists()


def test_the_future_changes_nothing(market, store, tmp_path):
    """Towers know nothing from the cut-off on, vectors nothing after their moment."""
    outputs = []
    for name in ("as_it_is", "other_future"):
        data = market if name == "as_it_is" else scramble_future(market, tmp_path)
        out = tmp_path / name
        common = ["--data", f"parquet:{data}", "--content", str(store.directory)]
        settings = [f"--set={setting}" for setting in SMALL[:4]]
        settings += [
            f"--set=split.towers_until={CUTOFF}",
            f"--set=split.test_from={LATE}",
        ]
        command_line.main(
            ["train-towers", *common, "--out", str(out / "towers"), *settings]
        )
        command_line.main(
            [
                *("export-vectors", *common, "--towers", str(out / "towers")),
                *("--out", str(out / "vectors"), *settings),
            ]
        )
        weights = load_file(out / "towers" / "towers.safetensors")
        vectors = pq.read_table(out / "vectors" / "user_vectors.parquet")
        past = vectors.filter(pc.less(vectors["timestamp"], CUTOFF))
        outputs.append((weights, past, vectors))
    (weights, past, vectors), (other_weights, other_past, other_vectors) = outputs
    assert past.num_rows > 300
    events = ["user_id", "timestamp"]
    assert past.select(events).equals(other_past.select(events))
    # Who is encoded beside a user decides no more than the last digits.
    one, other, later, other_later = (
        np.stack(table["vector"].to_numpy())
        for table in (past, other_past, vectors, other_vectors)
    )
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert later.shape != other_later.shape or np.abs(later - other_later).max() > 0.01
    for name, value in weights.items():
        assert torch.equal(value, other_weights[name]), name


PAST = (
    *("user_past_events", "item_past_events", "user_past_rate", "item_past_rate"),
    *("user_item_past_events", "user_category_past_events"),
)


@pytest.mark.parametrize("streamed", [False, True])
def test_nothing_from_its_time_on_is_in_an_impressions_inputs(
    market, store, tmp_path, streamed
):
    """Past counts and rates, statistics and neighbours' rates, bit for bit."""
    moment = CUTOFF // GRID * GRID
    found = []
    for name in ("as_it_is", "other_future"):
        folder = tmp_path / name
        shutil.copytree(market, folder)
        scramble(folder, moment if name == "other_future" else None)
        found.append(encoded(folder, store, streamed))
    times = found[0].pop("times")
    assert np.array_equal(times, found[1].pop("times"))
    known = times <= moment
    assert (times == moment).sum() > 5
    for name, values in found[0].items():
        other = found[1][name]
        assert np.array_equal(values[known], other[known]), name
        assert (values[known] != 0).any(), name
        assert (values[~known] != other[~known]).any(), name


def scramble(folder: Path, moment: int | None) -> None:
    """Round all times; from a moment on change events and labels."""
    for file, columns in (
        ("interactions.parquet", ("item_id", "action")),
        ("impressions.parquet", ("label",)),
    ):
        table = pq.read_table(folder / file)
        times = table["timestamp"].to_numpy() // GRID * GRID
        late = times >= moment if moment else np.zeros(len(times), bool)
        changed = {"timestamp": times}
        for name in columns:
            values = np.array(table[name].to_pylist(), dtype=object)
            other = 1 - values[late] if name == "label" else np.roll(values[late], 7)
            values[late] = other
            changed[name] = values.tolist()
        for name, values in changed.items():
            index = table.column_names.index(name)
            table = table.set_column(index, name, pa.array(values))
        pq.write_table(table, folder / file, row_group_size=500)


def encoded(folder: Path, store: ContentStore, streamed: bool) -> dict[str, np.ndarray]:
    """Return the inputs of all impressions in file order, by kind."""
    dataset = open_dataset(f"parquet:{folder}")
    config = RankerConfig(
        features=FeaturesConfig(dense=PAST),
        training=RankerTrainingConfig(stream=StreamConfig(enabled=streamed)),
    )
    learn = LearnInputs(None, reduced_content(store), config.learn)
    learn = learn.read(dataset, config.tasks, ["like"])
    rows = train_ranker.training_impressions(
        dataset, config, SplitTimes(towers_until=0, test_from=2**40), learn, ["like"]
    )
    encode, source = rows.encoder(), rows.source
    tables = [t for group in range(len(source)) for t in source.pieces(group)]
    parts = [encode(table) for table in tables]
    whole = type(parts[0]).concatenate(parts)
    batch = learn.batch(whole.learn)
    statistics, means = batch.statistics, batch.history_means
    assert (statistics is None) == streamed
    if streamed:  # the model computes them
        statistics = TargetStatistics(config.learn.statistics)(batch.history)
        means = mean_of_history(batch.history)
    found = dict(zip(PAST, whole.dense.T, strict=True))
    return found | {
        "statistics": statistics.numpy(),
        "history_means": means.numpy(),
        "neighbour_rates": batch.neighbour_rates.numpy(),
        "times": whole.learn.times,
    }


def scramble_future(market: Path, tmp_path: Path) -> Path:
    """Another data set: from the cut-off on, other items and other actions."""
    directory = tmp_path / "scrambled"
    shutil.copytree(market, directory)
    log = pq.read_table(market / "interactions.parquet")
    late = log["timestamp"].to_numpy() >= CUTOFF
    for name in ("item_id", "action"):
        values = np.array(log[name].to_pylist(), dtype=object)
        values[late] = np.roll(values[late], 7)
        index = log.column_names.index(name)
        log = log.set_column(index, name, pa.array(values.tolist()))
    pq.write_table(log, directory / "interactions.parquet")
    return directory
