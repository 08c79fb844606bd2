"""Predictions and outcomes as pandas and Spark write them, through every reader."""

import datetime
import decimal
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import evaluate_ab, evaluate_auc
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import ranking
from learn_torchrec.evaluation.auc import evaluate_auc as metrics_of
from learn_torchrec.evaluation.parquet import ParquetParts, lone_part_note

READERS = pytest.mark.parametrize("reader", [[], ["--stream"]])


def rows(num_rows: int = 300) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "user_id": random.integers(12, size=num_rows),
        "label": random.integers(2, size=num_rows),
        "score": random.integers(1000, size=num_rows) / 1000,
        "user_activity": random.integers(60, size=num_rows),
    }


def expected(table: dict[str, np.ndarray], chosen: slice | np.ndarray = slice(None)):
    columns = (table[name][chosen] for name in ("user_id", "label", "score"))
    return pytest.approx(ranking.to_json(metrics_of(*columns)), abs=1e-12)


def evaluated(path: Path, *options: str) -> dict:
    out = path.parent / "metrics.json"
    evaluate_auc.main(["--predictions", f"a={path}", "--out", str(out), *options])
    return json.loads(out.read_text())["ranking"]["a"]


def write_parts(folder: Path, frame: pd.DataFrame) -> Path:
    """A folder as Spark writes it: parts, a marker and a checksum."""
    folder.mkdir()
    half = len(frame) // 2
    for number, part in enumerate((frame[:half], frame[half:])):
        part.to_parquet(folder / f"part-0000{number}.snappy.parquet", index=False)
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000.snappy.parquet.crc").write_bytes(b"crc")
    return folder


@READERS
def test_a_folder_of_parts_is_one_table(tmp_path: Path, reader: list[str]) -> None:
    table = rows()
    folder = write_parts(tmp_path / "pred", pd.DataFrame(table))
    found = evaluated(folder, *reader)
    assert found["all"] == expected(table)
    assert found["user_others"] == expected(table, table["user_activity"] >= 36)


@READERS
def test_a_partitioned_folder_is_one_table(tmp_path: Path, reader: list[str]) -> None:
    table = rows()
    days = np.where(np.arange(300) < 100, "2026-01-01", "2026-01-02")
    frame = pd.DataFrame(table | {"day": days})
    frame.to_parquet(tmp_path / "pred", partition_cols=["day"], index=False)
    assert evaluated(tmp_path / "pred", *reader)["all"] == expected(table)
    if not reader:  # the folders' names are a column
        by_day = evaluated(tmp_path / "pred", "--cohort-column=day")
        assert by_day["2026-01-01"] == expected(table, slice(100))
        assert by_day["2026-01-02"] == expected(table, slice(100, None))


@READERS
def test_an_activity_may_be_a_folders_name(tmp_path: Path, reader: list[str]) -> None:
    table = rows() | {"user_activity": np.arange(300) % 2 * 50}
    frame = pd.DataFrame(table)
    frame.to_parquet(tmp_path / "pred", partition_cols=["user_activity"], index=False)
    found = evaluated(tmp_path / "pred", *reader)
    assert found["user_cold"] == expected(table, table["user_activity"] == 0)


@READERS
def test_one_part_is_scored_alone_and_says_so(
    tmp_path: Path, reader: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table = rows()
    folder = write_parts(tmp_path / "pred", pd.DataFrame(table))
    part = folder / "part-00001.snappy.parquet"
    assert evaluated(part, *reader)["all"] == expected(table, slice(150, None))
    assert [one.getMessage() for one in caplog.records] == [
        f"{part}: one of 2 parts, read alone; name {folder} to read all of them"
    ]
    caplog.clear()
    pq.write_table(pa.table(table), tmp_path / "whole.parquet")
    evaluated(tmp_path / "whole.parquet", *reader)
    assert not caplog.records


@READERS
def test_a_file_below_a_partition_has_no_column_of_its_name(
    tmp_path: Path, reader: list[str]
) -> None:
    table = rows()
    (tmp_path / "score=1").mkdir()
    path = tmp_path / "score=1" / "p.parquet"
    pq.write_table(pa.table(table), path)
    assert evaluated(path, *reader)["all"] == expected(table)


@READERS
def test_columns_that_nobody_needs_may_be_of_any_type(
    tmp_path: Path, reader: list[str]
) -> None:
    table = rows()
    others = {
        "timestamp": [datetime.datetime(2026, 1, 1)] * 300,
        "item_id": np.full(300, np.nan),
        "click": ["often"] * 300,
        "tags": [["a", None]] * 300,
    }
    pq.write_table(pa.table(table | others), tmp_path / "p.parquet")
    assert evaluated(tmp_path / "p.parquet", *reader)["all"] == expected(table)
    # One part has another type than the other, which nobody needs either.
    folder = tmp_path / "pred"
    folder.mkdir()
    for number, item in enumerate(("a", 1)):
        part = {n: v[number * 150 : number * 150 + 150] for n, v in table.items()}
        body = pa.table(part | {"item": [item] * 150})
        pq.write_table(body, folder / f"part-{number}.parquet")
    assert evaluated(folder, *reader)["all"] == expected(table)


@READERS
def test_decimals_and_counts_of_a_left_join(tmp_path: Path, reader: list[str]) -> None:
    table = rows()
    scores = [decimal.Decimal(round(1000 * x)).scaleb(-3) for x in table["score"]]
    weights = pa.array([decimal.Decimal("0.5")] * 300, pa.decimal128(4, 1))
    changed = table | {
        "score": pa.array(scores, pa.decimal128(10, 3)),
        "weight": weights,
        "user_activity": table["user_activity"].astype(np.float64),
    }
    pq.write_table(pa.table(changed), tmp_path / "p.parquet")
    found = evaluated(tmp_path / "p.parquet", *reader)
    assert found["all"] == expected(table)
    assert found["user_cold"] == expected(table, table["user_activity"] == 0)


@READERS
def test_parts_may_differ_in_a_type(tmp_path: Path, reader: list[str]) -> None:
    table = rows()
    frame = pd.DataFrame(table)
    folder = tmp_path / "pred"
    folder.mkdir()
    frame[:150].to_parquet(folder / "part-0.parquet")
    floats = frame[150:].astype({"user_activity": float, "user_id": "int32"})
    floats.to_parquet(folder / "part-1.parquet")
    found = evaluated(folder, *reader)
    assert found["all"] == expected(table)
    assert found["user_others"] == expected(table, table["user_activity"] >= 36)
    frame.assign(user_id="x").to_parquet(folder / "part-2.parquet")
    with pytest.raises(
        UserError, match=r"user_id: .*int64.*string.* in different parts"
    ):
        evaluated(folder, *reader)


@READERS
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"user_activity: null in row 200 \("),
        (1.5, r"user_activity: no whole number in row 200 \("),
        (-1.0, r"user_activity: negative count in row 200 \("),
    ],
)
def test_unfit_counts_are_named(
    tmp_path: Path, reader: list[str], value: float, message: str
) -> None:
    counts = rows()["user_activity"].astype(float)
    counts[200] = value
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table(rows() | {"user_activity": counts}), path)
    with pytest.raises(UserError, match=message):
        evaluated(path, *reader)


@READERS
def test_a_part_that_lacks_the_label_alone_counts_as_unlabelled(
    tmp_path: Path, reader: list[str]
) -> None:
    table = pa.table(rows())
    folder = tmp_path / "p"
    folder.mkdir()
    pq.write_table(table, folder / "part-0.parquet")
    expected = evaluated(folder, *reader)
    pq.write_table(table.drop_columns(["label"]), folder / "part-1.parquet")
    assert evaluated(folder, *reader) == expected


def test_rows_are_compared_whatever_the_types(tmp_path: Path) -> None:
    moment = datetime.datetime(2026, 1, 1)
    table = rows() | {"timestamp": [moment] * 299 + [None], "item_id": ["a"] * 300}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    typed = table | {"item_id": pa.array(["a"] * 300).dictionary_encode()}
    pq.write_table(pa.table(typed), tmp_path / "b.parquet")
    files = [f"{name}={tmp_path / name}.parquet" for name in "ab"]
    command = ["--predictions", *files, "--out", str(tmp_path / "m.json")]
    evaluate_auc.main([*command, "--resamples=2"])
    typed["timestamp"] = [moment] * 300
    pq.write_table(pa.table(typed), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="timestamp differs from row 299"):
        evaluate_auc.main(command)
    typed["timestamp"] = np.arange(300)
    pq.write_table(pa.table(typed), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"timestamp is int64 against timestamp\["):
        evaluate_auc.main(command)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such file; name a table"):
        ParquetParts(tmp_path / "none", "a table")
    with pytest.raises(UserError, match="an empty folder; name a table"):
        ParquetParts(tmp_path, "a table")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    parts = ParquetParts(tmp_path / "t.parquet", "a table")
    with pytest.raises(UserError, match=r"t\.parquet: no column b; c"):
        parts.require(["a", "b"], "c")
    (group,) = parts.row_groups()
    chosen = parts.batches(group, ["a"], 10, ds.field("a") > 1, ["a"])
    assert sum(batch.num_rows for batch in chosen) == 0


OUTCOMES = {
    "user_id": [1, 1, 2, 3, 4, 4, 5],
    "arm": ["control"] * 4 + ["treatment"] * 3,
    "impressions": [2, 2, 4, 2, 5, 5, 2],
    "conversions": [1, 0, 2, 0, 2, 1, 1],
    "revenue": [10.0, -4.0, 30.0, 0.0, 20.0, -20.0, 10.0],
}


def test_outcomes_as_spark_writes_them(tmp_path: Path) -> None:
    days = pd.to_datetime(["2026-01-01 08:00"] * 2 + ["2026-01-02 23:59"] * 5)
    frame = pd.DataFrame(OUTCOMES | {"day": days})
    numbers = {"whole": frame, "parts": frame}
    write_parts(tmp_path / "parts", frame)
    frame.to_parquet(tmp_path / "whole")
    texts = frame.assign(day=days.strftime("%Y-%m-%d"))
    texts.to_parquet(tmp_path / "by_day", partition_cols=["day"])
    money = [decimal.Decimal(int(x)) for x in OUTCOMES["revenue"]]
    frame.assign(revenue=money).to_parquet(tmp_path / "decimals")
    bodies = {}
    for name in [*numbers, "by_day", "decimals"]:
        out = tmp_path / f"{name}.json"
        command = ["--outcomes", str(tmp_path / name), "--out", str(out)]
        evaluate_ab.main([*command, "--set", "ab.resamples=20"])
        bodies[name] = json.loads(out.read_text())
    whole = bodies["whole"]
    # Refunds count: control (6, 30, 0), treatment (0, 10).
    revenue = whole["lifts"]["all"]["revenue_per_user"]
    assert (revenue["control"], revenue["treatment"]) == (12, 5)
    assert revenue["lift"] == pytest.approx(5 / 12 - 1)
    first = (datetime.date(2026, 1, 1) - datetime.date(1970, 1, 1)).days
    days_read = [one["day"] for one in whole["daily"]["revenue_per_user"]]
    assert days_read == [first, first + 1]
    for name, body in bodies.items():
        if name == "by_day":  # the folders are read one after the other
            assert body["lifts"]["all"]["revenue_per_user"]["control"] == 12
            assert body["days"] == 2
        else:
            assert body == whole


def test_a_loss_is_a_lift_below_minus_one(
    tmp_path: Path,
) -> None:
    losing = OUTCOMES | {"revenue": [10.0, 0, 30, 0, -20, -20, 0], "day": [0] * 7}
    pq.write_table(pa.table(losing), tmp_path / "ab.parquet")
    out = tmp_path / "ab.json"
    evaluate_ab.main(["--outcomes", str(tmp_path / "ab.parquet"), "--out", str(out)])
    lift = json.loads(out.read_text())["lifts"]["all"]["revenue_per_user"]
    assert lift["lift"] == pytest.approx(-20 / (40 / 3) - 1)
    negative = losing | {"impressions": [-1, *OUTCOMES["impressions"][1:]]}
    pq.write_table(pa.table(negative), tmp_path / "ab.parquet")
    with pytest.raises(UserError, match="impressions: negative or not finite in row 0"):
        evaluate_ab.main(
            ["--outcomes", str(tmp_path / "ab.parquet"), "--out", str(out)]
        )


def test_one_part_of_outcomes_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    frame = pd.DataFrame(OUTCOMES | {"day": 0})
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(2):
        frame.to_parquet(folder / f"part-{number}.parquet")
    command = ["--outcomes", str(folder / "part-0.parquet"), "--out"]
    evaluate_ab.main([*command, str(tmp_path / "ab.json"), "--set", "ab.resamples=2"])
    assert "one of 2 parts, read alone" in caplog.text


@READERS
def test_text_keys_of_folders_stay_text(tmp_path: Path, reader: list[str]) -> None:
    table = rows()
    table["user_id"] = np.array(
        [f"{user:03}" if user % 2 else f"{user}" for user in table["user_id"]]
    )
    table["user_id"][:9] = "7"  # beside 007
    frame = pd.DataFrame(table)
    frame.to_parquet(tmp_path / "pred", partition_cols=["user_id"], index=False)
    found, wanted = (
        evaluated(tmp_path / "pred", *reader)["all"],
        metrics_of(table["user_id"], table["label"], table["score"]),
    )
    assert (found["users"], found["uauc"]) == (13, pytest.approx(wanted["uauc"]))


@READERS
@pytest.mark.parametrize("column", ["weight", "user_activity", "score"])
@pytest.mark.parametrize("lacking", [0, 1])
def test_a_part_that_lacks_a_column_is_named(
    tmp_path: Path, column: str, lacking: int, reader: list[str]
) -> None:
    """Read silently, the weights of the other parts would not count."""
    frame = pd.DataFrame(rows() | {"weight": 1.0})
    for number in range(2):
        part = frame[number::2]
        part = part.drop(columns=column) if number == lacking else part
        (tmp_path / "pred").mkdir(exist_ok=True)
        part.to_parquet(tmp_path / "pred" / f"part-{number}.parquet")
    with pytest.raises(
        UserError, match=rf"part-{lacking}\.parquet: no column {column}"
    ):
        evaluated(tmp_path / "pred", *reader)


@READERS
def test_parts_of_other_encodings(tmp_path: Path, reader: list[str]) -> None:
    table = rows() | {"user_id": rows()["user_id"].astype(str)}
    frame = pd.DataFrame(table)
    (tmp_path / "pred").mkdir()
    untyped = pa.table({name: pa.array([], pa.float64()) for name in table})
    category = frame[:100].astype({"user_id": "category"})
    view = pa.table(frame[100:].to_dict("list"))
    view = view.set_column(0, "user_id", view["user_id"].cast(pa.string_view()))
    activity = view["user_activity"].cast(pa.decimal128(19, 0))
    view = view.set_column(3, "user_activity", activity)
    for number, part in enumerate((untyped, pa.Table.from_pandas(category), view)):
        pq.write_table(part, tmp_path / "pred" / f"part-{number}.parquet")
    (tmp_path / "pred" / "notes.txt").write_text("by hand")
    found = evaluated(tmp_path / "pred", *reader)
    assert found["all"] == expected(table)
    assert found["user_others"] == expected(table, table["user_activity"] >= 36)


def test_metrics_may_be_separated_by_commas(tmp_path: Path) -> None:
    pq.write_table(pa.table(rows()), tmp_path / "p.parquet")
    found = evaluated(tmp_path / "p.parquet", "--metrics", "auc,uauc", "ne")
    assert {"auc", "uauc", "ne"} <= set(found["all"])
    assert "wuauc" not in found["all"]
    with pytest.raises(UserError, match="no metric 'uacu'; choose from auc, uauc"):
        evaluated(tmp_path / "p.parquet", "--metrics", "uacu")


@pytest.mark.parametrize("name", ["data_0", "part_0", "00000000", "0"])
def test_parts_of_other_writers_say_so(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / f"{name}.parquet", tmp_path / "1.parquet"):
        pq.write_table(pa.table(rows()), path)
    assert "one of 2 parts" in lone_part_note(tmp_path / f"{name}.parquet")
    key = tmp_path / "pred" / "day=1"
    for folder in (key, tmp_path / "pred" / "day=2"):
        folder.mkdir(parents=True)
        pq.write_table(pa.table(rows()), folder / "x.parquet")
    assert f"one of 2 parts, read alone; name {key.parent}" in lone_part_note(key)
    assert lone_part_note(tmp_path / "pred") == ""


@READERS
@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz", "p.tsv", "parts"])
def test_predictions_as_csv(tmp_path: Path, reader: list[str], name: str) -> None:
    table, path = rows(), tmp_path / name
    frame = pd.DataFrame(table)
    if name == "parts":
        path.mkdir()
        frame[:100].to_csv(path / "part-0.csv", index=False)
        frame[100:].to_csv(path / "part-1.csv", index=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if name == "p.tsv" else ",")
    assert evaluated(path, *reader)["all"] == expected(table)


@READERS
@pytest.mark.parametrize("words", [("0", "1"), ("false", "true"), ("0.0", "1.0")])
def test_labels_as_text(
    tmp_path: Path, reader: list[str], words: tuple[str, str]
) -> None:
    table = rows()
    frame = pd.DataFrame(table)
    frame["label"] = [words[label] for label in table["label"]]
    frame.to_parquet(tmp_path / "p.parquet")
    assert evaluated(tmp_path / "p.parquet", *reader)["all"] == expected(table)
    frame["label"] = ["no", "yes"] * 150
    frame.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet.* label: string; a number is"):
        evaluated(tmp_path / "p.parquet", *reader)
