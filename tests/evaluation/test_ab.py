import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import evaluate_ab
from learn_torchrec.datasets.generated.ab_replay import AbReplayConfig, write_ab_replay
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.ab import (
    METRICS,
    AbConfig,
    analyse_ab_test,
    check_sample_ratio,
)
from learn_torchrec.evaluation.ab_outcomes import read_outcomes
from learn_torchrec.evaluation.ranking import to_json

# Users 1 to 3 are control, 4 and 5 treatment; 6 is of another arm.
TABLE = {
    "user_id": [1, 1, 2, 3, 4, 4, 5, 6],
    "arm": ["control"] * 4 + ["treatment"] * 3 + ["other"],
    "day": [0, 1, 0, 0, 0, 1, 1, 0],
    "impressions": [2, 2, 4, 2, 5, 5, 2, 9],
    "conversions": [1, 0, 2, 0, 2, 1, 1, 9],
    "revenue": [10.0, 0.0, 30.0, 0.0, 20.0, 20.0, 10.0, 999.0],
    "level": ["a", "a", "a", "b", "a", "a", "b", "a"],
    "item": ["x", "y", "x", "y", "x", "y", "y", "x"],
}


def write(path: Path, **changes) -> Path:
    pq.write_table(pa.table(TABLE | changes), path)
    return path


def result(path: Path, users: tuple = (), items: tuple = (), **options):
    """Read a test with columns of user cohorts and of item cohorts."""
    config = AbConfig(**options)
    return analyse_ab_test(read_outcomes(path, config.arms, users, items), config)


def test_lifts_by_hand(tmp_path: Path) -> None:
    read = result(write(tmp_path / "ab.parquet"), ("level",), ("item",))
    lifts = read.lifts["all"]
    # revenue: control (10, 30, 0), treatment (40, 10).
    per_user = lifts["revenue_per_user"]
    assert per_user.control == pytest.approx(40 / 3)
    assert per_user.treatment == 25
    assert per_user.lift == pytest.approx(25 / (40 / 3) - 1)
    variances = np.var([40, 10], ddof=1) / 2, np.var([10, 30, 0], ddof=1) / 3
    ratio = 25 / (40 / 3)
    error = math.sqrt(variances[0] + ratio**2 * variances[1]) / (40 / 3)
    assert per_user.high - per_user.lift == pytest.approx(1.959964 * error, rel=1e-5)
    # conversions over impressions: 3/10 against 4/12.
    assert lifts["conversion_rate"].lift == pytest.approx((4 / 12) / (3 / 10) - 1)
    # A cohort of users is about its own users, one of items about all users.
    assert read.lifts["level=a"]["revenue_per_user"].control == 20
    assert read.lifts["item=x"]["revenue_per_user"].control == pytest.approx(40 / 3)
    assert read.lifts["item=y"]["revenue_per_user"].treatment == 15
    assert read.shares == pytest.approx(
        {"all": 1, "level=a": 1, "level=b": 0, "item=x": 1, "item=y": 0}
    )
    assert [one.day for one in read.daily["revenue_per_user"]] == [0, 1]
    assert read.daily["revenue_per_user"][0].lift == pytest.approx(10 / (40 / 3) - 1)
    assert math.isnan(read.daily["revenue_per_user"][1].lift)  # nothing to divide by
    assert (read.days, read.is_simulated) == (2, False)


def test_a_column_of_items_is_about_everyone_whatever_it_holds(tmp_path: Path) -> None:
    # No user has rows in two levels, and still user 3 counts, with 0, in level a.
    read = result(write(tmp_path / "ab.parquet"), items=("level",))
    assert read.lifts["level=a"]["revenue_per_user"].control == pytest.approx(40 / 3)
    assert read.lifts["level=a"]["revenue_per_user"].treatment == 20


def test_a_user_in_two_cohorts_of_users_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ab.parquet", level=["a", "b", *TABLE["level"][2:]])
    with pytest.raises(UserError, match="level: user 1 is in 'a' and in 'b'") as told:
        result(path, ("level",))
    assert str(path) in str(told.value)
    assert "--item-cohort-column" in str(told.value)
    assert set(result(path, items=("level",)).lifts) == {"all", "level=a", "level=b"}


def test_resamples_without_any_conversion_count(tmp_path: Path) -> None:
    # One of the treatment's two users converts, so a quarter of all draws has none.
    # Without those the lowest lift left is -50 %: one conversion of two users.
    path = tmp_path / "ab.parquet"
    columns = {
        "user_id": [1, 2, 3, 4],
        "arm": ["control", "control", "treatment", "treatment"],
        "day": [0] * 4,
        "impressions": [10] * 4,
        "conversions": [1, 1, 1, 0],
        "revenue": [5.0, 5.0, 5.0, 0.0],
    }
    pq.write_table(pa.table(columns), path)
    lifts = result(path, resamples=200).lifts["all"]
    for metric in ("conversions_per_user", "conversion_rate", "revenue_per_user"):
        assert (lifts[metric].bootstrap_low, lifts[metric].bootstrap_high) == (-1, 0)


def test_cohorts_may_be_days_and_are_fifty_at_most(tmp_path: Path) -> None:
    read = result(write(tmp_path / "ab.parquet"), items=("day",), resamples=5)
    assert read.lifts["day=0"]["revenue_per_user"].control == pytest.approx(40 / 3)
    assert read.shares == {"all": 1, "day=0": 1, "day=1": 0}
    values = [str(number) for number in range(51)]
    columns = {
        "user_id": range(51),
        "arm": ["control"] * 25 + ["treatment"] * 26,
        "city": values,
        "one": ["x"] * 51,
    } | {name: [1] * 51 for name in ("day", "impressions", "conversions", "revenue")}
    path = tmp_path / "cities.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=r"city: 51 cohorts .*, 50 at most"):
        result(path, ("city",))
    pq.write_table(pa.table(columns | {"city": [*values[:50], "0"]}), path)
    assert len(result(path, ("city",), resamples=5).lifts) == 51
    with pytest.raises(UserError, match=r"one: 51 cohorts .*, 50 at most"):
        result(path, ("city",), ("one",))


def test_the_delta_method_agrees_with_the_bootstrap(tmp_path: Path) -> None:
    write_ab_replay(tmp_path / "ab.parquet", AbReplayConfig(users=8000))
    read = result(tmp_path / "ab.parquet", resamples=400)
    for metric in METRICS:
        one = read.lifts["all"][metric]
        assert one.bootstrap_low == pytest.approx(
            one.low, abs=0.25 * (one.high - one.low)
        )
        assert one.bootstrap_high - one.bootstrap_low == pytest.approx(
            one.high - one.low, rel=0.2
        )


def test_planted_lifts_are_inside_the_intervals(tmp_path: Path) -> None:
    planted = (0.5, 0.3, 0.1)
    config = AbReplayConfig(users=30_000, user_lifts=planted)
    write_ab_replay(tmp_path / "ab.parquet", config)
    read = result(tmp_path / "ab.parquet", ("user_cohort",), resamples=50)
    assert read.is_simulated
    assert read.days == 9
    for name, lift in zip(("cold", "long_tail", "others"), planted, strict=True):
        one = read.lifts[f"user_cohort={name}"]["conversion_rate"]
        assert one.low < lift < one.high
    assert not read.sample_ratio.is_mismatch
    assert read.lifts["user_cohort=long_tail"]["conversion_rate"].p_value < 0.01


@pytest.mark.slow
def test_both_intervals_cover_a_planted_lift(tmp_path: Path) -> None:
    covered = dict.fromkeys(("delta", "bootstrap"), 0)
    for seed in range(300):
        config = AbReplayConfig(
            users=2500, days=2, user_lifts=(0.2, 0.2, 0.2), seed=seed
        )
        write_ab_replay(tmp_path / "ab.parquet", config)
        one = result(tmp_path / "ab.parquet", resamples=200).lifts["all"][
            "conversion_rate"
        ]
        covered["delta"] += one.low < 0.2 < one.high
        covered["bootstrap"] += one.bootstrap_low < 0.2 < one.bootstrap_high
    # 285 expected of 300; four standard errors are 15.
    assert all(270 <= count <= 299 for count in covered.values()), covered


def test_sample_ratio_by_hand() -> None:
    # 5,000 and 5,300 of 10,300 with equal shares: z = 150 / sqrt(2575) = 2.956.
    is_treatment = np.arange(10_300) < 5_300
    ratio = check_sample_ratio(is_treatment, AbConfig())
    assert ratio.p_value == pytest.approx(0.003116, rel=1e-3)
    assert not ratio.is_mismatch
    assert check_sample_ratio(is_treatment, AbConfig(mismatch_p=0.01)).is_mismatch
    assert check_sample_ratio(is_treatment, AbConfig(treatment_share=0.1)).is_mismatch


def test_app_simulates_says_so_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes, out = tmp_path / "ab.parquet", tmp_path / "ab.json"
    command = ["--outcomes", str(outcomes), "--out", str(out)]
    settings = ["--set", "replay.users=2000", "ab.resamples=20"]
    evaluate_ab.main([*command, "--simulate", *settings])
    printed = capsys.readouterr().out
    assert printed.startswith("SIMULATED")
    assert "sample ratio: " in printed
    body = json.loads(out.read_text())
    assert body["is_simulated"] is True
    assert len(body["daily"]["revenue_per_user"]) == 9
    assert set(body["lifts"]) >= {"all", "user_cohort=cold", "item_cohort=long_tail"}
    users, items = ("user_cohort",), ("item_cohort",)
    again = result(outcomes, users, items, resamples=20)
    assert body["lifts"] == to_json(again.lifts)  # each column of its kind
    # The file itself says what it is: result it later says so again.
    evaluate_ab.main([*command, "--set", "ab.resamples=20"])
    assert capsys.readouterr().out.startswith("SIMULATED")
    before = outcomes.read_bytes()
    evaluate_ab.main([*command, "--simulate", *settings])  # again, as after a failure
    assert outcomes.read_bytes() == before
    columns = ["--user-cohort-column=user_cohort", "--item-cohort-column=item_cohort"]
    evaluate_ab.main([*command, *columns, "--set", "ab.resamples=20"])
    assert json.loads(out.read_text()) == body


def test_days_may_be_dates(tmp_path: Path) -> None:
    days = pa.array(TABLE["day"], pa.int32()).cast(pa.date32())
    dated = result(write(tmp_path / "dates.parquet", day=days))
    numbered = result(write(tmp_path / "numbers.parquet"))
    assert str(dated.daily) == str(numbered.daily)  # undefined ones are equal too


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"revenue": [math.inf] + [0.0] * 7}, "revenue: not finite in row 0"),
        (
            {"conversions": [-1] + [0] * 7},
            "conversions: negative or not finite in",
        ),
        ({"day": ["soon"] * 8}, "day: text that is not a date"),
        ({"revenue": ["a"] * 8}, "revenue: string; a number is needed"),
        ({"impressions": [None] + [1] * 7}, "impressions: null"),
        ({"user_id": [1] * 8}, "user_id: 1 is in both arms"),
        ({"arm": ["control"] * 8}, "arm: no row of 'treatment'"),
        ({"day": [0.5] * 8}, "day: no whole number in rows 0, 1"),
    ],
)
def test_unfit_outcomes_are_refused(tmp_path: Path, changes, message: str) -> None:
    path = write(tmp_path / "ab.parquet", **changes)
    with pytest.raises(UserError, match=message) as refused:
        result(path)
    assert str(path) in str(refused.value)


def test_missing_files_columns_and_unfit_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        result(tmp_path / "none.parquet")
    path = write(tmp_path / "ab.parquet")
    with pytest.raises(UserError, match="no column city"):
        result(path, ("city",))
    for columns in ({"users": ("level", "level")}, {"users": ("x",), "items": ("x",)}):
        with pytest.raises(UserError, match="given twice as a cohort column"):
            result(path, **columns)
    lists = write(tmp_path / "lists.parquet", level=[[1]] * 8)
    with pytest.raises(UserError, match=r"level: list.* values are no cohorts"):
        result(lists, ("level",))
    for unfit in (
        {"treatment_share": 1.0},
        {"resamples": 0},
        {"control": "treatment"},
        {"seed": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(unfit))):
            AbConfig(**unfit)


@pytest.mark.parametrize(
    "unfit",
    [
        {"users": 1},
        {"treatment_share": 0.9},
        {"treatment_share": math.nan},
        {"user_shares": (1.5, -0.25, -0.25)},
        {"item_shares": (0.33333, 0.33333, 0.33333)},
        {"user_impressions": (1.0, -1.0, 1.0)},
        {"user_impressions": (1.0, math.inf, 1.0)},
        {"conversion_rate": -0.1},
        {"conversion_rate": 1.1},
        {"price": -1.0},
        {"user_lifts": (0.1,)},
        {"user_lifts": (-2.0, 0.0, 0.0)},
        {"item_lifts": (0.0, -0.6, 0.0), "user_lifts": (0.0, -0.6, 0.0)},
        {"seed": -1},
    ],
)
def test_unfit_settings_of_a_simulated_test_are_refused(unfit: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(unfit))):
        AbReplayConfig(**unfit)


def test_a_simulated_treatment_may_end_all_conversion(tmp_path: Path) -> None:
    config = AbReplayConfig(users=500, user_lifts=(-1.0, -1.0, -1.0))
    write_ab_replay(tmp_path / "ab.parquet", config)
    lift = result(tmp_path / "ab.parquet", resamples=5).lifts["all"]["conversion_rate"]
    assert (lift.treatment, lift.lift) == (0, -1)
