import importlib.util
import json
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.content.store import KIND as CONTENT
from learn_torchrec.content.store import ContentStore, write_content_store
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.preparation.engines import Engine, Spark, open_engine
from learn_torchrec.datasets.preparation.prepare import (
    PrepareConfig,
    PreparedLog,
    prepare,
)
from learn_torchrec.datasets.preparation.prepared import KIND, write_prepared
from learn_torchrec.datasets.split import SplitConfig
from learn_torchrec.errors import UserError
from learn_torchrec.locks import locked
from learn_torchrec.publish import write_artifact

DAY = 86_400
CONFIG = PrepareConfig(history_days=60, target_days=20, min_events=2)


def log(count: int = 600) -> pa.Table:
    """Interactions with everything that a preparation has to repair."""
    random = np.random.default_rng(0)
    users = [f"u{u}" for u in random.integers(0, 40, count)]
    items = random.integers(0, 30, count)
    times = random.integers(100 * DAY, 200 * DAY, count)
    times[::7] = times[0]  # ties
    actions = random.choice(["buy", "click", "click"], count).tolist()
    table = pa.table(
        {"user_id": users, "item_id": items, "timestamp": times, "action": actions}
    )
    broken = pa.table(
        {
            "user_id": ["u1", None, "u1", "u1", "u2", "lonely", "u3", "u3"],
            "item_id": [1, 1, None, 1, 999, 3, 4, 4],
            "timestamp": [None, 5, 6, -5, 10**7, 150 * DAY, 10**13, 10**12],
            "action": ["buy"] * 7 + [None],
        }
    )
    return pa.concat_tables([table, table.slice(0, 50), broken])


ITEMS = pa.table({"item_id": range(30), "title": [f"thing {n}" for n in range(30)]})


def naive(table: pa.Table, config: PrepareConfig) -> dict[str, object]:
    """The same preparation as plain loops."""
    rows, dropped = clean(table)
    moment = max(row["timestamp"] for row in rows) + 1 - config.target_days * DAY
    events: list[tuple] = []
    for row in rows:
        event = (row["user_id"], row["timestamp"], row["item_id"], row["action"])
        if row["timestamp"] < moment - config.history_days * DAY:
            dropped["outside_window"] += 1
        elif event in events:
            dropped["repeats"] += 1
        else:
            events.append(event)
    count = len(events)
    events = capped(events, config.length_quantile)
    dropped["over_cap"] = count - len(events)
    count = len(events)
    users = [e[0] for e in events]
    events = [e for e in events if users.count(e[0]) >= config.min_events]
    dropped["short_users"] = count - len(events)
    return {"events": sorted(events), "dropped": dropped, "moment": moment}


def clean(table: pa.Table) -> tuple[list[dict], dict[str, int]]:
    known = set(ITEMS["item_id"].to_pylist())
    dropped = dict.fromkeys(
        ("nulls", "bad_times", "unknown_items", "outside_window", "repeats"), 0
    )
    rows = []
    for row in table.to_pylist():
        if None in row.values():
            dropped["nulls"] += 1
        elif not 1 <= row["timestamp"] < 7_258_118_400:
            dropped["bad_times"] += 1
        elif row["item_id"] not in known:
            dropped["unknown_items"] += 1
        else:
            rows.append(row)
    return rows, dropped


def capped(events: list[tuple], quantile: float) -> list[tuple]:
    kept = list(events)
    for action in {event[3] for event in events}:
        of_action = [event for event in events if event[3] == action]
        users = {event[0] for event in of_action}
        lengths = sorted(sum(e[0] == user for e in of_action) for user in users)
        cap = lengths[max(0, int(np.ceil(quantile * len(lengths))) - 1)]
        for user in users:
            for event in sorted(e for e in of_action if e[0] == user)[:-cap]:
                kept.remove(event)
    return kept


def load(engine: Engine, source: pa.Table | Path) -> pa.DataType:
    engine.register("items", pa.table({"item_id": ITEMS["item_id"], "item": range(30)}))
    if isinstance(source, Path):
        return engine.scan("log", Location.of(source)).field("timestamp").type
    engine.register("log", source)
    return source.schema.field("timestamp").type


def as_rows(prepared: PreparedLog) -> list[tuple]:
    table = pa.Table.from_batches(prepared.events())
    users = np.repeat(
        prepared.users["user_id"].to_pylist(), prepared.users["events"].to_numpy()
    )
    return [
        (str(user), time, item, prepared.actions[action])
        for user, item, time, action in zip(
            users, *(column.to_pylist() for column in table.columns), strict=True
        )
    ]


def without_spark() -> str:
    if importlib.util.find_spec("pyspark") is None:
        return "pyspark is not installed"
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        return "there is no Java"
    return ""


@pytest.fixture
def duckdb(tmp_path: Path) -> Iterator[Engine]:
    pytest.importorskip("duckdb")
    (tmp_path / "duckdb").mkdir()
    engine = open_engine("duckdb", tmp_path / "duckdb", "500MB")
    yield engine
    engine.close()


@pytest.mark.parametrize("quantile", [1.0, 0.5])
def test_duckdb_equals_plain_loops(duckdb: Engine, quantile: float) -> None:
    config = replace(CONFIG, length_quantile=quantile)
    expected = naive(log(), config)
    prepared = prepare(duckdb, config, load(duckdb, log()), "log")
    assert prepared.moment == expected["moment"]
    rows = as_rows(prepared)
    assert rows == expected["events"]
    assert prepared.dropped == expected["dropped"]
    assert min(prepared.dropped.values()) > 0 or quantile == 1
    assert prepared.actions == ["buy", "click"]
    for user in prepared.users.to_pylist():
        assert user["events"] == sum(row[0] == user["user_id"] for row in rows)


@pytest.mark.parametrize("folder", ["plain", "a [star] *", "by_action"])
def test_folders_are_read_as_tables_are(
    duckdb: Engine, tmp_path: Path, folder: str
) -> None:
    """Narrower types in some files, names that look like globs, partitions."""
    whole, directory = log(), tmp_path / folder
    directory.mkdir()
    if folder == "by_action":
        pq.write_to_dataset(whole, directory, partition_cols=["action"])
    else:
        early = whole.slice(0, 300)
        place = early.column_names.index("timestamp")
        short = early["timestamp"].cast(pa.int32())
        early = early.set_column(place, "timestamp", short)
        pq.write_table(early, directory / "a.parquet")
        pq.write_table(whole.slice(300), directory / "b.parquet")
    expected = naive(whole, CONFIG)
    duckdb.register("items", pa.table({"item_id": ITEMS["item_id"], "item": range(30)}))
    duckdb.scan("log", Location.of(directory))
    prepared = prepare(duckdb, CONFIG, pa.int64(), "log")
    assert as_rows(prepared) == expected["events"]
    assert prepared.dropped == expected["dropped"]


def test_times_of_arrow_and_files(duckdb: Engine, tmp_path: Path) -> None:
    table = log()
    times = table["timestamp"].to_pylist()
    kept = table.filter(pa.array([t is not None and 0 < t < 10**10 for t in times]))
    stamps = kept["timestamp"].cast(pa.timestamp("s")).cast(pa.timestamp("us"))
    table = kept.set_column(2, "timestamp", stamps)
    pq.write_table(table, tmp_path / "log.parquet")
    kind = load(duckdb, tmp_path / "log.parquet")
    prepared = prepare(duckdb, CONFIG, kind, "log")
    assert as_rows(prepared) == naive(kept, CONFIG)["events"]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("quantile", [1.0, 0.9])
def test_events_of_one_second_keep_their_order(
    duckdb: Engine, unit: str, quantile: float
) -> None:
    config = PrepareConfig(length_quantile=quantile)
    prepared = prepare(duckdb, config, load(duckdb, stamps(unit)), "log")
    assert as_rows(prepared) == IN_ORDER
    assert prepared.dropped["repeats"] == 1


def stamps(unit: str) -> pa.Table:
    """A user's events within a second, one of them twice."""
    times = [
        "10:00:00.999999999" if unit == "ns" else "10:00:00.900",
        "10:00:00.100",
        "10:00:00.500",
        "10:00:00.100",
    ]
    column = pa.array([f"2026-01-01 {time}" for time in times])
    return pa.table(
        {
            "user_id": [1] * 4,
            "item_id": [3, 3, 1, 3],
            "timestamp": column.cast(pa.timestamp(unit)),
            "action": ["buy"] * 4,
        }
    )


IN_ORDER = [("1", 1_767_261_600, item, "buy") for item in (3, 1, 3)]


def write_partitioned(directory: Path) -> None:
    table = pa.table(
        {
            "user_id": ["000", "7", "000"],
            "item_id": [1, 1, 2],
            "timestamp": [5, 6, 7],
            "action": ["1", "1", "2"],
        }
    )
    pq.write_to_dataset(table, directory, partition_cols=["user_id", "action"])


PARTITIONED = [("000", 5, 1), ("000", 7, 2), ("7", 6, 1)]


def prepared_folder(engine: Engine, directory: Path) -> list[tuple]:
    """Prepare a log without actions; return user, time and item."""
    engine.register("items", pa.table({"item_id": range(30), "item": range(30)}))
    schema = engine.scan("log", Location.of(directory))
    assert schema.field("user_id").type == pa.string()
    assert schema.field("action").type == pa.int64()
    prepared = prepare(engine, PrepareConfig(), pa.int64(), "log")
    assert prepared.actions == [1, 2]
    table = pa.Table.from_batches(prepared.events())
    users = np.repeat(
        prepared.users["user_id"].to_pylist(), prepared.users["events"].to_numpy()
    )
    columns = [table.column(n).to_pylist() for n in ("event_time", "item")]
    return list(zip(users.tolist(), *columns, strict=True))


@pytest.mark.parametrize("name", ["log", "a 'quoted' log", "a [star] *"])
def test_text_keys_of_folders_stay_text(
    duckdb: Engine, tmp_path: Path, name: str
) -> None:
    write_partitioned(tmp_path / name)
    assert prepared_folder(duckdb, tmp_path / name) == PARTITIONED


@pytest.mark.slow
@pytest.mark.skipif(without_spark() != "", reason=without_spark() or "-")
def test_spark_reads_keys_and_full_times(tmp_path: Path) -> None:
    (tmp_path / "it's spark").mkdir()
    spark = open_engine("spark", tmp_path / "it's spark", "1GB")
    try:
        write_partitioned(tmp_path / "a 'quoted' log")
        assert prepared_folder(spark, tmp_path / "a 'quoted' log") == PARTITIONED
        prepared = prepare(spark, PrepareConfig(), load(spark, stamps("us")), "log")
        assert as_rows(prepared) == IN_ORDER
    finally:
        spark.close()


def test_a_scratch_folder_with_an_apostrophe(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    scratch = tmp_path / "it's here"
    scratch.mkdir()
    engine = open_engine("duckdb", scratch, "200 MB")
    pq.write_table(log(), scratch / "it's the log.parquet")
    prepared = prepare(
        engine, CONFIG, load(engine, scratch / "it's the log.parquet"), "log"
    )
    assert as_rows(prepared) == naive(log(), CONFIG)["events"]
    engine.close()


@pytest.mark.parametrize("memory", ["lots", "", "2 giga", "1MB", "-2GB", "2GB'; --"])
@pytest.mark.parametrize("engine", ["duckdb", "spark"])
def test_memory_is_a_size(tmp_path: Path, engine: str, memory: str) -> None:
    with pytest.raises(UserError, match=f"--memory {memory}: write a size of 50MB or"):
        open_engine(engine, tmp_path, memory)


@pytest.mark.parametrize("memory", ["2GB", "1.5GiB", "300 mb"])
def test_memory_reaches_duckdb(tmp_path: Path, memory: str) -> None:
    pytest.importorskip("duckdb")
    engine = open_engine("duckdb", tmp_path, memory)
    setting = engine.table("SELECT current_setting('memory_limit') AS size")
    engine.close()
    expected = {"2GB": "1.8 GiB", "1.5GiB": "1.5 GiB", "300 mb": "286.1 MiB"}
    assert setting["size"].to_pylist() == [expected[memory]]


TYPES = {
    "fractions as users": ({"user_id": [1.0, 2.0]}, "'user_id': ids are double; use"),
    "fractions as items": ({"item_id": [1.0, 2.0]}, "'item_id': ids are double; use"),
    "other ids than the items'": (
        {"item_id": ["6", "06"]},
        "'item_id': ids are string, but int64 in the item table; use one type",
    ),
    "words as times": (
        {"timestamp": ["2026-01-01", "noon"]},
        "'timestamp' holds 'noon'; write times as unix seconds or as ISO 8601",
    ),
    "numbers as actions": ({"action": [1, 2]}, "'action' is int64, must be string"),
    "no action": ({"action": None}, "column 'action' is missing; it has: user_id"),
}


@pytest.mark.parametrize("adapter", ["parquet", "jsonl"])
@pytest.mark.parametrize("case", TYPES)
def test_types_that_other_stages_refuse(
    tmp_path: Path, case: str, adapter: str
) -> None:
    pytest.importorskip("duckdb")
    from learn_torchrec.apps import prepare as app

    changed, message = TYPES[case]
    columns = {"user_id": [1, 2], "item_id": [1, 2], "timestamp": [5, 6]}
    columns |= {"action": ["buy"] * 2}
    columns = {n: v for n, v in (columns | changed).items() if v is not None}
    if adapter == "parquet":
        pq.write_table(pa.table({"item_id": [1, 2]}), tmp_path / "items.parquet")
        pq.write_table(pa.table(columns), tmp_path / "interactions.parquet")
    else:
        (tmp_path / "items.jsonl").write_text('{"item_id": 1}\n{"item_id": 2}\n')
        rows = (json.dumps(row) for row in pa.table(columns).to_pylist())
        (tmp_path / "interactions.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message) as caught:
        app.main(["--data", f"{adapter}:{tmp_path}", "--out", str(out)])
    assert str(caught.value).startswith(f"{tmp_path}/interactions.")
    assert not out.exists()


def test_nothing_left(duckdb: Engine) -> None:
    kind = load(duckdb, log().slice(650, 5))
    with pytest.raises(UserError, match=r"none of its 5 .* \(3 nulls, 1 bad times"):
        prepare(duckdb, CONFIG, kind, "log").events()


def test_no_user_with_enough(duckdb: Engine) -> None:
    config = replace(CONFIG, min_events=9999)
    prepared = prepare(duckdb, config, load(duckdb, log()), "log")
    with pytest.raises(UserError, match=r"no user has prepare\.min_events=9999"):
        list(prepared.events())


def test_a_column_that_cannot_be_the_action(duckdb: Engine) -> None:
    count = 32_769
    table = pa.table(
        {
            "user_id": np.arange(count),
            "item_id": np.zeros(count, np.int64),
            "timestamp": np.full(count, 100 * DAY),
            "action": [f"session {n}" for n in range(count)],
        }
    )
    kind = load(duckdb, table)
    with pytest.raises(UserError, match=r"log: column 'action' has 32,769 distinct"):
        prepare(duckdb, CONFIG, kind, "log")
    duckdb.view("fewer", "SELECT * FROM log LIMIT 32768")
    duckdb.register("log", duckdb.table("SELECT * FROM fewer"))
    assert len(prepare(duckdb, CONFIG, kind, "log").actions) == 32_768


@pytest.mark.slow
@pytest.mark.skipif(without_spark() != "", reason=without_spark() or "-")
@pytest.mark.parametrize("quantile", [1.0, 0.5])
def test_spark_equals_duckdb_row_for_row(
    duckdb: Engine, tmp_path: Path, quantile: float
) -> None:
    config = replace(CONFIG, length_quantile=quantile)
    pq.write_table(log(5000), tmp_path / "log.parquet")
    (tmp_path / "spark").mkdir()
    spark = open_engine("spark", tmp_path / "spark", "1GB")
    results = []
    for engine in (duckdb, spark):
        kind = load(engine, tmp_path / "log.parquet")
        prepared = prepare(engine, config, kind, "log")
        results.append(
            (
                as_rows(prepared),
                prepared.users.to_pylist(),
                prepared.dropped,
                prepared.moment,
            )
        )
    spark.close()
    for one, other in zip(*results, strict=True):
        assert one == other


@pytest.mark.parametrize(
    "engine",
    [
        "duckdb",
        pytest.param(
            "spark",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    without_spark() != "", reason=without_spark() or "-"
                ),
            ],
        ),
    ],
)
def test_a_later_part_may_have_other_columns_and_wider_types(
    tmp_path: Path, engine: str
) -> None:
    path = tmp_path / "log.parquet"
    path.mkdir()
    whole = {
        "user_id": [1, 2, 3, 4],
        "item_id": ["a", "b", "a", "b"],
        "timestamp": [5, 6, 7, 8],
        "action": ["buy", "view", "buy", "view"],
    }
    table = pa.table(whole)
    narrow = pa.table(
        {
            "action": table["action"].dictionary_encode(),
            "user_id": table["user_id"].cast(pa.int32()),
            "timestamp": table["timestamp"].cast(pa.int32()),
            "item_id": table["item_id"],
        }
    )
    pq.write_table(narrow.slice(0, 2), path / "part-0.parquet")
    wide = table.append_column("price", pa.array([0.5] * 4))
    pq.write_table(wide.slice(2), path / "part-1.parquet")
    (tmp_path / "scratch").mkdir()
    opened = open_engine(engine, tmp_path / "scratch", "500MB")
    try:
        schema = opened.scan("log", Location.of(path))
        assert schema.field("user_id").type == pa.int64()
        columns = ", ".join(whole)
        read = opened.table(f"SELECT {columns} FROM log ORDER BY user_id")
        assert read.to_pydict() == whole
    finally:
        opened.close()


def test_engines_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for engine, package in (("duckdb", "duckdb"), ("spark", "pyspark")):
        with pytest.raises(UserError, match=f"pip install {package}, or"):
            open_engine(engine, tmp_path, "1GB")


def content(directory: Path, ids: list[int]) -> ContentStore:
    with write_artifact(directory, kind=CONTENT, config={}, inputs={}) as working:
        write_content_store(working, pa.array(ids), np.ones((len(ids), 2)))
    return ContentStore.open(directory)


def test_a_prepared_data_set_serves_the_towers(duckdb: Engine, tmp_path: Path) -> None:
    prepared = prepare(duckdb, CONFIG, load(duckdb, log()), "log")
    facts: dict[str, object] = {}
    out = tmp_path / "prepared"
    with write_artifact(out, kind=KIND, config={}, inputs={}, facts=facts) as working:
        facts.update(write_prepared(working, prepared, ITEMS))
    expected = naive(log(), CONFIG)["events"]
    counts = np.load(out / "item_events.npy")
    in_order = [event[2] for event in expected]
    assert counts.tolist() == [in_order.count(item) for item in range(30)]
    assert facts["items_with_events"] == len({event[2] for event in expected})
    dataset = open_dataset(f"prepared:{out}")
    whole = dataset.sequences(content(tmp_path / "same", range(30)), ["buy", "click"])
    assert isinstance(whole.items.base, np.memmap)
    assert isinstance(whole.times.base, np.memmap)
    assert isinstance(whole.actions.base, np.memmap)
    names = [whole.action_names[code] for code in whole.actions]
    assert names == [event[3] for event in expected]
    assert whole.items.tolist() == [event[2] for event in expected]
    assert whole.times.tolist() == [event[1] for event in expected]
    assert whole.user_ids.to_pylist() == sorted({event[0] for event in expected})
    # A store in another order, and one action only.
    other = content(tmp_path / "other", range(29, -1, -1))
    split = SplitConfig(towers_until=str(facts["moment"]), actions=("buy",))
    histories = load_histories(dataset, other, split)
    assert histories.times.towers_until == facts["moment"]
    buys = [event for event in expected if event[3] == "buy"]
    assert histories.sequences.items.tolist() == [29 - event[2] for event in buys]
    assert len(histories.sequences) == len({event[0] for event in buys})
    assert (histories.sequences.lengths > 0).all()
    again = [
        (row["user_id"], row["timestamp"], row["item_id"], row["action"])
        for row in dataset.interactions.to_pylist()
    ]
    assert again == expected
    with pytest.raises(UserError, match="of items without a content vector in"):
        dataset.sequences(content(tmp_path / "less", range(5)), ["buy"])
    with pytest.raises(UserError, match=r"has no impressions to rank; the stages"):
        _ = dataset.impressions
    assert json.loads((out / "manifest.json").read_text())["facts"]["dropped"]["nulls"]


def test_the_app(market: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    from learn_torchrec.apps import prepare as app

    out = tmp_path / "results" / "prepared"
    options = ["--data", f"parquet:{market}", "--out", str(out), "--memory", "500MB"]
    app.main([*options, "--set", "prepare.target_days=10"])
    assert [path.name for path in out.parent.iterdir()] == ["prepared"]
    dataset = open_dataset(f"prepared:{out}")
    raw = open_dataset(f"parquet:{market}").interactions
    assert dataset.interactions.num_rows + dataset.manifest.facts["dropped"][
        "repeats"
    ] == (raw.num_rows)
    with pytest.raises(UserError, match="--memory lots"):
        app.main(
            ["--data", f"parquet:{market}", "--out", f"{out}2", "--memory", "lots"]
        )


def test_two_runs_do_not_meet(market: Path, tmp_path: Path) -> None:
    from learn_torchrec.apps import prepare as app

    out = tmp_path / "results" / "prepared"
    with locked(out):
        theirs = out.parent / ".prepared.0123abcd.tmp"
        theirs.mkdir()
        with pytest.raises(UserError, match="prepared: another run is making it"):
            app.main(["--data", f"parquet:{market}", "--out", str(out)])
        assert theirs.is_dir()


def test_what_a_killed_run_leaves_is_removed(market: Path, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    from learn_torchrec.apps import prepare as app

    out = tmp_path / "results" / "prepared"
    options = ["--data", f"parquet:{market}", "--out", str(out)]

    def killed_in_the_middle() -> None:
        app.write_prepared = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        app.main(options)

    child = multiprocessing.get_context("fork").Process(target=killed_in_the_middle)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert list(out.parent.rglob("prepare.duckdb"))
    app.main(options)
    assert [path.name for path in out.parent.iterdir()] == ["prepared"]


@pytest.mark.parametrize("step", ["open_engine", "prepare", "write_prepared"])
def test_a_full_disk_leaves_nothing(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A limit on file size, from some step on, simulates a full disk."""
    pytest.importorskip("duckdb")
    from learn_torchrec.apps import prepare as app

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = getattr(app, step)

    def on_a_full_disk(*args: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        return original(*args)

    out = tmp_path / "results" / "prepared"
    options = ["--data", f"parquet:{market}", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(app, step, on_a_full_disk)
        try:
            with pytest.raises((UserError, OSError), match="File too large") as caught:
                app.main(options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert not list(out.parent.iterdir())
    app.main(options)
    assert [path.name for path in out.parent.iterdir()] == ["prepared"]


def test_a_failed_task_of_spark_is_one_line():
    pytest.importorskip("pyspark")
    failed = type("Py4JJavaError", (Exception,), {"__module__": "py4j.protocol"})
    spark = object.__new__(Spark)
    text = "An error occurred while calling o7.sql.\n: java.io.IOException: disk full\n"
    with (
        pytest.raises(UserError, match=r"^spark: java\.io\.IOException: disk full$"),
        spark._one_line(),
    ):
        raise failed(text)
    with pytest.raises(ZeroDivisionError), spark._one_line():
        1 / 0  # noqa: B018
