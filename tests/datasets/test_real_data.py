"""Public data sets too large for a wheel, in the folder `LEARN_TEST_DATA`."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from learn_torchrec.datasets import open_dataset

pytestmark = pytest.mark.data

DATA = Path(os.environ.get("LEARN_TEST_DATA", "data"))
OFFICE = (
    "interactions=Office_Products.events.csv,items=Office_Products.items.jsonl,"
    "category=categories,default_action=buy"
)


@pytest.mark.parametrize(
    ("spec", "users", "items", "events"),
    [
        (f"sequences:{DATA}/amazon_scientific", 8_317, 4_344, 58_492),
        (f"online-retail:{DATA}/online_retail_ii", 5_852, 4_619, 766_079),
        (f"movielens-1m:{DATA}/movielens_1m_ranking", 838, 3_255, 51_623),
    ],
)
def test_counts(spec: str, users: int, items: int, events: int) -> None:
    dataset = open_dataset(spec)
    assert dataset.items.num_rows == items
    assert dataset.interactions.num_rows == events
    assert len(dataset.interactions["user_id"].unique()) == users


def test_csv_with_times() -> None:
    dataset = open_dataset(f"csv:{DATA}/amazon_industrial_office_time#{OFFICE}")
    log = dataset.interactions
    assert log.num_rows == 22_447
    assert log["timestamp"].type == pa.int64()
    assert len(log["user_id"].unique()) == 3_231
    assert len(log["item_id"].unique()) == 3_317
    assert {"title", "brand", "category"} <= set(dataset.items.column_names)


def test_lcrec_equals_sequences(tmp_path: Path) -> None:
    source = DATA / "amazon_scientific"
    lines = (source / "sequences.txt").read_text().splitlines()
    users = {user: [int(i) for i in rest] for user, *rest in map(str.split, lines)}
    items = map(json.loads, (source / "items.jsonl").read_text().splitlines())
    catalogue = {row.pop("item_id"): row for row in items}
    (tmp_path / "Scientific.inter.json").write_text(json.dumps(users))
    (tmp_path / "Scientific.item.json").write_text(json.dumps(catalogue))
    ours, theirs = (
        open_dataset(f"lcrec:{tmp_path}"),
        open_dataset(f"sequences:{source}"),
    )
    assert ours.interactions.equals(theirs.interactions)
    assert ours.items["item_id"].equals(theirs.items["item_id"])
