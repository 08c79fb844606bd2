"""Users that towers were trained on do not count as new, whatever the log says."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import evaluate_retrieval, train_towers
from learn_torchrec.errors import UserError
from learn_torchrec.ids import as_ids, hash_ids
from learn_torchrec.towers.artifact import trained_users

DAY = 86_400
SMALL = [
    "--set",
    "towers.model.encoder.width=16",
    "towers.model.encoder.feed_forward_dim=32",
    "towers.training.epochs=1",
    f"split.towers_until={40 * DAY}",
    f"split.test_from={48 * DAY}",
    "split.min_events=4",
]


def command(market: Path, store, holdout: str, *more: str) -> list[str]:
    data = ["--data", f"parquet:{market}", "--content", str(store.directory)]
    return [*data, *more, *SMALL, f"split.holdout={holdout}"]


def pruned(market: Path, directory: Path) -> Path:
    """The log after retention: few users still have events of the first 40 days."""
    shutil.copytree(market, directory)
    log = pq.read_table(market / "interactions.parquet")
    kept = pc.or_(
        pc.greater_equal(log["timestamp"], 40 * DAY), pc.less(log["user_id"], 20)
    )
    pq.write_table(log.filter(kept), directory / "interactions.parquet")
    return directory


def arrived(market: Path) -> pa.Array:
    """Users whose first event is late."""
    log = pq.read_table(market / "interactions.parquet")
    first = log.group_by("user_id").aggregate([("timestamp", "min")])
    late = first.filter(pc.greater_equal(first["timestamp_min"], 40 * DAY))
    return as_ids(late["user_id"], "users")


@pytest.mark.parametrize("holdout", ["new_users", "leave_one_out"])
def test_a_pruned_log_makes_nobody_new(holdout, market, store, tmp_path, caplog):
    towers, out = tmp_path / "towers", tmp_path / "metrics.json"
    train_towers.main(command(market, store, holdout, "--out", str(towers)))
    trained, new = trained_users(towers), arrived(market)
    assert len(trained) > 30
    assert np.isin(hash_ids(new), trained).any() == (holdout == "leave_one_out")
    other = pruned(market, tmp_path / "pruned")
    assert len(arrived(other)) > len(new) + 10
    more = ("--towers", str(towers), "--out", str(out))
    if holdout == "leave_one_out":
        with pytest.raises(UserError, match=r"leak: .* the events to retrieve of anot"):
            evaluate_retrieval.main(command(other, store, holdout, *more))
        return
    with caplog.at_level(logging.WARNING):
        evaluate_retrieval.main(command(other, store, holdout, *more))
    assert "users to evaluate were in the training of" in caplog.text
    # Users of validation were no users of training.
    untrained = ~np.isin(hash_ids(arrived(other)), trained)
    users = json.loads(out.read_text())["retrieval"]["learn"]["users"]
    assert 0 < users <= untrained.sum() < len(arrived(other)) - 10
