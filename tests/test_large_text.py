"""Text columns beyond 2 GiB, which one Arrow array of `string` cannot hold."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec import arrays
from learn_torchrec.apps import evaluate_ab, evaluate_auc
from learn_torchrec.arrays import as_arrow, as_strings, joined, taken, widened
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.histories import Catalogue
from learn_torchrec.evaluation.predictions import read_predictions
from learn_torchrec.ids import as_ids
from learn_torchrec.ranker.features.columns import read_column
from learn_torchrec.ranker.features.lookups import ItemColumns

GIB = 1 << 30


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few bytes take the paths of 2 GiB."""
    monkeypatch.setattr(arrays, "MOST_TEXT_BYTES", 40)


def names(count: int, prefix: str = "id") -> pa.ChunkedArray:
    return pa.chunked_array([[f"{prefix}-{n:04d}"] for n in range(count)], pa.string())


@pytest.mark.usefixtures("small_limit")
def test_a_long_column_is_joined_as_large_text() -> None:
    column = names(30)
    assert joined(column).type == pa.large_string()
    assert joined(column).to_pylist() == column.to_pylist()
    assert joined(column.slice(0, 2)).type == pa.string()
    blobs = column.cast(pa.binary())
    assert joined(blobs).type == pa.large_binary()
    numbers = pa.chunked_array([range(50)])
    assert joined(numbers).type == pa.int64()


@pytest.mark.usefixtures("small_limit")
def test_rows_of_long_text_are_taken_and_repeated() -> None:
    table = pa.table({"name": names(30), "number": pa.array(range(30))})
    wide = widened(table)
    assert wide.schema.field("name").type == pa.large_string()
    assert wide.take(pa.array([29, 0]))["name"].to_pylist() == ["id-0029", "id-0000"]
    short = pa.table({"name": ["yes", "no"], "number": [1, 2]})
    found = taken(short, pa.array([1, None, *[0] * 40]))
    assert found["name"].type == pa.large_string()
    assert found["name"].to_pylist() == ["no", None, *["yes"] * 40]


@pytest.mark.usefixtures("small_limit")
def test_large_text_becomes_small_chunks() -> None:
    column = pa.chunked_array([joined(names(30)), joined(names(10))])
    found = as_strings(column)
    assert found.type == pa.string()
    assert found.num_chunks > 6
    assert found.to_pylist() == column.to_pylist()


@pytest.mark.usefixtures("small_limit")
def test_a_dictionary_is_decoded_to_what_holds_it() -> None:
    encoded = pa.array(["a" * 12, "b"] * 5).dictionary_encode()
    assert as_arrow(encoded).type == pa.large_string()
    assert as_arrow(encoded).to_pylist() == encoded.to_pylist()
    assert as_arrow(pa.chunked_array([encoded])).type == pa.large_string()
    assert as_arrow(encoded.slice(0, 2)).type == pa.string()


def write_shop(folder) -> str:
    folder.mkdir()
    count = 40
    items = {"item_id": names(count), "title": names(count, "title")}
    pq.write_table(pa.table(items), folder / "items.parquet", row_group_size=7)
    random = np.random.default_rng(0)
    rows = random.integers(count, size=200)
    log = {
        "user_id": names(20, "user").take(pa.array(random.integers(20, size=200))),
        "item_id": items["item_id"].take(pa.array(rows)),
        "timestamp": np.arange(200) * 1000,
        "action": ["buy", "view"] * 100,
    }
    pq.write_table(pa.table(log), folder / "interactions.parquet", row_group_size=50)
    log = {k: v for k, v in log.items() if k != "action"}
    shown = pa.table(log | {"label": rows % 2, "store": names(200, "store")})
    pq.write_table(shown, folder / "impressions.parquet", row_group_size=50)
    return f"parquet:{folder}"


def stages(where: str) -> dict:
    """Return what stages make of a shop with strings everywhere."""
    dataset = open_dataset(where)
    sequences = dataset.sequences(Catalogue.of(dataset), ("buy", "view"))
    rows = dataset.impressions.take(pa.array(np.arange(200)[::-1]))
    columns = ItemColumns(dataset.items, "items")
    found = columns.add_to(rows, "impressions")
    store = read_column(rows, "store", "impressions").values
    titles = read_column(found, "title", "impressions").values
    is_small = arrays.MOST_TEXT_BYTES < GIB
    large = pa.large_string() if is_small else pa.string()
    assert {dataset.items["title"].type, store.type, titles.type} == {large}
    return {
        "title": dataset.items["title"].to_pylist(),
        "users": sequences.user_ids.to_pylist(),
        "items": [sequences.of(user).tolist() for user in range(len(sequences))],
        "store": store.to_pylist(),
        "titles": titles.to_pylist(),
    }


def test_stages_read_long_columns_alike(tmp_path, monkeypatch) -> None:
    where = write_shop(tmp_path / "shop")
    expected = stages(where)
    monkeypatch.setattr(arrays, "MOST_TEXT_BYTES", 40)
    assert stages(where) == expected


def test_predictions_with_long_ids_are_evaluated_alike(tmp_path, monkeypatch) -> None:
    random = np.random.default_rng(0)
    table = {
        "user_id": names(10, "user").take(pa.array(random.integers(10, size=200))),
        "item_id": names(200),
        "label": random.integers(2, size=200),
        "arm": ["x", "y"] * 100,
    }
    for name in ("a", "b"):
        scored = pa.table(table | {"score": random.random(200)})
        pq.write_table(scored, tmp_path / f"{name}.parquet", row_group_size=30)
    out = tmp_path / "m.json"
    files = [f"{name}={tmp_path / name}.parquet" for name in ("a", "b")]
    command = ["--predictions", *files, "--out", str(out)]
    for options in (["--resamples=20", "--cohort-column=arm"], ["--stream"]):
        evaluate_auc.main([*command, *options])
        expected = json.loads(out.read_text())
        with monkeypatch.context() as limited:
            limited.setattr(arrays, "MOST_TEXT_BYTES", 40)
            evaluate_auc.main([*command, *options])
        assert json.loads(out.read_text()) == expected
    monkeypatch.setattr(arrays, "MOST_TEXT_BYTES", 40)
    assert read_predictions(tmp_path / "a.parquet").item_ids.type == pa.large_string()


def test_outcomes_with_long_ids_are_evaluated_alike(tmp_path, monkeypatch) -> None:
    files = ["--outcomes", str(tmp_path / "o.parquet"), "--out", str(tmp_path / "o")]
    settings = ["--set", "replay.users=200", "ab.resamples=20"]
    evaluate_ab.main(["--simulate", *files, *settings])
    table = pq.read_table(tmp_path / "o.parquet")
    place = table.column_names.index("user_id")
    users = pa.array([f"user {user}" for user in table["user_id"].to_pylist()])
    table = table.set_column(place, "user_id", users)
    pq.write_table(table, tmp_path / "o.parquet")
    found = []
    for limit in (arrays.MOST_TEXT_BYTES, 40):
        monkeypatch.setattr(arrays, "MOST_TEXT_BYTES", limit)
        evaluate_ab.main([*files, "--set", "ab.resamples=20"])
        found.append(json.loads((tmp_path / "o").read_text()))
    assert found[0] == found[1]


@pytest.mark.slow  # it copies 2.5 GiB
def test_three_gibibytes_are_joined_and_taken() -> None:
    """One gibibyte of zeros, three times: four values a chunk."""
    count = 4
    ends = np.linspace(0, 0.8 * GIB, count + 1).astype(np.int32)
    zeros = pa.py_buffer(np.zeros(GIB, np.uint8))
    chunk = pa.StringArray.from_buffers(count, pa.py_buffer(ends), zeros)
    column = pa.chunked_array([chunk] * 3)
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        column.combine_chunks()
    assert len(joined(column)) == 12
    table = widened(pa.table({"item_id": column}))
    assert table.take(pa.array([11]))["item_id"].nbytes > 0.1 * GIB
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        pa.table({"item_id": column}).take(pa.array([11]))
    assert as_ids(column.slice(0, 1), "item_id").type == pa.large_string()
