"""Text files as Windows, Excel, editors and databases save them, in every reader."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.sequences import build_sequences
from learn_torchrec.errors import UserError

LOG = "user_id,item_id,timestamp,action"

# The files of a data set of one item "a" with the title "Müsli" for each reader.
READERS: dict[str, dict[str, str]] = {
    "csv": {
        "items.csv": "item_id,title\na,Müsli\n",
        "interactions.csv": f"{LOG}\nu,a,5,buy\n",
    },
    "csv with JSON lines": {
        "items.jsonl": '{"item_id": "a", "title": "Müsli"}\n',
        "interactions.csv": f"{LOG}\nu,a,5,buy\n",
    },
    "jsonl": {
        "items.jsonl": '{"item_id": "a", "title": "Müsli"}\n',
        "interactions.jsonl": json.dumps(
            {"user_id": "u", "item_id": "a", "timestamp": 5, "action": "buy"}
        ),
    },
    "sequences": {
        "items.jsonl": '{"item_id": "a", "title": "Müsli"}\n',
        "sequences.txt": "u a\n",
    },
    "recbole": {
        "x.item": "item_id:token\ttitle:token\na\tMüsli\n",
        "x.inter": "user_id:token\titem_id:token\nu\ta\n",
    },
    "amazon": {
        "meta_x.json": '{"asin": "a", "title": "Müsli"}\n',
        "x.json": '{"reviewerID": "u", "asin": "a", "overall": 5, '
        '"unixReviewTime": 5}\n',
    },
    "lcrec": {
        "x.item.json": '{"a": {"title": "Müsli"}}',
        "x.inter.json": '{"u": ["a"]}',
    },
    "movielens": {
        "movies.csv": "movieId,title,genres\n7,Müsli,Drama\n",
        "ratings.csv": "userId,movieId,rating,timestamp\n1,7,5,100\n",
    },
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("reader", READERS)
def test_marks_and_line_ends(tmp_path: Path, reader: str, end: str, mark: str) -> None:
    for name, text in READERS[reader].items():
        body = (mark + text.replace("\n", end)).encode()
        (tmp_path / name).write_bytes(body)
    adapter = reader.partition(" ")[0]
    options = "#items=items.jsonl" if reader == "csv with JSON lines" else ""
    dataset = open_dataset(f"{adapter}:{tmp_path}{options}")
    ids = (7, 1) if adapter == "movielens" else ("a", "u")
    (item,) = dataset.items.to_pylist()
    assert (item["item_id"], item["title"]) == (ids[0], "Müsli")
    (event,) = dataset.interactions.to_pylist()
    assert (event["item_id"], event["user_id"]) == ids


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_movielens_separated_by_two_colons(
    tmp_path: Path, ends: str, mark: str
) -> None:
    for name, text in {
        "movies.dat": "7::Heat (1995)::Drama\n",
        "ratings.dat": "1::7::5::100\n",
    }.items():
        (tmp_path / name).write_bytes((mark + text.replace("\n", ends)).encode())
    dataset = open_dataset(f"movielens:{tmp_path}")
    assert dataset.items["category"].to_pylist() == ["Drama"]
    assert dataset.interactions["user_id"].to_pylist() == [1]


def csv(directory: Path, **tables: str) -> str:
    for name, text in tables.items():
        (directory / f"{name}.csv").write_text(text)
    return f"csv:{directory}"


def test_line_breaks_within_quotes(tmp_path: Path) -> None:
    """A catalogue larger than a block of the reader."""
    count, line = 250_000, "made by hand in a small pottery and safe in a dishwasher"
    rows = (f'A{n},"Mug {n}\n{line}, line {n}"\n' for n in range(count))
    spec = csv(tmp_path, items="item_id,title\n" + "".join(rows))
    assert (tmp_path / "items.csv").stat().st_size > 1 << 24
    items = open_dataset(spec).items
    assert items["item_id"].to_pylist() == [f"A{n}" for n in range(count)]
    assert items["title"][7].as_py() == f"Mug 7\n{line}, line 7"


@pytest.mark.parametrize(
    ("users", "items", "catalogue", "expected"),
    [
        (["7", "007"], ["1", "2"], ["1", "2"], (["7", "007"], [1, 2])),
        (["7", "8"], ["00012", "00007"], ["00007", "00012"], ([7, 8], None)),
        # The log happens to hold digits only; the catalogue does not.
        (["7", "8"], ["439", "439"], ["439", "B00X"], ([7, 8], None)),
        (["-7", "0"], ["439", "1"], ["439", "1"], ([-7, 0], [439, 1])),
        (["+7", "1e3"], ["-0", "1"], ["-0", "1"], (None, None)),
        # One digit too many for int64, and the largest int64.
        (
            ["9" * 19, "1"],
            [f"{2**63 - 1}", "1"],
            [f"{2**63 - 1}", "1"],
            (None, [2**63 - 1, 1]),
        ),
    ],
)
def test_ids_are_as_they_are_written(
    tmp_path: Path,
    users: list[str],
    items: list[str],
    catalogue: list[str],
    expected: tuple[list | None, list | None],
) -> None:
    log = zip(users, items, strict=True)
    spec = csv(
        tmp_path,
        items="item_id,title\n" + "".join(f"{item},x\n" for item in catalogue),
        interactions=f"{LOG}\n" + "".join(f"{u},{i},5,buy\n" for u, i in log),
    )
    found = open_dataset(spec).interactions.to_pydict()
    assert found["user_id"] == (expected[0] or users)
    assert found["item_id"] == (expected[1] or items)


def test_ids_of_the_parts_of_a_folder(tmp_path: Path) -> None:
    """Digits in one part, letters in another, in impressions digits again."""
    (tmp_path / "interactions.csv").mkdir()
    csv(tmp_path, items="item_id\n1\n", impressions=f"{LOG},label\n7,1,5,x,1\n")
    csv(
        tmp_path / "interactions.csv",
        part_0=f"{LOG}\n7,1,5,buy\n",
        part_1=f"{LOG}\nu8,1,6,buy\n",
    )
    dataset = open_dataset(f"csv:{tmp_path}")
    assert dataset.interactions["user_id"].to_pylist() == ["7", "u8"]
    assert dataset.impressions["user_id"].to_pylist() == ["7"]
    assert dataset.interactions["item_id"].to_pylist() == [1, 1]


@pytest.mark.parametrize("id_", [1, "1"])
def test_ids_of_json_lines_beside_csv(tmp_path: Path, id_: int | str) -> None:
    """JSON distinguishes integers from strings; CSV follows it."""
    (tmp_path / "items.jsonl").write_text(json.dumps({"item_id": id_}))
    csv(tmp_path, interactions=f"{LOG}\n7,1,5,buy\n")
    dataset = open_dataset(f"csv:{tmp_path}#items=items.jsonl")
    assert dataset.items["item_id"].to_pylist() == [id_]
    assert dataset.interactions["item_id"].to_pylist() == [id_]
    assert dataset.interactions["user_id"].to_pylist() == [7]


def test_json_integers_beside_a_log_of_letters(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"item_id": 1}')
    csv(tmp_path, interactions=f"{LOG}\nu,B00X,5,buy\n")
    dataset = open_dataset(f"csv:{tmp_path}#items=items.jsonl")
    assert dataset.items["item_id"].to_pylist() == ["1"]
    with pytest.raises(UserError, match=r"1 of 1 events are of items that .*: 'B00X'"):
        _ = dataset.interactions


@pytest.mark.parametrize("ids", ["7,a\n,a\n", "7,a\nNULL,a\n", "x,a\n,a\n"])
def test_missing_ids_are_null(tmp_path: Path, ids: str) -> None:
    log = ids.replace(",a", ",a,5,buy")
    spec = csv(tmp_path, items="item_id\na\n", interactions=f"{LOG}\n{log}")
    with pytest.raises(UserError, match=r"1 of 2 rows have no user_id, .* row 1"):
        _ = open_dataset(spec, strict=True).interactions
    assert open_dataset(spec).interactions.num_rows == 1


def test_texts_and_actions_of_digits_stay_texts(tmp_path: Path) -> None:
    spec = csv(
        tmp_path,
        items="item_id,title,brand,price\n1,007,4711,4.5\n",
        interactions=f"{LOG}\n1,1,5,01\n",
    )
    dataset = open_dataset(spec)
    assert dataset.items.to_pylist() == [
        {"item_id": 1, "title": "007", "brand": "4711", "price": 4.5}
    ]
    assert dataset.interactions["action"].to_pylist() == ["01"]


def test_other_encodings(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16", "cp1250"):
        (tmp_path / "items.csv").write_text("item_id,title\n1,Käse\n", encoding)
        spec = f"csv:{tmp_path}#encoding={encoding}"
        assert open_dataset(spec).items["title"].to_pylist() == ["Käse"]
        (tmp_path / "items.json").write_text(
            '{"item_id": 1, "title": "Käse"}', encoding
        )
        spec += ",items=items.json"
        assert open_dataset(spec).items["title"].to_pylist() == ["Käse"]
    (tmp_path / "items.csv").write_text("item_id,title\n1,Käse\n", "latin-1")
    with pytest.raises(
        UserError, match=r"items\.csv: cannot be read as CSV .*encoding"
    ):
        _ = open_dataset(f"csv:{tmp_path}").items
    with pytest.raises(UserError, match="encoding=klingon is unknown; write e"):
        open_dataset(f"csv:{tmp_path}#encoding=klingon")


@pytest.mark.parametrize("delimiter", ['"', "§", "tabs", "|x"])
def test_bad_delimiters_are_refused(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(UserError, match="must be ASCII signs but quotes") as caught:
        open_dataset(f"csv:{tmp_path}#delimiter={delimiter}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "delimiter"), [("tab", "\t"), ("|", "|")])
def test_delimiters(tmp_path: Path, name: str, delimiter: str) -> None:
    spec = csv(tmp_path, items=f"item_id{delimiter}brand\n1{delimiter}X\n")
    assert open_dataset(f"{spec}#delimiter={name}").items.to_pylist() == [
        {"item_id": 1, "brand": "X"}
    ]


def test_columns_by_file(tmp_path: Path) -> None:
    spec = csv(
        tmp_path,
        items="id,title\n1,mug\n",
        interactions="uid,product_id,timestamp,action\n7,1,5,buy\n",
        impressions="uid,item_id,timestamp,label\n7,1,5,1\n",
    )
    spec += "#items.item_id=id,interactions.item_id=product_id,user_id=uid"
    dataset = open_dataset(spec)
    assert dataset.items.to_pylist() == [{"item_id": 1, "title": "mug"}]
    assert dataset.interactions["item_id"].to_pylist() == [1]
    assert dataset.impressions["user_id"].to_pylist() == [7]
    other = open_dataset(spec.replace("items.item_id=id,", ""))
    name = "items.parquet"
    assert other.fingerprint(name) != dataset.fingerprint(name)
    with pytest.raises(UserError, match=r"unknown name 'item\.item_id'"):
        open_dataset(spec.replace("items.item_id", "item.item_id"))
    wrong = spec.replace("=product_id", "=sku")
    with pytest.raises(
        UserError, match=r"interactions\.csv: column 'sku', which item_id"
    ):
        _ = open_dataset(wrong).interactions
    with pytest.raises(UserError, match=r"items\.csv: column 'x', which brand=x names"):
        _ = open_dataset(f"{spec},items.brand=x").items
    assert open_dataset(f"{spec},brand=x").items.num_rows == 1  # of whichever has it


def test_json_items_beside_parquet(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"item_id": "7"}')
    log = {"user_id": [1], "item_id": ["7"], "timestamp": [5], "action": ["buy"]}
    pq.write_table(pa.table(log), tmp_path / "interactions.parquet")
    dataset = open_dataset(f"parquet:{tmp_path}#items=items.jsonl")
    assert dataset.interactions.num_rows == dataset.items.num_rows == 1


def test_entities_in_item_texts_are_unescaped(tmp_path: Path) -> None:
    title, clean = "Salt &amp; Pepper &#8482;", "Salt & Pepper ™"
    item = {"item_id": "&amp;", "title": title, "tags": ["a &lt; b", None], "n": 1}
    pq.write_table(pa.Table.from_pylist([item]), tmp_path / "items.parquet")
    expected = {"item_id": "&amp;", "title": clean, "tags": ["a < b", None], "n": 1}
    assert open_dataset(f"parquet:{tmp_path}").items.to_pylist() == [expected]
    (tmp_path / "items.jsonl").write_text(json.dumps(item))
    assert open_dataset(f"jsonl:{tmp_path}").items.to_pylist() == [expected]
    spec = csv(tmp_path, items=f'item_id,title\n&amp;,"{title}"\n')
    assert open_dataset(spec).items.to_pylist() == [
        {"item_id": "&amp;", "title": clean}
    ]
    coded = pa.table({"item_id": [1, 2], "title": [title, None]})
    coded = coded.set_column(1, "title", coded["title"].dictionary_encode())
    pq.write_table(coded, tmp_path / "items.parquet")
    titles = open_dataset(f"parquet:{tmp_path}").items["title"]
    assert titles.to_pylist() == [clean, None]


def test_what_only_looks_like_an_entity_stays(tmp_path: Path) -> None:
    titles = ["AT&T  R&D", "x?a=1&copy=2", "&nosuch;", "&nbsp;", "a &amp;amp; b"]
    table = pa.table({"item_id": range(5), "title": titles})
    pq.write_table(table, tmp_path / "items.parquet")
    found = open_dataset(f"parquet:{tmp_path}").items["title"].to_pylist()
    assert found == [*titles[:3], None, "a & b"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_in_our_schema(tmp_path: Path, suffix: str) -> None:
    rows = {
        "items": [{"item_id": 7, "title": "mug"}, {"item_id": 8, "brand": "Acme"}],
        "interactions": [
            {"user_id": "7", "item_id": 7, "timestamp": 5, "action": "buy"},
            {"user_id": "007", "item_id": 8, "timestamp": 6, "action": "buy"},
        ],
        "impressions": [
            {"user_id": "7", "item_id": 8, "timestamp": 9, "label": 1, "hour": 3.5},
            {"user_id": "7", "item_id": 7, "timestamp": 9, "label": 0},
        ],
    }
    for name, lines in rows.items():
        body = "".join(json.dumps(line) + "\n" for line in lines).encode()
        body = gzip.compress(body) if suffix else body
        (tmp_path / f"{name}.jsonl{suffix}").write_bytes(body)
    dataset = open_dataset(f"jsonl:{tmp_path}")
    assert dataset.interactions.to_pylist() == rows["interactions"]
    assert dataset.items.to_pylist() == [
        {"item_id": 7, "title": "mug", "brand": None},
        {"item_id": 8, "title": None, "brand": "Acme"},
    ]
    assert dataset.impressions["hour"].to_pylist() == [3.5, None]
    before = dataset.fingerprint("impressions.parquet")
    (tmp_path / f"impressions.jsonl{suffix}").write_bytes(b"")
    assert dataset.fingerprint("impressions.parquet") != before
    (tmp_path / f"impressions.jsonl{suffix}").unlink()
    with pytest.raises(UserError, match="has no impressions to rank; the stages"):
        _ = open_dataset(f"jsonl:{tmp_path}").impressions


def test_columns_that_begin_late_or_widen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects are read a chunk at a time; three chunks are one table."""
    monkeypatch.setattr("learn_torchrec.datasets.adapters.item_texts._CHUNK", 2)
    lines = [{"item_id": 1, "n": 1}, {"item_id": 2}, {"item_id": 3}, {"item_id": 4}]
    lines.append({"item_id": 5, "n": 2.5, "late": "x"})
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    items = open_dataset(f"jsonl:{tmp_path}").items
    assert items["n"].to_pylist() == [1, None, None, None, 2.5]
    assert items["late"].to_pylist() == [None] * 4 + ["x"]
    path.write_text("\n".join(map(json.dumps, [*lines, {"item_id": "6"}])))
    with pytest.raises(
        UserError, match="column 'item_id' holds values of several types"
    ):
        _ = open_dataset(f"jsonl:{tmp_path}").items


def order_of(spec: str) -> list[list[int]]:
    """Return every user's rows of the log, in the order of their sequence."""
    log = open_dataset(spec).interactions
    sequences = build_sequences(log, pa.array(range(log.num_rows)).to_numpy(), ["buy"])
    return [sequences.of(user).tolist() for user in range(len(sequences))]


TIMES = ("10:00:00.900", "10:00:00.100", "09:59:59.999", "10:00:00.100")
ORDERED = [[2, 1, 3, 0]]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_events_of_one_second_keep_their_order(tmp_path: Path, unit: str) -> None:
    stamps = [f"2026-01-01 {time}" for time in TIMES]
    times = pa.array(stamps).cast(pa.timestamp(unit))
    log = {"user_id": [1] * 4, "item_id": [1] * 4, "action": ["buy"] * 4}
    pq.write_table(pa.table({"item_id": [1]}), tmp_path / "items.parquet")
    pq.write_table(
        pa.table({**log, "timestamp": times}), tmp_path / "interactions.parquet"
    )
    dataset = open_dataset(f"parquet:{tmp_path}")
    ten = 1_767_261_600
    assert dataset.interactions["timestamp"].to_pylist() == [ten, ten, ten - 1, ten]
    assert order_of(f"parquet:{tmp_path}") == ORDERED
    # As integers of that unit, under a column map, and as text in CSV.
    table = pa.table({**log, "timestamp": times.cast(pa.int64())})
    pq.write_table(table, tmp_path / "numbers.parquet")
    options = f"interactions=numbers.parquet,time_unit={unit}"
    assert order_of(f"parquet:{tmp_path}#{options}") == ORDERED
    rows = "".join(f"1,1,{stamp},buy\n" for stamp in stamps)
    spec = csv(tmp_path, items="item_id\n1\n", interactions=f"{LOG}\n{rows}")
    assert order_of(spec) == ORDERED


def test_recbole_times_are_fractions(tmp_path: Path) -> None:
    head = "user_id:token\titem_id:token\ttimestamp:float"
    rows = [f"u\ti\t{t}" for t in (1.6e9 + 0.9, 1.6e9 + 0.1, 1.6e9 - 0.5, 1.6e9 + 0.1)]
    (tmp_path / "x.inter").write_text("\n".join([head, *rows]))
    (tmp_path / "x.item").write_text("item_id:token\ni\n")
    log = open_dataset(f"recbole:{tmp_path}").interactions
    seconds = [1_600_000_000] * 4
    seconds[2] -= 1
    assert log["timestamp"].to_pylist() == seconds
    sequences = build_sequences(log, pa.array(range(4)).to_numpy(), ["interaction"])
    assert sequences.items.tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["000", "7"], ["000", "7"]),
        (["10", "7"], [10, 7]),
        (["-1", "0"], [-1, 0]),
        (["a b", "7"], ["a b", "7"]),
        ([None, "7"], None),
    ],
)
def test_text_keys_of_partitioned_folders_stay_text(
    tmp_path: Path, values: list[str | None], expected: list | None
) -> None:
    pq.write_table(pa.table({"item_id": [1]}), tmp_path / "items.parquet")
    log = pa.table(
        {
            "user_id": pa.array(values, pa.string()),
            "item_id": [1, 1],
            "timestamp": [5, 6],
            "action": ["buy"] * 2,
        }
    )
    where = tmp_path / "interactions.parquet"
    pq.write_to_dataset(log, where, partition_cols=["user_id"])
    if expected is None:
        with pytest.raises(UserError, match="1 of 2 rows have no user_id"):
            _ = open_dataset(f"parquet:{tmp_path}", strict=True).interactions
        return
    rows = open_dataset(f"parquet:{tmp_path}").interactions.to_pylist()
    by_time = sorted(rows, key=lambda row: row["timestamp"])
    assert [row["user_id"] for row in by_time] == expected


def test_days_are_times(tmp_path: Path) -> None:
    log = f"{LOG}\n1,1,2020-01-02,buy\n"
    spec = csv(tmp_path, items="item_id\n1\n", interactions=log)
    assert open_dataset(spec).times.tolist() == [1_577_836_800 + 86_400]
