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

CUTOFF, LATE = 40 * 86_400, 48 * 86_400
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
