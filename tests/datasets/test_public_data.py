"""Adapters of research data: `sequences:` and `online-retail:`."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError


@pytest.fixture
def sequences(tmp_path):
    items = [
        {"item_id": "b", "title": "A bolt", "categories": "Tools,Bolts"},
        {"item_id": "a", "title": "A nut", "brand": "Acme", "material": "steel"},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n")
    (tmp_path / "sequences.txt").write_text("7 a b a\n3 b\n")
    return tmp_path


def test_sequences_become_interactions_in_order(sequences):
    dataset = open_dataset(f"sequences:{sequences}")
    assert dataset.items.select(["item_id", "category", "material"]).to_pylist() == [
        {"item_id": "b", "category": "Tools,Bolts", "material": None},
        {"item_id": "a", "category": None, "material": "steel"},
    ]
    rows = dataset.interactions.to_pydict()
    assert rows["user_id"] == ["7", "7", "7", "3"]
    assert rows["item_id"] == ["a", "b", "a", "b"]
    assert rows["timestamp"] == [0, 1, 2, 0]
    before = dataset.fingerprint("interactions.parquet")
    (sequences / "sequences.txt").write_text("7 a b\n")
    assert dataset.fingerprint("interactions.parquet") != before
    with pytest.raises(UserError, match="has no impressions to rank"):
        _ = dataset.impressions


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("sequences.txt", "7 a\n8\n", "line 2 has no items"),
        ("sequences.txt", "7 a\n\n8 b\n", "line 2 has no items"),
        ("sequences.txt", "7 a\n7 b\n", "line 2 repeats user '7' of line 1"),
        ("sequences.txt", "7 zzz yyy\n", "2 of 2 events .*: 'zzz', 'yyy'"),
        ("items.jsonl", '{"item_id": 1}\nnone\n', "line 2 is not a JSON object with"),
        ("items.jsonl", '{"title": "x"}\n', "line 1 is not a JSON object with item_id"),
    ],
)
def test_wrong_lines_are_named(sequences, file, text, message):
    (sequences / file).write_text(text)
    dataset = open_dataset(f"sequences:{sequences}")
    with pytest.raises(UserError, match=message):
        _ = (dataset.items, dataset.interactions)


def test_a_missing_file_is_named(sequences):
    (sequences / "items.jsonl").unlink()
    with pytest.raises(UserError, match=r"items\.jsonl: no such file"):
        _ = open_dataset(f"sequences:{sequences}").items


def test_invoice_lines_become_purchases(tmp_path):
    def at(day):
        return datetime.datetime(2011, 1, day, tzinfo=None)

    lines = [
        (at(1), "85123A", "WHITE HOLDER ", 6, 17850, "1"),
        (at(2), "85123A", "WHITE HOLDER", 1, 17850, "2"),
        (at(3), "85123A", "wrong code", 1, 12583, "3"),
        (at(3), "22", "MUG", -1, 17850, "C4"),  # a return
        (at(4), "22", "MUG", 2, None, "5"),  # nobody's
        (at(5), "22", "MUG", 3, 12583, "6"),
    ]
    names = ("InvoiceDate", "StockCode", "Description", "Quantity", "CustomerID", "No")
    columns = dict(zip(names, zip(*lines, strict=True), strict=True))
    pq.write_table(
        pa.table({k: list(v) for k, v in columns.items()}), tmp_path / "a.parquet"
    )
    dataset = open_dataset(f"online-retail:{tmp_path}")
    assert dataset.items.to_pylist() == [
        {"item_id": "22", "title": "MUG"},
        {"item_id": "85123A", "title": "WHITE HOLDER"},
    ]
    rows = dataset.interactions.to_pydict()
    assert rows["user_id"] == [17850, 17850, 12583, 12583]
    assert rows["item_id"] == ["85123A", "85123A", "85123A", "22"]
    assert rows["timestamp"][0] == 1293840000
    assert set(rows["action"]) == {"buy"}
    pq.write_table(
        pq.read_table(tmp_path / "a.parquet").drop_columns(["CustomerID"]),
        tmp_path / "a.parquet",
    )
    with pytest.raises(UserError, match="column 'CustomerID' is missing"):
        _ = open_dataset(f"online-retail:{tmp_path}").items


def test_sequences_behind_a_uri(sequences):
    folder = Location.of("fsspec+memory:///sequences")
    folder.filesystem.create_dir(folder.path)
    for name in ("sequences.txt", "items.jsonl"):
        place = f"{folder.path}/{name}"
        with folder.filesystem.open_output_stream(place, compression=None) as stream:
            stream.write((sequences / name).read_bytes())
    remote, local = (
        open_dataset(f"sequences:{place}") for place in (folder.name, sequences)
    )
    assert remote.items.equals(local.items)
    assert remote.interactions.equals(local.interactions)
    assert remote.fingerprint("items.parquet")
