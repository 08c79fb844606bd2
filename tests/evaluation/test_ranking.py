import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import ranking
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.evaluation.cohorts import CohortConfig
from learn_torchrec.evaluation.predictions import (
    read_predictions,
    refuse_different_rows,
    with_shared_columns,
)

COHORTS = {
    "all",
    *(
        f"{side}_{c}"
        for side in ("user", "item")
        for c in ("cold", "long_tail", "others")
    ),
}


def columns(seed: int = 0, num_rows: int = 120) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "user_id": random.integers(12, size=num_rows),
        "item_id": random.integers(30, size=num_rows).astype(str),
        "timestamp": np.arange(num_rows) + 1_700_000_000,
        "label": random.integers(2, size=num_rows).astype(np.int8),
        "score": random.random(num_rows, dtype=np.float32),
        "weight": np.where(np.arange(num_rows) % 10 == 0, 0.0, 1.0),
        "user_activity": random.integers(60, size=num_rows),
        "item_activity": random.integers(1, 60, size=num_rows),  # no cold item
    }


def write(path: Path, table: dict[str, np.ndarray]) -> Path:
    pq.write_table(pa.table(table), path)
    return path


def test_cohorts_are_the_rows_they_name(tmp_path: Path) -> None:
    table = columns()
    read = read_predictions(write(tmp_path / "predictions.parquet", table))
    assert read_predictions(tmp_path).source == read.source  # by its directory
    metrics = ranking.metrics_by_cohort(read)
    assert set(metrics) == COHORTS
    mask = (table["user_activity"] >= 1) & (table["user_activity"] < 36)
    assert metrics["user_long_tail"] == evaluate_auc(
        *(table[name][mask] for name in ("user_id", "label", "score", "weight"))
    )
    assert metrics["all"]["rows"] == 108
    assert metrics["item_cold"]["rows"] == 0
    assert math.isnan(metrics["item_cold"]["auc"])


@pytest.mark.parametrize("ids", ["numbers", "texts"])
def test_rates_of_a_file_count_in_memory_streamed_and_compared(tmp_path, ids) -> None:
    table = columns()
    if ids == "texts":
        table["user_id"] = table["user_id"].astype(str)
    table["label"] = (table["score"] > 0.5).astype(np.int8)
    rates = np.random.default_rng(1).uniform(0.1, 1, 120)
    given = pa.array(rates, mask=np.arange(120) % 7 == 0)  # null: kept for certain
    path = write(tmp_path / "one.parquet", {**table, "sampling_rate": given})
    expected = evaluate_auc(
        *(table[name] for name in ("user_id", "label", "score", "weight")),
        sampling_rates=np.where(np.arange(120) % 7 == 0, 1.0, rates),
    )
    one = read_predictions(path)
    assert ranking.metrics_by_cohort(one)["all"] == expected
    assert ranking.stream_by_cohort(path)["all"] == pytest.approx(expected)
    table["score"] = table["score"] ** 2
    lacking = write(tmp_path / "other.parquet", table)  # the rates of either count
    both = with_shared_columns([one, read_predictions(lacking)])
    after = ranking.metrics_by_cohort(both[1])["all"]
    found = ranking.differences_by_cohort(*both, num_resamples=10)["all"]
    for name in ("ne", "log_loss", "calibration"):
        assert found[name].difference == pytest.approx(after[name] - expected[name])


def test_cohort_bounds_are_a_setting(tmp_path: Path) -> None:
    read = read_predictions(write(tmp_path / "p.parquet", columns()))
    config = CohortConfig(item_long_tail_from=10, item_others_from=10)
    masks = ranking.cohort_masks(read, config)
    assert masks["item_cold"].any()
    assert not masks["item_long_tail"].any()


@pytest.mark.parametrize("side", ["user", "item"])
def test_absent_activity_leaves_out_its_cohorts(tmp_path: Path, side: str) -> None:
    table = columns()
    del table[f"{side}_activity"]
    read = read_predictions(write(tmp_path / "p.parquet", table))
    names = set(ranking.metrics_by_cohort(read))
    assert names == {name for name in COHORTS if not name.startswith(side)}


def test_only_the_required_columns_are_enough(tmp_path: Path) -> None:
    table = {name: columns()[name] for name in ("user_id", "label", "score")}
    read = read_predictions(write(tmp_path / "p.parquet", table))
    assert ranking.metrics_by_cohort(read) == {"all": evaluate_auc(*table.values())}


def test_differences_are_candidate_minus_baseline(tmp_path: Path) -> None:
    table = columns()
    better = table | {"score": (table["score"] + table["label"]) / 2}
    baseline = read_predictions(write(tmp_path / "a.parquet", table))
    candidate = read_predictions(write(tmp_path / "b.parquet", better))
    differences = ranking.differences_by_cohort(baseline, candidate, num_resamples=50)
    assert set(differences) == COHORTS
    before, after = map(ranking.metrics_by_cohort, (baseline, candidate))
    for cohort in COHORTS - {"item_cold"}:
        for metric, value in differences[cohort].items():
            gain = after[cohort][metric] - before[cohort][metric]
            assert value.difference == pytest.approx(gain, nan_ok=True)
    assert differences["all"]["auc"].low > 0
    assert math.isnan(differences["item_cold"]["auc"].p_value)


def test_json_has_null_for_nan(tmp_path: Path) -> None:
    read = read_predictions(write(tmp_path / "p.parquet", columns()))
    body = json.dumps(ranking.to_json(ranking.metrics_by_cohort(read)), allow_nan=False)
    back = json.loads(body)
    assert back["item_cold"]["auc"] is None
    assert back["item_cold"]["rows"] == 0
    assert back["all"]["auc"] == ranking.metrics_by_cohort(read)["all"]["auc"]


def changed(**changes: object) -> dict[str, np.ndarray]:
    return columns() | changes


NULL_LAST = [1] * 119 + [None]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"user_id": [1], "label": [1]}, "no column score"),
        (changed(score=["a"] * 120), "score: string; a number is needed"),
        (changed(user_id=np.ones(120)), "user_id: ids are double"),
        (changed(user_id=pa.array(NULL_LAST)), "user_id: null in row 119"),
        (
            changed(label=pa.nulls(120, pa.int8())),
            r"120 of 120 rows have no label \(the column holds nulls alone\), and an",
        ),
        (
            {"user_id": [1], "score": [0.5]},
            r"1 of 1 rows have no label \(the column is missing\), and an evaluation",
        ),
        (changed(label=np.full(120, 3)), "label: neither 0 nor 1 in rows 1, 2"),
        (changed(score=np.full(120, np.nan)), "score: not finite in rows 1, 2"),
        (changed(user_activity=np.full(120, 0.5)), "user_activity: no whole number in"),
        (changed(user_activity=NULL_LAST), "user_activity: null in row 119"),
        (changed(item_activity=["a"] * 120), "item_activity: string; a number"),
        (changed(user_activity=np.full(120, -1)), "user_activity: negative count"),
        (changed(weight=np.full(120, -1.0)), "weight: negative"),
        ({"user_id": [], "label": [], "score": []}, "no rows"),
    ],
)
def test_unfit_files_are_refused_by_name(
    tmp_path: Path, table: dict[str, np.ndarray], message: str
) -> None:
    path = write(tmp_path / "p.parquet", table)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an empty folder; name a"):
        read_predictions(tmp_path)
    path = tmp_path / "text.parquet"
    path.write_text("user_id,label,score\n")
    with pytest.raises(UserError, match=r"text\.parquet: cannot be read as Parquet"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": np.arange(120)}, "user_id differs from row 0"),
        ({"user_id": np.arange(120).astype(str)}, "user_id is string against int64"),
        ({"item_id": np.array(["x"] * 120)}, "item_id differs from row 0"),
        ({"timestamp": np.arange(120)}, "timestamp differs from row 0"),
        ({"label": 1 - columns()["label"]}, "label differs from row 0"),
        ({"weight": np.ones(120)}, "weight differs from row 0"),
    ],
)
def test_different_rows_are_refused(tmp_path: Path, change, message: str) -> None:
    ours = read_predictions(write(tmp_path / "a.parquet", columns()))
    theirs = read_predictions(write(tmp_path / "b.parquet", columns() | change))
    with pytest.raises(UserError, match=message):
        refuse_different_rows(ours, theirs)
    refuse_different_rows(ours, ours)


def test_different_lengths_and_columns_are_refused(tmp_path: Path) -> None:
    ours = read_predictions(write(tmp_path / "a.parquet", columns()))
    short = {name: values[:100] for name, values in columns().items()}
    theirs = read_predictions(write(tmp_path / "b.parquet", short))
    with pytest.raises(UserError, match="100 against 120 rows"):
        refuse_different_rows(ours, theirs)
    bare = {name: v for name, v in columns().items() if name != "timestamp"}
    refuse_different_rows(ours, read_predictions(write(tmp_path / "c.parquet", bare)))
    del bare["weight"]
    theirs = read_predictions(write(tmp_path / "d.parquet", bare))
    with pytest.raises(UserError, match="only one has the column weight"):
        refuse_different_rows(ours, theirs)
