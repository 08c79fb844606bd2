"""Broken inputs: each gives a one-line error, or is repaired and counted.

If a file is refused, no partial output is left.
"""

import gzip
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.artifact import MANIFEST, read_manifest
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.loading.loader import Loader, LoaderConfig
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.datasets.preparation.engines import open_engine
from learn_torchrec.datasets.preparation.prepare import PrepareConfig, prepare
from learn_torchrec.datasets.sequences import build_sequences
from learn_torchrec.errors import UserError
from learn_torchrec.publish import write_artifact

Table = Callable[[pa.Table], pa.Table]
COUNT = 60


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A data set in our own schema, to be broken."""
    directory = tmp_path / "small"
    directory.mkdir()
    ids = np.arange(COUNT) % 10
    log = {"user_id": ids % 4, "item_id": ids, "timestamp": np.arange(COUNT) + 100}
    tables = {
        "items": {"item_id": range(10), "title": [f"thing {n}" for n in range(10)]},
        "interactions": {**log, "action": ["like"] * COUNT},
        "impressions": {**log, "label": ids % 2},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), directory / f"{name}.parquet")
    return directory


def column(name: str, values: Any, kind: pa.DataType | None = None) -> Table:
    def change(table: pa.Table) -> pa.Table:
        index = table.column_names.index(name)
        new = values(table[name].to_pylist()) if callable(values) else values
        return table.set_column(index, name, pa.array(new, kind))

    return change


def at(row: int, value: Any) -> Callable[[list], list]:
    return lambda values: [*values[:row], value, *values[row + 1 :]]


def without(name: str) -> Table:
    return lambda table: table.drop_columns([name])


TABLES: dict[str, tuple[str, Table, str]] = {
    "no time": ("interactions", without("timestamp"), "'timestamp' .* is missing"),
    "no user": ("interactions", without("user_id"), "'user_id' .* is missing"),
    "no item": ("items", without("item_id"), "'item_id' .* is missing"),
    "text as time": (
        "interactions",
        column("timestamp", ["noon"] * COUNT),
        "'timestamp' holds 'noon'; write times as unix seconds",
    ),
    "times of seven digits": (
        "interactions",
        column("timestamp", np.arange(COUNT, dtype=np.float32)),
        "'timestamp' is float, must be int64",
    ),
    "milliseconds": (
        "interactions",
        column("timestamp", np.arange(COUNT) + 1_600_000_000_000),
        "milliseconds[?] divide by 1000",
    ),
    "label 2": ("impressions", column("label", at(9, 2)), "row 9, must be 0 or 1"),
    "label NaN": (
        "impressions",
        column("label", at(2, float("nan")), pa.float32()),
        "row 2, must be 0 or 1",
    ),
    "label in words": (
        "impressions",
        column("label", ["yes"] * COUNT),
        "'label' is string, must be 0 or 1",
    ),
    "fractions as ids": (
        "items",
        column("item_id", np.arange(10) / 2),
        "'item_id' is double, must be int64 or string",
    ),
    "ids beyond int64": (
        "items",
        column("item_id", [2**64 - 1 - n for n in range(10)], pa.uint64()),
        "'item_id': an id does not fit int64; use strings",
    ),
    "ids of two types": (
        "interactions",
        column("item_id", [str(n % 10) for n in range(COUNT)]),
        "'item_id': ids are string, but int64 in the item table",
    ),
    "users of two types": (
        "impressions",
        column("user_id", [str(n % 4) for n in range(COUNT)]),
        "'user_id': ids are string, but int64 in .*interactions",
    ),
    "lists as ids": (
        "items",
        column("item_id", [[n] for n in range(10)]),
        "'item_id' is list<.*>, must be int64 or string",
    ),
    "no rows": ("interactions", lambda table: table.slice(0, 0), "has no rows"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(small: Path, case: str) -> None:
    name, change, message = TABLES[case]
    path = small / f"{name}.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    refused(lambda: getattr(open_dataset(f"parquet:{small}"), name), message, path)


TIMES: dict[str, tuple[Table, str]] = {
    "none": (without("timestamp"), "'timestamp' is missing"),
    "nulls of lists": (
        column("timestamp", [None] * COUNT, pa.list_(pa.int64())),
        "'timestamp': times are list<.*>; use int64",
    ),
    "times of day": (
        column("timestamp", [None] * COUNT, pa.time32("s")),
        "'timestamp': times are time32.*; use int64",
    ),
}


@pytest.mark.parametrize("read", ["impression_times", "impression_moments"])
@pytest.mark.parametrize("case", TIMES)
def test_times_of_impressions_that_are_read_alone(
    small: Path, case: str, read: str
) -> None:
    change, message = TIMES[case]
    path = small / "impressions.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    dataset = open_dataset(f"parquet:{small}")
    refused(lambda: getattr(dataset, read), message, path)


def cut(path: Path, share: float) -> None:
    body = path.read_bytes()
    path.write_bytes(body[: int(len(body) * share)])


def scribble(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[4:200] = b"\xff" * 196  # the pages; the footer stays whole
    path.write_bytes(body)


def folder_of(*tables: pa.Table) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.unlink()
        path.mkdir()
        for number, table in enumerate(tables):
            pq.write_table(table, path / f"part-{number}.parquet")

    return make


ONE = pa.table({"user_id": [1], "item_id": [1], "timestamp": [1], "action": ["like"]})
FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (lambda path: cut(path, 0.6), "cannot be read as Parquet"),
    "footer only": (lambda path: cut(path, 0.01), "cannot be read as Parquet"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as Parquet"),
    "text": (lambda path: path.write_text("a,b\n1,2\n"), "cannot be read as Parquet"),
    "pages overwritten": (scribble, "cannot be read"),
    "missing": (lambda path: path.unlink(), "no such file"),
    "a folder without files": (folder_of(), "has no .parquet files"),
    "two types": (
        folder_of(ONE, column("item_id", ["x"])(ONE)),
        "part-1.parquet: column 'item_id' is string, but int64 in other files",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files(small: Path, case: str) -> None:
    change, message = FILES[case]
    path = small / "interactions.parquet"
    change(path)
    refused(lambda: open_dataset(f"parquet:{small}").interactions, message, path)


def test_pages_overwritten_in_the_loader(small: Path) -> None:
    scribble(small / "impressions.parquet")
    rows = RowGroups(small / "impressions.parquet", ["user_id", "label"])
    loader = Loader(rows, LoaderConfig(batch_size=4))
    refused(lambda: list(loader.batches(0)), "row group 0 cannot be read")


def test_permissions(small: Path) -> None:
    path = small / "interactions.parquet"
    path.chmod(0)
    nobody = os.geteuid() == 0  # who may read everything
    if nobody:
        os.seteuid(65534)
    try:
        # Without root's rights even the folder may be unreadable.
        message = "may not be read; check its permissions|Permission denied"
        refused(lambda: open_dataset(f"parquet:{small}").interactions, message, small)
    finally:
        if nobody:
            os.seteuid(0)
        path.chmod(0o600)


VECTORS: dict[str, tuple[list[Any], Callable[[], np.ndarray], str]] = {
    "NaN": ([1, 2], lambda: np.array([[1, 1], [1, np.nan]]), "item_id 2 is not finite"),
    "infinite": ([1, 2], lambda: np.array([[np.inf, 1], [1, 1]]), "item_id 1 is not"),
    "too large": ([1, 2], lambda: np.array([[1, 1], [1, 7e4]]), "too large for half"),
    "an id twice": ([3, 3], lambda: np.ones((2, 2)), "id 3 occurs 2 times"),
    "a null id": ([3, None], lambda: np.ones((2, 2)), "null id in row 1"),
    "fractions": ([0.5, 1.5], lambda: np.ones((2, 2)), "ids are double"),
    "no items": ([], lambda: np.ones((0, 2)), "no items; check the item table"),
}


@pytest.mark.parametrize("case", VECTORS)
def test_vectors(tmp_path: Path, case: str) -> None:
    ids, vectors, message = VECTORS[case]
    refused(lambda: store(tmp_path / "c", ids, vectors()), message)
    assert list(tmp_path.iterdir()) == []


def store(directory: Path, ids: list[Any], vectors: np.ndarray) -> ContentStore:
    with write_artifact(directory, kind=KIND, config={}, inputs={}) as working:
        write_content_store(working, pa.array(ids), vectors)
    return ContentStore.open(directory)


TEXTS: dict[str, tuple[str, dict[str, bytes], str]] = {
    "a broken line": (
        "amazon",
        {"a.json": b'{"asin": "x"\n', "meta_a.json": b'{"asin": "x"}\n'},
        r"a\.json: line 1 is not a JSON object",
    ),
    "a review without a user": (
        "amazon",
        {"a.json": b'{"asin": "x"}\n', "meta_a.json": b'{"asin": "x"}\n'},
        r"a\.json: line 1 has no user_id or reviewerID; it has: asin",
    ),
    "gzip cut off": (
        "amazon",
        {
            "a.json.gz": gzip.compress(os.urandom(4000))[:2000],
            "meta_a.json": b'{"asin": "x"}\n',
        },
        r"a\.json\.gz: cannot be read",
    ),
    "no metadata": ("amazon", {"a.json": b"{}"}, "has no metadata file"),
    "a list for an object": ("lcrec", {"x.inter.json": b"[1]"}, "must be an object"),
    "JSON cut off": ("lcrec", {"x.inter.json": b'{"1": ['}, "not valid JSON"),
    "two of a kind": (
        "lcrec",
        {"x.inter.json": b"{}", "y.inter.json": b"{}"},
        r"has 2 \*\.inter\.json files, one is needed",
    ),
    "ragged CSV": (
        "csv",
        {"interactions.csv": b"user_id,item_id\n1,2,3\n", "items.csv": b"item_id\n2\n"},
        r"interactions\.csv: cannot be read as CSV",
    ),
    "letters as a rating": (
        "recbole",
        {"x.inter": b"user_id:token\titem_id:token\trating:float\na\tb\tgood\n"},
        r"x\.inter: is not an atomic file",
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts(tmp_path: Path, case: str) -> None:
    adapter, files, message = TEXTS[case]
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
    dataset = open_dataset(f"{adapter}:{tmp_path}")
    refused(lambda: dataset.read_interactions(), message)


def test_empty_lists_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"ids": [[1, 2], [], [3]], "value": [0, 1, 2]}), path)
    loader = Loader(RowGroups(path), LoaderConfig(batch_size=3, shuffle=False))
    (batch,) = loader.batches(0)
    assert batch["ids"].to_pylist() == [[1, 2], [], [3]]


def test_a_clock_that_goes_backwards_is_sorted(small: Path) -> None:
    path = small / "interactions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(np.arange(COUNT)[::-1].copy()), path)
    log = open_dataset(f"parquet:{small}").interactions
    sequences = build_sequences(log, log["item_id"].to_numpy(), ["like"])
    for user in range(len(sequences)):
        lo, hi = sequences.offsets[user : user + 2]
        assert (np.diff(sequences.times[lo:hi]) > 0).all()


REPAIRS = {
    "nulls": {"user_id": None},
    "bad_times": {"timestamp": 10**13},
    "unknown_items": {"item_id": 77},
    "repeats": {},
}


@pytest.mark.parametrize("reason", REPAIRS)
def test_repairs_are_counted(small: Path, tmp_path: Path, reason: str) -> None:
    pytest.importorskip("duckdb")
    rows = pq.read_table(small / "interactions.parquet").to_pylist()
    rows.extend([{**rows[5], **REPAIRS[reason]}] * (1 if reason == "repeats" else 3))
    engine = open_engine("duckdb", tmp_path, "300MB")
    engine.register("log", pa.Table.from_pylist(rows))
    engine.register("items", pa.table({"item_id": range(10), "item": range(10)}))
    result = prepare(engine, PrepareConfig(), pa.int64(), "log")
    assert sum(batch.num_rows for batch in result.events()) == COUNT
    engine.close()
    assert sum(result.users["events"].to_pylist()) == COUNT
    expected = 1 if reason == "repeats" else 3
    assert {k: n for k, n in result.dropped.items() if n} == {reason: expected}


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file size simulates a full disk: the write itself fails."""
    old = store(tmp_path / "c", [1, 2], np.ones((2, 2)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store(tmp_path / "c", list(range(9000)), np.ones((9000, 8)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert len(ContentStore.open(tmp_path / "c")) == len(old)


def killed_in_the_middle(directory: Path) -> None:
    with write_artifact(directory, kind=KIND, config={}, inputs={}) as working:
        (working / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_while_writing(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(
        target=killed_in_the_middle, args=(tmp_path / "c",)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "c").exists()
    assert len(list(tmp_path.iterdir())) == 1  # what the next run removes
    store(tmp_path / "c", [1, 2], np.ones((2, 2)))
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


MANIFESTS: dict[str, tuple[Callable[[dict], Any], str]] = {
    "no JSON": (lambda body: "{", "not valid JSON"),
    "another format": (lambda body: {**body, "format_version": 99}, "format 99"),
    "another kind": (lambda body: {**body, "kind": "towers"}, "holds a towers"),
    "unknown fields": (lambda body: {**body, "colour": 1}, "damaged"),
    "another date": (lambda body: {**body, "created": "2020"}, "damaged"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests(tmp_path: Path, case: str) -> None:
    change, message = MANIFESTS[case]
    store(tmp_path / "c", [1, 2], np.ones((2, 2)))
    path = tmp_path / "c" / MANIFEST
    body = change(json.loads(path.read_text()))
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    refused(lambda: read_manifest(tmp_path / "c", KIND), message)


def refused(run: Callable[[], Any], message: str, path: Path | None = None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run()
    line = str(caught.value)
    assert "\n" not in line
    if path is not None:
        assert str(path) in line


def test_the_corpus_is_large() -> None:
    tables = (TABLES, FILES, VECTORS, TEXTS, REPAIRS, MANIFESTS)
    assert sum(map(len, tables)) >= 40
