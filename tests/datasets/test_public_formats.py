"""Adapters of public data: a known answer for the form of each release."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.datasets import open_dataset
from learn_torchrec.errors import UserError


def write(path: Path, *rows: object, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    body = "".join(f"{line}\n" for line in lines).encode(encoding)
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)


def events(spec: str) -> list[tuple]:
    return [tuple(row.values()) for row in open_dataset(spec).interactions.to_pylist()]


def items(spec: str) -> list[dict]:
    rows = open_dataset(spec).items.to_pylist()
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def test_amazon_2014(tmp_path: Path) -> None:
    review = {"reviewerID": "A", "asin": "B1", "overall": 5.0, "unixReviewTime": 100}
    write(
        tmp_path / "reviews_Books.json.gz",
        review,
        {**review, "asin": "B2", "overall": 3.0},
    )
    # The release's metadata are Python literals, not JSON.
    meta = "{'asin': 'B1', 'title': \"It's red\", 'categories': [['Books', 'Art']]}"
    write(tmp_path / "meta_Books.json.gz", meta)
    spec = f"amazon:{tmp_path}"
    assert events(spec) == [("A", "B1", 100, "like"), ("A", "B2", 100, "dislike")]
    assert items(spec) == [
        {"item_id": "B1", "title": "It's red", "category": "Books, Art"},
        {"item_id": "B2", "title": "B2"},  # bought, and without metadata
    ]


def test_amazon_2018(tmp_path: Path) -> None:
    review = {"reviewerID": "A", "asin": "B1", "overall": 4, "unixReviewTime": 100}
    write(tmp_path / "Office.json", review)
    meta = {"asin": "B1", "title": "Pen &amp; <b>ink</b>", "brand": "Acme", "price": ""}
    meta |= {"category": ["Office", "Pens"], "feature": ["blue", "blue", "long"]}
    write(tmp_path / "meta_Office.json", meta)
    assert events(f"amazon:{tmp_path}") == [("A", "B1", 100, "like")]
    assert items(f"amazon:{tmp_path}") == [
        {
            "item_id": "B1",
            "title": "Pen & ink",
            "category": "Office, Pens",
            "brand": "Acme",
            "attributes": "blue, long",
        }
    ]


def test_amazon_2023(tmp_path: Path) -> None:
    review = {"user_id": "A", "asin": "V", "parent_asin": "B1", "rating": 2.0}
    write(tmp_path / "Toys.jsonl", {**review, "timestamp": 1_600_000_000_123})
    meta = {"parent_asin": "B1", "title": "Car", "store": "Acme", "price": 9.5}
    meta |= {"main_category": "Toys", "categories": ["Toys", "Cars"], "features": []}
    write(tmp_path / "meta_Toys.jsonl", meta)
    assert events(f"amazon:{tmp_path}") == [("A", "B1", 1_600_000_000, "dislike")]
    assert items(f"amazon:{tmp_path}") == [
        {
            "item_id": "B1",
            "title": "Car",
            "category": "Toys, Cars",
            "brand": "Acme",
            "price": "9.5",
        }
    ]


def test_recformer(tmp_path: Path) -> None:
    write(tmp_path / "train.json", {"0": [0, 1], "1": [1]})
    write(tmp_path / "val.json", {"0": [2], "1": [0]})
    write(tmp_path / "test.json", {"0": [1], "1": [2]})
    write(tmp_path / "smap.json", {"B0": 0, "B1": 1, "B2": 2})
    write(tmp_path / "meta_data.json", {"B1": {"title": "Pen", "brand": "Acme"}})
    spec = f"recformer:{tmp_path}"
    assert events(spec) == [
        ("0", "B0", 0, "interaction"),
        ("0", "B1", 1, "interaction"),
        ("0", "B2", 2, "interaction"),
        ("0", "B1", 3, "interaction"),
        ("1", "B1", 0, "interaction"),
        ("1", "B0", 1, "interaction"),
        ("1", "B2", 2, "interaction"),
    ]
    assert items(spec)[1] == {"item_id": "B1", "title": "Pen", "brand": "Acme"}
    write(tmp_path / "test.json", {"0": [9]})
    with pytest.raises(UserError, match=r"user 0 has item number 9, which smap"):
        events(spec)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movielens_1m_and_10m(tmp_path: Path, encoding: str) -> None:
    write(tmp_path / "ratings.dat", "1::7::5::200", "2::7::3::100")
    write(
        tmp_path / "movies.dat",
        "7::Misérables, Les (1995)::Drama|Musical",
        "9::Matrix, The (1999)::Action",
        encoding=encoding,
    )
    spec = f"movielens:{tmp_path}"
    assert events(spec) == [(2, 7, 100, "dislike"), (1, 7, 200, "like")]
    assert items(spec) == [
        {
            "item_id": 7,
            "title": "Misérables, Les",
            "category": "Drama, Musical",
            "attributes": "released in 1995",
        },
        {
            "item_id": 9,
            "title": "The Matrix",
            "category": "Action",
            "attributes": "released in 1999",
        },
    ]
    assert open_dataset(spec).impressions["label"].to_pylist() == [0.0, 1.0]


def test_movielens_20m(tmp_path: Path) -> None:
    write(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp", "1,7,3.5,200")
    write(
        tmp_path / "movies.csv",
        "movieId,title,genres",
        '7,"American President, The (1995)",Comedy|Drama',
        "8,Untitled,(no genres listed)",
    )
    spec = f"movielens:{tmp_path}"
    assert events(spec) == [(1, 7, 200, "dislike")]
    assert [item["title"] for item in items(spec)] == [
        "The American President",
        "Untitled",
    ]
    assert "category" not in items(spec)[1]


def test_movielens_100k(tmp_path: Path) -> None:
    write(tmp_path / "u.data", "196\t242\t4\t881250949")
    flags = "|".join(["0"] * 5 + ["1"] + ["0"] * 13)
    line = f"242|Café Kolya (1996)|24-Jan-1997||http://x|{flags}"
    write(tmp_path / "u.item", line, encoding="latin-1")
    assert events(f"movielens:{tmp_path}") == [(196, 242, 881250949, "like")]
    (film,) = items(f"movielens:{tmp_path}")
    assert (film["title"], film["category"]) == ("Café Kolya", "Comedy")
    with pytest.raises(UserError, match=r"has none of u\.data, ratings\.dat"):
        _ = open_dataset(f"movielens:{tmp_path.parent}").items


ATOMIC = {
    "inter": [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "1\t7\t5\t100",
    ],
    "item": [
        "item_id:token\tmovie_title:token_seq\trelease_year:token",
        "7\tToy Story\t1995",
    ],
    "user": [
        "user_id:token\tage:token\tgender:token\toccupation:token",
        "1\t24\tF\twriter",
    ],
}


@pytest.mark.parametrize(
    ("suffix", "rows", "message"),
    [
        ("item", None, "column 'class' is missing; it has: item_id, movie_title,"),
        (
            "item",
            [f"{ATOMIC['item'][0]}\tclass:token_seq", "m7\tToy Story\t1995\tComedy"],
            "column 'item_id': Failed to parse string: 'm7'",
        ),
        (
            "item",
            [f"{ATOMIC['item'][0]}\tclass:token", "7\tToy Story\t1995\tComedy"],
            "column 'class': Unsupported cast from string to list",
        ),
        (
            "inter",
            [ATOMIC["inter"][0].replace("rating", "stars"), ATOMIC["inter"][1]],
            "column 'rating' is missing",
        ),
        ("inter", [ATOMIC["inter"][0], "1\t7\tgood\t100"], "is not an atomic file"),
        ("user", [ATOMIC["user"][0], "1\told\tF\tx"], "column 'age': Failed to"),
    ],
)
def test_other_data_than_movielens_100k(
    tmp_path: Path, suffix: str, rows: list[str] | None, message: str
) -> None:
    for name, usual in ATOMIC.items():
        write(tmp_path / f"x.{name}", *(rows if rows and name == suffix else usual))
    table = {"item": "items", "inter": "interactions", "user": "impressions"}[suffix]
    dataset = open_dataset(f"movielens:{tmp_path}")
    with pytest.raises(UserError, match=message) as caught:
        getattr(dataset, f"read_{table}")()
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'x'}.{suffix}: ")
    assert "\n" not in text
    assert "atomic" in text or f"use --data recbole:{tmp_path}" in text


def test_a_field_of_two_kinds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    write(path, {"item_id": "0", "price": 3}, {"item_id": "1", "price": "cheap"})
    write(tmp_path / "sequences.txt", "1 0 1")
    for spec in (f"sequences:{tmp_path}", f"csv:{tmp_path}#items=items.jsonl"):
        with pytest.raises(UserError, match="column 'price' holds values of") as caught:
            items(spec)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_recbole(tmp_path: Path) -> None:
    write(
        tmp_path / "x.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "u1\ti1\t4\t100.5",
        "u2\ti1\t1\t90",
    )
    write(
        tmp_path / "x.item",
        "item_id:token\tname:token_seq\tcategories:token_seq\tprice:float",
        "i1\tred mug\tkitchen cups\t4.5",
    )
    spec = f"recbole:{tmp_path}"
    assert events(spec) == [("u1", "i1", 100, "like"), ("u2", "i1", 90, "dislike")]
    assert items(spec) == [
        {
            "item_id": "i1",
            "title": "red mug",
            "category": ["kitchen", "cups"],
            "price": 4.5,
        }
    ]
    assert open_dataset(spec).impressions["label"].to_pylist() == [1.0, 0.0]
    write(tmp_path / "x.inter", "user_id:token\titem_id:token", "u1\ti1")
    assert events(spec) == [("u1", "i1", 0, "interaction")]


def test_csv_with_a_column_map(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", "uid;asin;when;kind", "a;x;2020-01-01 00:00:10;buy")
    write(tmp_path / "items.csv", "asin;name", "x;Red mug")
    spec = (
        f"csv:{tmp_path}#interactions=log.csv,user_id=uid,item_id=asin,delimiter=;,"
        "timestamp=when,action=kind,title=name"
    )
    assert events(spec) == [("a", "x", 1_577_836_810, "buy")]
    assert items(spec) == [{"item_id": "x", "title": "Red mug"}]
    write(tmp_path / "log.csv", "uid;asin;when", "a;x;01.01.2020")
    dated = spec.replace("action=kind", "default_action=view")
    with pytest.raises(UserError, match=r"log\.csv: column 'timestamp': .*time_format"):
        events(dated)
    assert events(f"{dated},time_format=%d.%m.%Y") == [
        ("a", "x", 1_577_836_800, "view")
    ]
    with pytest.raises(
        UserError,
        match="no column 'action'; its columns: user_id, item_id, timestamp; name",
    ):
        events(spec)
    with pytest.raises(UserError, match="unknown name 'usr_id'; known: items"):
        open_dataset(f"csv:{tmp_path}#usr_id=uid")
    with pytest.raises(UserError, match="write 'uid' as NAME=VALUE"):
        open_dataset(f"csv:{tmp_path}#uid")
    with pytest.raises(UserError, match=r"column 'nope', which user_id=nope names, is"):
        events(f"{spec},time_format=%d.%m.%Y,default_action=v".replace("=uid", "=nope"))


def test_parquet_with_a_column_map_and_its_fingerprint(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"u": [1], "item_id": [2], "ms": [1_600_000_000_000]}),
        tmp_path / "interactions.parquet",
    )
    pq.write_table(pa.table({"item_id": [2]}), tmp_path / "items.parquet")
    spec = f"parquet:{tmp_path}#user_id=u,timestamp=ms,time_unit=ms,default_action=buy"
    assert events(spec) == [(1, 2, 1_600_000_000, "buy")]
    one = open_dataset(spec).fingerprint("interactions.parquet")
    other = spec.replace("=buy", "=view")
    assert one != open_dataset(other).fingerprint("interactions.parquet")


def test_uris_are_accepted(market: Path) -> None:
    here = open_dataset(f"parquet:{market}")
    there = open_dataset(f"parquet:file://{market}")
    assert there.interactions.equals(here.interactions)
    for file in ("items.parquet", "interactions.parquet"):
        assert there.fingerprint(file) == here.fingerprint(file)
    folder = "fsspec+memory:///market"
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in market.iterdir():
        memory.pipe(f"/market/{path.name}", path.read_bytes())
    remote = open_dataset(f"parquet:{folder}")
    assert remote.interactions.equals(here.interactions)
    assert np.array_equal(remote.times, here.times)
    with pytest.raises(UserError, match="no such directory"):
        open_dataset("parquet:fsspec+memory:///nowhere")
