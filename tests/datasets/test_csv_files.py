"""CSV as spreadsheets, databases, pandas and Spark write it."""

import datetime
import gzip
from pathlib import Path
from typing import Any

import pytest

from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.errors import UserError

ITEMS = "item_id,title\na,Red mug\n"
LOG = "user_id,item_id,timestamp,action\n"
EVENT = ("u1", "a", 1_600_000_000, "buy")


def shop(
    folder: Path,
    items: str = ITEMS,
    log: str = f"{LOG}u1,a,1600000000,buy\n",
    **how: str,
) -> Dataset:
    """Write the two files and open them."""
    encoding = how.pop("written_as", "utf-8")
    for name, text in (("items.csv", items), ("interactions.csv", log)):
        (folder / name).write_bytes(text.encode(encoding))
    options = ",".join(f"{name}={value}" for name, value in how.items())
    return open_dataset(f"csv:{folder}" + (options and f"#{options}"))


def events(data: Dataset) -> list[tuple]:
    names = LOG.strip().split(",")
    return list(
        zip(*(data.interactions[name].to_pylist() for name in names), strict=True)
    )


@pytest.mark.parametrize(
    ("separator", "option"),
    [("\t", "tab"), ("\t", r"\t"), (";", ";"), ("|", "|"), ("||", "||"), ("::", "::")],
)
def test_delimiters_of_one_character_or_several(
    tmp_path: Path, separator: str, option: str
) -> None:
    items = f'item_id,title\na,"Mug{separator}XL"\n'.replace(",", separator)
    log = f"{LOG}u1,a,1600000000,buy\n".replace(",", separator)
    data = shop(tmp_path, items, log, delimiter=option)
    assert events(data) == [EVENT]
    assert data.items["title"].to_pylist() == [f"Mug{separator}XL"]


def test_the_suffix_tells_the_delimiter_and_the_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "items.tsv").write_text(ITEMS.replace(",", "\t"))
    with gzip.open(tmp_path / "interactions.csv.gz", "wt") as stream:
        stream.write(f"{LOG}u1,a,1600000000,buy\n")
    assert events(open_dataset(f"csv:{tmp_path}")) == [EVENT]


@pytest.mark.parametrize("written_as", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, written_as: str) -> None:
    mark = "\ufeff" if written_as == "utf-16-be" else ""
    data = shop(
        tmp_path,
        f"{mark}item_id,title\na,Tasse für Öl\n",
        f"{mark}{LOG}u1,a,1600000000,buy\n",
        written_as=written_as,
    )
    assert events(data) == [EVENT]
    assert data.items["title"].to_pylist() == ["Tasse für Öl"]


def test_backslashes_before_quotes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = 'item_id,title\na,"Mug \\"XL\\", red"\n'
    escaped = shop(tmp_path, items, escape="backslash")
    assert escaped.items["title"].to_pylist() == ['Mug "XL", red']
    with pytest.raises(UserError, match=r"Expected 2 columns.*escape=backslash"):
        _ = shop(tmp_path, items).items
    _ = shop(tmp_path, items.replace(", red", " red")).items
    assert "escape=backslash" in caplog.text


# Values of a column `x` of the items, and what they are afterwards.
TYPES: dict[str, tuple[list[str], list[Any]]] = {
    "integers": (["1", "-2", "0"], [1, -2, 0]),
    "leading zeros": (["007", "7", "10"], ["007", "7", "10"]),
    "integers with a missing one": (["1", "NA", ""], [1, None, None]),
    "country codes": (["NA", "DE", "null"], ["NA", "DE", "null"]),
    "floats": (["4.50", ".5", "1e3"], [4.5, 0.5, 1000.0]),
    "versions": (["1.10", "1.1.2", "1"], ["1.10", "1.1.2", "1"]),
    "beyond int64": (["99999999999999999999", "1", "2"], [1e20, 1.0, 2.0]),
    "truths": (["True", "false", ""], [True, False, None]),
    "days": (
        ["2020-01-02", "2020-01-03", ""],
        [datetime.date(2020, 1, 2), datetime.date(2020, 1, 3), None],
    ),
    "no days": (["2020-13-45", "x", ""], ["2020-13-45", "x", None]),
    "decimal commas unnamed": (['"4,99"', '"1,5"', ""], ["4,99", "1,5", None]),
}


@pytest.mark.parametrize("case", TYPES)
def test_a_column_has_a_type_if_all_its_values_do(tmp_path: Path, case: str) -> None:
    written, read = TYPES[case]
    rows = "".join(f"{n},t,{value}\n" for n, value in enumerate(written))
    assert shop(tmp_path, f"item_id,title,x\n{rows}").items["x"].to_pylist() == read


def test_decimal_commas(tmp_path: Path) -> None:
    items = "item_id;title;price\na;x;4,99\nb;y;12\n"
    log = f"{LOG}u1,a,5,buy\n".replace(",", ";")
    data = shop(tmp_path, items, log, delimiter=";", decimal="comma")
    assert data.items["price"].to_pylist() == [4.99, 12.0]


@pytest.mark.parametrize("title", ["NA", "null", "2020-01-01", "0042", "1984", "True"])
def test_titles_stay_as_written(tmp_path: Path, title: str) -> None:
    data = shop(tmp_path, f"item_id,title\na,{title}\n")
    assert data.items["title"].to_pylist() == [title]


@pytest.mark.parametrize(
    ("ids", "read"),
    [
        (["7", "10", "-1"], [7, 10, -1]),
        (["007", "7"], ["007", "7"]),
        (["1e5", "100000", "0x1F"], ["1e5", "100000", "0x1F"]),
        (["+7", "7"], ["+7", "7"]),
        (["true", "2020-01-01"], ["true", "2020-01-01"]),
        (["9223372036854775808", "7"], ["9223372036854775808", "7"]),
        ([" 7 ", "7"], [" 7 ", "7"]),
        (["NA", "u1"], ["NA", "u1"]),
    ],
)
def test_ids_stay_apart(tmp_path: Path, ids: list[str], read: list[Any]) -> None:
    log = LOG + "".join(f"{one},a,1600000000,buy\n" for one in ids)
    assert shop(tmp_path, log=log).interactions["user_id"].to_pylist() == read


def test_ids_with_spaces_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _ = shop(tmp_path, log=f"{LOG} 7 ,a,1600000000,buy\n").interactions
    assert "'user_id': ids have spaces around them" in caplog.text


TIMES = {
    "seconds": ("1600000000", {}),
    "floats": ("1600000000.75", {}),
    "powers": ("1.6e9", {}),
    "milliseconds": ("1600000000999", {"time_unit": "ms"}),
    "float milliseconds": ("1600000000999.5", {"time_unit": "ms"}),
    "ISO": ("2020-09-13 12:26:40", {}),
    "ISO with Z": ("2020-09-13T12:26:40Z", {}),
    "ISO with a zone": ("2020-09-13T14:26:40+02:00", {}),
    "BigQuery": ("2020-09-13 12:26:40 UTC", {}),
    "German": ("13.09.2020 12:26:40", {"time_format": "%d.%m.%Y %H:%M:%S"}),
}


@pytest.mark.parametrize("case", TIMES)
def test_times(tmp_path: Path, case: str) -> None:
    written, options = TIMES[case]
    data = shop(tmp_path, log=f"{LOG}u1,a,{written},buy\n", **options)
    assert events(data) == [EVENT]


REFUSED = {
    "another delimiter": (LOG.replace(",", ";"), r"one column, .*#delimiter=;"),
    "a header alone": (LOG, "has no rows"),
    "no header": (
        "u1,a,1600000000,buy\n",
        "first line holds '1600000000' and no names; put .* user_id,item_id",
    ),
    "no header, a day": ("u,a,2020-09-13 12:26,buy\n", "'2020-09-13 12:26' and no"),
    "a name twice": (f"{LOG.strip()},x,x\nu,a,1,buy,1,2\n", "has column 'x' twice"),
    "a value too many": (f"{LOG}u1,a,1600000000,buy,\n", "Expected 4 columns, got 5"),
    "floats as ids": (
        f"{LOG}1.0,a,1600000000,buy\n2,a,1,buy\n",
        "ids are floats, such",
    ),
    "no action": (f"{LOG}u1,a,1600000000,\n", "1 of 1 rows have no action"),
    "milliseconds": (f"{LOG}u1,a,1600000000000,buy\n", "time_unit=ms"),
    "an open quote": (f'{LOG}u1,a,5,"buy\nu2,a,6,buy\n', "a quote is not closed"),
    "American days": (f"{LOG}u1,a,09/13/2020,buy\n", "give time_format"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_one_line_with_the_fix(
    tmp_path: Path, case: str
) -> None:
    log, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        _ = shop(tmp_path, log=log).interactions
    assert "\n" not in str(caught.value)
    assert "interactions.csv" in str(caught.value)


def test_spaces_in_the_header_and_columns_without_a_name(tmp_path: Path) -> None:
    log = ", user_id, item_id ,timestamp,action,\n0,u1,a,1600000000,buy,\n"
    data = shop(tmp_path, log=log)
    assert data.interactions.column_names == [
        "user_id",
        "item_id",
        "timestamp",
        "action",
    ]


def test_folders_of_parts(tmp_path: Path) -> None:
    shop(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    folder = tmp_path / "interactions.csv"
    for name, text in {
        "action=buy/part-0.csv": "user_id,item_id,timestamp\n7,a,1600000000\n",
        "action=01/part-1.csv": "timestamp,item_id,user_id\n5,a,u1\n",
        "action=buy/part-2.csv": "user_id,item_id,timestamp\n",
        "action=buy/part-3.csv": "",
        "_temporary/part-0.csv": "user_id\nx\n",
        "_SUCCESS": "",
        "README.md": "a text",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    assert sorted(events(open_dataset(f"csv:{tmp_path}"))) == [
        ("7", "a", 1_600_000_000, "buy"),
        ("u1", "a", 5, "01"),
    ]


@pytest.mark.parametrize(
    ("items", "fix"),
    [
        ("", "no such file; say which it is: --data csv:DIR#items=FILE"),
        ("id,title\na,A\n", "which it is: --data csv:DIR#items.item_id=COLUMN"),
    ],
)
def test_a_missing_file_or_column_names_the_option_that_maps_it(
    tmp_path: Path, items: str, fix: str
) -> None:
    data = shop(tmp_path, items)
    if not items:
        (tmp_path / "items.csv").unlink()
    with pytest.raises(UserError, match=f"{fix}$"):
        _ = data.items
