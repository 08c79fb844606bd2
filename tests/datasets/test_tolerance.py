"""Rows that cannot be used are left out, counted and named; `--strict` refuses them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import prepare
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.datasets import open_dataset
from learn_torchrec.errors import UserError
from learn_torchrec.publish import write_artifact

Rows = list[dict[str, Any]]

ITEMS: Rows = [{"item_id": name, "title": name.upper()} for name in "abc"]
EVENTS: Rows = [
    {"user_id": user, "item_id": item, "timestamp": time, "action": "buy"}
    for user, item, time in (
        *(("u", "a", 1), ("u", "b", 2), ("v", "c", 3), ("v", "a", 4)),
        *(("u", "c", 5), ("v", "b", 6), ("w", "a", 7)),
    )
]


def write_parquet(directory: Path, name: str, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), directory / f"{name}.parquet")


def write_parts(directory: Path, name: str, rows: Rows) -> None:
    """The later part has one more column, narrower times and encoded texts."""
    table = pa.Table.from_pylist(rows)
    (directory / f"{name}.parquet").mkdir()
    later = table.slice(3)
    place = later.column_names.index("item_id")
    encoded = later["item_id"].dictionary_encode()
    later = later.set_column(place, "item_id", encoded)
    if "timestamp" in table.column_names:
        place = later.column_names.index("timestamp")
        times = later["timestamp"].cast(pa.int32())
        later = later.set_column(place, "timestamp", times)
        later = later.append_column("more", pa.array([1.5] * later.num_rows))
    pq.write_table(table.slice(0, 3), directory / f"{name}.parquet" / "part-0.parquet")
    if later.num_rows:
        pq.write_table(later, directory / f"{name}.parquet" / "part-1.parquet")


def write_csv(directory: Path, name: str, rows: Rows) -> None:
    lines = [",".join(rows[0])]
    lines += [",".join("" if v is None else str(v) for v in r.values()) for r in rows]
    (directory / f"{name}.csv").write_text("\n".join(lines) + "\n")


def write_jsonl(directory: Path, name: str, rows: Rows) -> None:
    lines = [json.dumps(row) + "\n" for row in rows]
    (directory / f"{name}.jsonl").write_text("".join(lines))


FORMATS: dict[str, tuple[str, str, Callable[[Path, str, Rows], None]]] = {
    "parquet": ("parquet:{}", ".parquet", write_parquet),
    "parts": ("parquet:{}", ".parquet", write_parts),
    "mapped": ("parquet:{}#action=action", ".parquet", write_parquet),
    "csv": ("csv:{}", ".csv", write_csv),
    "jsonl": ("jsonl:{}", ".jsonl", write_jsonl),
}


def at(rows: Rows, row: int, name: str, value: Any) -> Rows:
    return [{**r, name: value} if n == row else r for n, r in enumerate(rows)]


FAULTS: dict[str, tuple[Rows, Rows, list[int], str]] = {
    "no user": (
        ITEMS,
        at(EVENTS, 3, "user_id", None),
        [3],
        "{events}: 1 of 7 rows have no user_id, the first is row 3",
    ),
    "no item": (
        ITEMS,
        at(at(EVENTS, 5, "item_id", None), 2, "item_id", None),
        [2, 5],
        "{events}: 2 of 7 rows have no item_id, the first is row 2",
    ),
    "no time": (
        ITEMS,
        at(EVENTS, 1, "timestamp", None),
        [1],
        "{events}: 1 of 7 rows have no timestamp, the first is row 1",
    ),
    "unknown items": (
        ITEMS,
        at(at(EVENTS, 6, "item_id", "x"), 4, "item_id", "y"),
        [4, 6],
        "{events}: 2 of 7 events are of items that {items} lacks: 'y', 'x'",
    ),
    "an item without id": (
        [*ITEMS, {"item_id": None, "title": "D"}],
        EVENTS,
        [],
        "{items}: 1 of 4 rows have no item_id, the first is row 3",
    ),
    "an item twice": (
        [*ITEMS, ITEMS[1], {"item_id": "a", "title": "newer"}],
        EVENTS,
        [],
        "{items}: 2 of 5 rows repeat the item_id of an earlier row, 1 of them with "
        "other values: 'b', 'a'",
    ),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_adapter_leaves_out_the_same(
    tmp_path: Path, form: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec, suffix, write = FORMATS[form]
    items, events, lost, sentence = FAULTS[fault]
    write(tmp_path, "items", items)
    write(tmp_path, "interactions", events)
    spec = spec.format(tmp_path)
    names = {
        "events": tmp_path / f"interactions{suffix}",
        "items": tmp_path / f"items{suffix}",
    }
    said = sentence.format(**names)

    dataset = open_dataset(spec)
    columns = ["user_id", "item_id", "timestamp", "action"]
    kept = [event for row, event in enumerate(EVENTS) if row not in lost]
    assert dataset.interactions.select(columns).to_pylist() == kept
    assert dataset.items.select(["item_id", "title"]).to_pylist() == ITEMS
    assert dataset.tolerance.sentences == [said]
    assert caplog.messages.count(f"{said}; left out") == 1
    # A share of the log is the same moment, whatever a stage has read before.
    times = [e["timestamp"] for e in events if e["timestamp"] is not None]
    assert dataset.times.tolist() == open_dataset(spec).times.tolist() == times

    strict = open_dataset(spec, strict=True)
    with pytest.raises(UserError) as caught:
        _ = strict.items, strict.interactions
    assert str(caught.value).startswith(f"{said}; correct them")


@pytest.mark.parametrize("form", FORMATS)
def test_most_rows_are_not_left_out(tmp_path: Path, form: str) -> None:
    """As when ids are written in another way in each file."""
    spec, _, write = FORMATS[form]
    write(tmp_path, "items", ITEMS)
    others = [{**e, "item_id": f"sku-{e['item_id']}"} for e in EVENTS[:4]]
    write(tmp_path, "interactions", [*others, *EVENTS[4:]])
    message = r"4 of 7 events .*: 'sku-a', 'sku-b', 'sku-c'; too many to leave out: add"
    with pytest.raises(UserError, match=message):
        _ = open_dataset(spec.format(tmp_path)).interactions


def test_most_users_may_be_unknown_but_not_all(tmp_path: Path) -> None:
    """As in a log of anonymous visitors, and as in one whose column is another."""
    write_parquet(tmp_path, "items", ITEMS)
    events = [e if n == 6 else {**e, "user_id": None} for n, e in enumerate(EVENTS)]
    write_parquet(tmp_path, "interactions", events)
    assert open_dataset(f"parquet:{tmp_path}").interactions.num_rows == 1
    nobody = at(events, 6, "user_id", None)
    write_parquet(tmp_path, "interactions", nobody)
    with pytest.raises(UserError, match=r"7 of 7 rows have no user_id.*; too many to"):
        _ = open_dataset(f"parquet:{tmp_path}").interactions


def test_half_of_the_rows_may_be_left_out_and_many_ids_are_counted(
    tmp_path: Path,
) -> None:
    write_parquet(tmp_path, "items", ITEMS)
    unknown = [{**EVENTS[0], "item_id": f"x{n}"} for n in range(7)]
    write_parquet(tmp_path, "interactions", [*unknown, *EVENTS])
    dataset = open_dataset(f"parquet:{tmp_path}")
    assert dataset.interactions.num_rows == 7
    (sentence,) = dataset.tolerance.sentences
    assert sentence.endswith("lacks: 'x0', 'x1', 'x2' and 4 more")


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_prepare_leaves_out_the_same(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the engine scans the files or gets the table."""
    pytest.importorskip("duckdb")
    spec, suffix, write = FORMATS[form]
    write(tmp_path, "items", ITEMS)
    events = at(at(EVENTS, 6, "item_id", "x"), 4, "item_id", "y")
    write(tmp_path, "interactions", at(events, 0, "user_id", None))
    options = ["--data", spec.format(tmp_path), "--memory", "300MB", "--out"]
    name = tmp_path / f"interactions{suffix}"
    said = [
        f"{name}: 1 of 7 rows have no user, item, time or action; left out",
        f"{name}: 2 of 7 events are of items that {tmp_path}/items{suffix} lacks: 'x', "
        "'y'; left out",
    ]
    prepare.main([*options, str(tmp_path / "out")])
    assert [message for message in caplog.messages if "left out" in message] == said
    table = open_dataset(f"prepared:{tmp_path / 'out'}").interactions
    assert sorted(table["timestamp"].to_pylist()) == [2, 3, 4, 6]
    with pytest.raises(UserError, match="1 of 7 rows have no user, item, time or"):
        prepare.main([*options, str(tmp_path / "strict"), "--strict"])
    assert not (tmp_path / "strict").exists()
    # Another store order, and an item without content: `b`, of one event that is left.
    with write_artifact(tmp_path / "c", kind=KIND, config={}, inputs={}) as working:
        write_content_store(working, pa.array(["c", "a"]), np.ones((2, 2)))
    store = ContentStore.open(tmp_path / "c")
    for data in (f"prepared:{tmp_path / 'out'}", spec.format(tmp_path)):
        dataset = open_dataset(data)
        sequences = dataset.sequences(store, ["buy"])
        assert sequences.user_ids.to_pylist() == ["v"]
        assert (sequences.items.tolist(), sequences.times.tolist()) == ([0, 1], [3, 4])
        assert (
            "2 of 4 events are of items without a content vector"
            in (dataset.tolerance.sentences[-1])
        )


def test_atomic_files_and_sequences_leave_out_the_same(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\ttimestamp:float"
    lines = [header, "u\ta\t1", "\tb\t2", "u\tx\t3", "v\t\t4", "v\tb\t5", "v\ta\t6"]
    (tmp_path / "x.inter").write_text("\n".join(lines))
    (tmp_path / "x.item").write_text("item_id:token\tname:token_seq\na\tA\nb\tB\n\tC")
    dataset = open_dataset(f"recbole:{tmp_path}")
    assert dataset.interactions["timestamp"].to_pylist() == [1, 5, 6]
    assert dataset.tolerance.sentences == [
        f"{tmp_path}/x.inter: 1 of 6 rows have no user_id, the first is row 1",
        f"{tmp_path}/x.inter: 1 of 6 rows have no item_id, the first is row 3",
        f"{tmp_path}/x.item: 1 of 3 rows have no item_id, the first is row 2",
        f"{tmp_path}/x.inter: 1 of 4 events are of items that {tmp_path}/x.item lacks: "
        "'x'",
    ]
    (tmp_path / "sequences.txt").write_text("u a x b\nv b\n")
    write_jsonl(tmp_path, "items", ITEMS)
    dataset = open_dataset(f"sequences:{tmp_path}")
    assert dataset.interactions["item_id"].to_pylist() == ["a", "b", "b"]
    (sentence,) = dataset.tolerance.sentences
    assert sentence.endswith(
        f"1 of 4 events are of items that {tmp_path}/items.jsonl lacks: 'x'"
    )


def test_who_has_impressions(tmp_path: Path) -> None:
    """Answered without reading a table: the files hold no data."""
    for name in ("items.csv", "interactions.csv", "items.jsonl", "interactions.jsonl"):
        (tmp_path / name).touch()
    specs = [f"{one}:{tmp_path}" for one in ("parquet", "csv", "jsonl")]
    specs.append(f"parquet:{tmp_path}#timestamp=time")
    assert not any(open_dataset(spec).has_impressions for spec in specs)
    for suffix in ("parquet", "csv", "jsonl"):
        (tmp_path / f"impressions.{suffix}").touch()
    assert all(open_dataset(spec).has_impressions for spec in specs)
    assert open_dataset("market:users=3").has_impressions
    for adapter in ("amazon", "lcrec", "online-retail", "recformer", "sequences"):
        assert not open_dataset(f"{adapter}:{tmp_path}").has_impressions
    for field, expected in (("label", True), ("rating", True), ("timestamp", False)):
        header = f"user_id:token\titem_id:token\t{field}:float\n"
        (tmp_path / "x.inter").write_text(header)
        assert open_dataset(f"recbole:{tmp_path}").has_impressions is expected
