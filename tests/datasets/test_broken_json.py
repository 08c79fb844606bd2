"""JSON and atomic files that parse, but hold what no table can: one line each."""

import json
from pathlib import Path

import pytest
from adapter_files import GOOD, ITEMS, LOG, PRODUCT, REVIEW

from learn_torchrec.datasets import open_dataset
from learn_torchrec.errors import UserError

DEEP = "[" * 100_000
HALF = "\\ud800"  # half of a surrogate pair
BROKEN = [
    ("jsonl", "items.jsonl", ITEMS + DEEP, "line 2 is not a JSON object"),
    ("jsonl", "items.jsonl", ITEMS + "{1: 2, 'item_id': 'B1'}", "line 2 is not a JSON"),
    (
        "jsonl",
        "items.jsonl",
        ITEMS + "{[]: 2, 'item_id': 'B1'}",
        "line 2 is not a JSON",
    ),
    ("jsonl", "items.jsonl", ITEMS.replace('"a"', f'"{HALF}"'), "column 'title' holds"),
    ("jsonl", "items.jsonl", ITEMS.replace("title", HALF), "cannot be read"),
    ("jsonl", "items.jsonl", ITEMS.replace('"a"', "9" * 40), "column 'title' holds"),
    ("jsonl", "interactions.jsonl", LOG.replace("5", "9" * 40), "'timestamp' holds"),
    ("sequences", "items.jsonl", ITEMS.replace("B0", HALF), "column 'item_id' holds"),
    ("amazon", "R.json", REVIEW + DEEP, "line 2 is not a JSON object"),
    ("amazon", "R.json", REVIEW.replace("5,", "1e999,"), "both must be numbers"),
    (
        "amazon",
        "R.json",
        REVIEW.replace("5,", f"-{'9' * 40},"),
        "too large|too big",
    ),
    ("amazon", "R.json", REVIEW.replace('"u"', f'"{HALF}"'), "R.json: cannot be read"),
    ("amazon", "R.json", REVIEW.replace('"B0"', "[1]"), "line 1: asin is a list"),
    ("amazon", "meta_R.json", PRODUCT.replace('"B0"', "{}"), "line 1: asin is a dict"),
    (
        "amazon",
        "meta_R.json",
        PRODUCT.replace('"a"', "[" * 900 + "1" + "]" * 900),
        "nested too deeply",
    ),
    ("sequences", "items.jsonl", ITEMS.replace('"B0"', "null"), "line 1 is not .* a t"),
    ("sequences", "items.jsonl", ITEMS.replace('"B0"', "true"), "line 1 is not .* a t"),
    ("sequences", "items.jsonl", ITEMS.replace('"B0"', "[1]"), "line 1 is not .* a t"),
    ("amazon", "R.json", REVIEW.replace(": 5}", ": NaN}"), "both must be numbers"),
    ("amazon", "R.json", REVIEW.replace("5,", "true,"), "unixReviewTime is a bool"),
    ("amazon", "R.json", REVIEW.replace('"u"', "false"), "reviewerID is a bool"),
    ("lcrec", "A.inter.json", '{"u": [true]}', "must be a list of items"),
    ("recformer", "smap.json", '{"B0": true}', "item B0 has the number True"),
    ("lcrec", "A.item.json", DEEP, "not valid JSON"),
    ("lcrec", "A.item.json", '{"0": null}', "item 0 is None, must be an object"),
    ("lcrec", "A.inter.json", '{"u": null}', "user u has None, must be a list"),
    ("lcrec", "A.inter.json", '{"u": "123"}', "user u has '123', must be a list"),
    ("lcrec", "A.inter.json", '{"u": [[0]]}', "must be a list of items"),
    ("lcrec", "A.inter.json", f'{{"{HALF}": [0]}}', "cannot be read"),
    ("recformer", "smap.json", '{"B0": "x"}', "item B0 has the number 'x'"),
    ("recformer", "smap.json", '{"B0": null}', "item B0 has the number None"),
    ("recformer", "meta_data.json", '{"B0": [1]}', "item B0 is .1., must be an object"),
    ("recformer", "train.json", '{"0": {"a": 1}}', "must be a list of items"),
    ("recformer", "val.json", '{"0": [{}]}', "val.json: user 0 has .{}., must be"),
    ("recbole", "a.item", "item_id:token\titem_id:token\n1\t2\n", "'item_id' twice"),
    (
        "recbole",
        "a.inter",
        "user_id:token\titem_id:token\ttimestamp:token\nu\tB0\tnoon\n",
        "cannot be read .*noon",
    ),
    (
        "recbole",
        "a.inter",
        "user_id:token\titem_id:token\trating:token\nu\tB0\tgood\n",
        "cannot be read .*good",
    ),
    (
        "recbole",
        "a.inter",
        "user_id:token\titem_id:token\ttimestamp:float\nu\tB0\tinf\n",
        "cannot be read .*inf",
    ),
]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("adapter", GOOD)
def test_good_files_are_read(adapter: str, tmp_path: Path) -> None:
    write(tmp_path, GOOD[adapter])
    dataset = open_dataset(f"{adapter.partition(' ')[0]}:{tmp_path}")
    assert dataset.items.num_rows == 1
    assert dataset.interactions.num_rows >= 1


@pytest.mark.parametrize(("adapter", "name", "text", "reason"), BROKEN)
def test_broken_files_are_one_line(
    adapter: str, name: str, text: str, reason: str, tmp_path: Path
) -> None:
    write(tmp_path, {**GOOD[adapter], name: text})
    dataset = open_dataset(f"{adapter}:{tmp_path}")
    with pytest.raises(UserError, match=reason) as raised:
        json.dumps([dataset.items.num_rows, dataset.interactions.num_rows])
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


RATINGS = {
    "recbole": ("a.inter", "user_id:token\titem_id:token\trating:float\n{}"),
    "movielens": ("ratings.csv", "userId,movieId,rating,timestamp\n{}"),
}


@pytest.mark.parametrize("adapter", RATINGS)
def test_a_rating_that_is_no_number_is_no_dislike(adapter: str, tmp_path: Path) -> None:
    name, text = RATINGS[adapter]
    sign, time = ("\t", "") if adapter == "recbole" else (",", ",7")
    rows = [sign.join(("1", "1", stars)) + time for stars in ("5", "nan", "2")]
    items = {
        "a.item": "item_id:token\n1\n",
        "movies.csv": "movieId,title,genres\n1,a,b\n",
    }
    write(tmp_path, {**items, name: text.format("\n".join(rows) + "\n")})
    dataset = open_dataset(f"{adapter}:{tmp_path}")
    assert dataset.interactions["action"].to_pylist() == ["like", "dislike"]
    assert dataset.impressions["label"].to_pylist() == [1, None, 0]
