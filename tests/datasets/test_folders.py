"""Partitioned folders, by every writer, read in memory and by DuckDB: one result."""

import datetime
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps.prepare import _load
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.time_range import Interval
from learn_torchrec.datasets.preparation.engines import open_engine
from learn_torchrec.datasets.preparation.prepare import PrepareConfig, prepare
from learn_torchrec.errors import UserError

MOMENT = 1_600_000_000
ROWS = {
    "user_id": ["007", "7", "x y"],
    "item_id": ["a", "b", "c"],
    "timestamp": [MOMENT, MOMENT + 1, MOMENT + 2],
    "action": ["buy", "view", "buy"],
}
EXPECTED = sorted(zip(*ROWS.values(), strict=True))


def with_key(path: Path, users: list[str], keeps_column: bool = False) -> None:
    """Write a folder for each user, as Spark (without the column) or Polars (with)."""
    for row, user in enumerate(users):
        folder = path / f"user_id={urllib.parse.quote(user, safe='')}"
        folder.mkdir(parents=True)
        part = pa.table(ROWS | {"user_id": users}).slice(row, 1)
        if keeps_column:
            kind = part.schema.field("user_id").with_type(pa.large_string())
            part = part.cast(part.schema.set(0, kind))
        pq.write_table(
            part if keeps_column else part.drop_columns(["user_id"]),
            folder / "0.parquet",
        )


def parts(path: Path, *tables: pa.Table) -> None:
    path.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, path / f"part-{number}.parquet")


def one(path: Path, **columns: pa.Array) -> None:
    pq.write_table(pa.table(ROWS | columns), path)


def dictionary(name: str) -> pa.Array:
    return pa.array(ROWS[name]).dictionary_encode()


WHOLE = pa.table(ROWS)
UNTYPED = pa.table({name: pa.array([], pa.float64()) for name in ROWS})
FOLDERS: dict[str, Callable[[Path], None]] = {
    "keys as Spark writes them": lambda path: with_key(path, ROWS["user_id"]),
    "keys as Polars writes them": lambda path: with_key(path, ROWS["user_id"], True),
    "a part without rows": lambda path: parts(path, UNTYPED, WHOLE),
    "a part of categories": lambda path: parts(
        path,
        WHOLE.slice(0, 1).set_column(
            0, "user_id", pa.array(["007"]).dictionary_encode()
        ),
        WHOLE.slice(1),
    ),
    "files without a suffix": lambda path: (
        path.mkdir(),
        pq.write_table(WHOLE, path / "000000_0"),
    ),
    "categories": lambda path: one(path, user_id=dictionary("user_id")),
    "unsigned times": lambda path: one(
        path, timestamp=pa.array(ROWS["timestamp"], pa.uint64())
    ),
    "nanoseconds": lambda path: one(
        path,
        timestamp=pa.array(
            [t * 10**9 + 999_999_999 for t in ROWS["timestamp"]], pa.timestamp("ns")
        ),
    ),
    "fractions": lambda path: one(
        path, timestamp=pa.array([t + 0.75 for t in ROWS["timestamp"]])
    ),
    "decimals": lambda path: one(
        path, timestamp=pa.array(ROWS["timestamp"]).cast(pa.decimal128(22, 3))
    ),
    "texts": lambda path: one(
        path,
        timestamp=[
            "2020-09-13T14:26:40.9+02:00",
            "2020-09-13 12:26:41",
            "2020-09-13 12:26:42.9999999 UTC",
        ],
    ),
    "views": lambda path: one(
        path, user_id=pa.array(ROWS["user_id"], pa.string_view())
    ),
}


def in_memory(folder: Path) -> list[tuple]:
    log = open_dataset(f"parquet:{folder}").interactions
    return sorted(zip(*(log[name].to_pylist() for name in ROWS), strict=True))


def by_engine(folder: Path, scratch: Path, name: str = "duckdb") -> list[tuple]:
    pytest.importorskip("duckdb")
    data, engine = open_dataset(f"parquet:{folder}"), open_engine(name, scratch, "1GB")
    try:
        prepared = prepare(engine, PrepareConfig(), _load(engine, data), "log")
        events = pa.Table.from_batches(prepared.events())
        users = prepared.users["user_id"].to_pylist()
        owners = np.repeat(np.arange(len(users)), prepared.users["events"].to_numpy())
        items = data.items["item_id"].to_pylist()
        rows = zip(
            owners, *(column.to_pylist() for column in events.columns), strict=True
        )
        return sorted(
            (users[user], items[item], time, prepared.actions[action])
            for user, item, time, action in rows
        )
    finally:
        engine.close()


def shop(folder: Path, write: Callable[[Path], object]) -> Path:
    pq.write_table(
        pa.table({"item_id": ["a", "b", "c"], "title": ["x", "y", "z"]}),
        folder / "items.parquet",
    )
    write(folder / "interactions.parquet")
    return folder


@pytest.mark.parametrize("case", FOLDERS)
def test_one_result_in_every_way(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    shop(tmp_path, FOLDERS[case])
    assert in_memory(tmp_path) == EXPECTED
    assert by_engine(tmp_path, tmp_path_factory.mktemp("scratch")) == EXPECTED


@pytest.mark.parametrize(
    "users", [["1", "2", "-3"], ["01", "1", "é ü/="], ["1", "2", "9" * 20]]
)
def test_keys_are_integers_only_if_all_are(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, users: list[str]
) -> None:
    shop(tmp_path, lambda path: with_key(path, users))
    wanted = [int(user) for user in users] if users[-1] == "-3" else users
    assert [row[0] for row in in_memory(tmp_path)] == sorted(wanted)
    rows = by_engine(tmp_path, tmp_path_factory.mktemp("scratch"))
    assert rows == in_memory(tmp_path)


def test_days_as_times(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    day = pa.array([datetime.date(2020, 9, 13)] * 3)
    shop(tmp_path, lambda path: one(path, timestamp=day))
    midnight = MOMENT // 86_400 * 86_400
    assert {row[2] for row in in_memory(tmp_path)} == {midnight}
    rows = by_engine(tmp_path, tmp_path_factory.mktemp("scratch"))
    assert rows == in_memory(tmp_path)


def test_times_before_1970_round_down(tmp_path: Path) -> None:
    times = pa.array([-1500, -1000, 500], pa.timestamp("ms"))
    shop(tmp_path, lambda path: one(path, timestamp=times))
    assert sorted(row[2] for row in in_memory(tmp_path)) == [-2, -1, 0]


@pytest.mark.parametrize("in_memory", [True, False])
def test_milliseconds_are_refused_alike(tmp_path: Path, in_memory: bool) -> None:
    shop(tmp_path, one)
    times = [time * 1000 for time in ROWS["timestamp"]]
    rows = pa.table(ROWS | {"timestamp": times, "label": [1, 0, 1]})
    for statistics in (True, False):
        pq.write_table(
            rows, tmp_path / "impressions.parquet", write_statistics=statistics
        )
        data = open_dataset(f"parquet:{tmp_path}")
        with pytest.raises(UserError, match=r"'timestamp' holds .*time_unit=ms"):
            data.impressions_between(0, in_memory=in_memory)


def test_a_column_twice_is_named(tmp_path: Path) -> None:
    twice = WHOLE.append_column("user_id", WHOLE["item_id"])
    shop(tmp_path, lambda path: pq.write_table(twice, path))
    with pytest.raises(
        UserError, match=r"interactions\.parquet: has column 'user_id' tw"
    ):
        in_memory(tmp_path)


def test_views_in_a_table_of_the_callers_own() -> None:
    table = pa.table({"t": [1, 2], "x": pa.array(["a", "b"], pa.string_view())})
    rows = TableRows(table, Interval("t", 2, 9), "mine")
    assert [piece["x"].to_pylist() for piece in rows.pieces(0)] == [["b"]]
