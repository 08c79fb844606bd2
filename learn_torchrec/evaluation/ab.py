"""Reading an A/B test from per-user-day outcomes: lifts, intervals, daily series.

Users are what was assigned, so users are what varies: a user's days are summed before
anything is compared. Rates (conversions per impression, revenue per impression) are
ratios of two such sums, whose variance the delta method gives; a bootstrap over users
gives the same without its linearisation.

N user-days, U users of an arm, C cohorts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from learn_torchrec.arrays import BoolArray, Float64Array
from learn_torchrec.config import Share, configuration, require
from learn_torchrec.evaluation.ab_outcomes import (
    CONVERSIONS,
    IMPRESSIONS,
    OUTCOMES,
    REVENUE,
    Outcomes,
)

# Metric: outcome of its numerator, and of its denominator (None: users).
METRICS: dict[str, tuple[str, str | None]] = {
    "revenue_per_user": (REVENUE, None),
    "conversions_per_user": (CONVERSIONS, None),
    "impressions_per_user": (IMPRESSIONS, None),
    "conversion_rate": (CONVERSIONS, IMPRESSIONS),
    "revenue_per_impression": (REVENUE, IMPRESSIONS),
}
_NORMAL_95 = 1.959963984540054


@configuration
class AbConfig:
    """How a test is read.

    Attributes:
        control: name of the control arm in the column `arm`.
        treatment: name of the other.
        treatment_share: users meant for the treatment, of those in the test.
        mismatch_p: a sample ratio less likely than this is a mismatch.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    control: str = "control"
    treatment: str = "treatment"
    treatment_share: Share = 0.5
    mismatch_p: Share = 0.001
    resamples: PositiveInt = 1000
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        require(
            self.control != self.treatment,
            f"control: {self.control!r} is the treatment too",
        )

    @property
    def arms(self) -> tuple[str, str]:
        """Control and treatment."""
        return self.control, self.treatment


class Lift(NamedTuple):
    """Treatment over control, minus 1. NaN where undefined.

    Attributes:
        control: the metric in the control arm.
        treatment: in the treatment arm.
        lift: relative difference.
        low: lower end of the delta method's 95 % interval.
        high: upper end.
        p_value: two-sided, for "no lift", by the delta method.
        bootstrap_low: lower end of the bootstrap's 95 % interval.
        bootstrap_high: upper end.
    """

    control: float
    treatment: float
    lift: float
    low: float
    high: float
    p_value: float
    bootstrap_low: float
    bootstrap_high: float


class SampleRatio(NamedTuple):
    """Whether the arms have the sizes they were meant to have.

    Attributes:
        control_users: users seen in the control arm.
        treatment_users: users seen in the treatment arm.
        expected_share: of the treatment.
        p_value: of a chi-square test with one degree of freedom.
        is_mismatch: no other result of the test can be trusted.
    """

    control_users: int
    treatment_users: int
    expected_share: float
    p_value: float
    is_mismatch: bool

    @property
    def verdict(self) -> str:
        """What to print beside the p-value."""
        return "MISMATCH: trust no result below" if self.is_mismatch else "as expected"


class DayLift(NamedTuple):
    """One day's lift of a metric, by the delta method."""

    day: int
    lift: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class AbReading:
    """Everything read from one test.

    Attributes:
        sample_ratio: the check to look at first.
        lifts: by cohort ("all" first) and metric.
        shares: of the control arm's revenue, by cohort.
        daily: by metric, one entry a day.
        days: how many days.
        is_simulated: the outcomes were generated, not observed.
    """

    sample_ratio: SampleRatio
    lifts: dict[str, dict[str, Lift]]
    shares: dict[str, float]
    daily: dict[str, list[DayLift]]
    days: int
    is_simulated: bool


def read_ab(outcomes: Outcomes, config: AbConfig) -> AbReading:
    """Read a test: sample ratio, lifts by cohort with intervals, daily series."""
    num_users = len(outcomes.is_treatment)
    lifts = {}
    shares = {}
    revenue = OUTCOMES.index(REVENUE)
    whole = _user_sums(outcomes, np.ones(len(outcomes.users), dtype=bool))
    in_control = ~outcomes.is_treatment
    cohorts = {}
    for name, (rows, members) in outcomes.cohorts.items():
        sums = _user_sums(outcomes, rows)
        cohorts[name] = (sums, members)
        total = whole[in_control, revenue].sum()
        part = sums[in_control, revenue].sum()
        shares[name] = float(part / total) if total else math.nan
    drawn = _bootstrap(cohorts, outcomes.is_treatment, config)
    for name, (sums, members) in cohorts.items():
        lifts[name] = {
            metric: _lift(sums, members, outcomes.is_treatment, metric)._replace(
                bootstrap_low=low, bootstrap_high=high
            )
            for metric, (low, high) in drawn[name].items()
        }
    everyone = np.ones(num_users, dtype=bool)
    daily: dict[str, list[DayLift]] = {metric: [] for metric in METRICS}
    days = np.unique(outcomes.days)
    for day in days:
        sums = _user_sums(outcomes, outcomes.days == day)
        for metric in METRICS:
            one = _lift(sums, everyone, outcomes.is_treatment, metric)
            daily[metric].append(DayLift(int(day), one.lift, one.low, one.high))
    return AbReading(
        sample_ratio=check_sample_ratio(outcomes.is_treatment, config),
        lifts=lifts,
        shares=shares,
        daily=daily,
        days=len(days),
        is_simulated=outcomes.is_simulated,
    )


def check_sample_ratio(is_treatment: BoolArray, config: AbConfig) -> SampleRatio:
    """Test the arms' sizes against the shares they were meant to have."""
    total, treatment = len(is_treatment), int(is_treatment.sum())
    expected = config.treatment_share * total
    variance = expected * (1 - config.treatment_share)
    p_value = math.erfc(math.sqrt((treatment - expected) ** 2 / variance / 2))
    return SampleRatio(
        control_users=total - treatment,
        treatment_users=treatment,
        expected_share=config.treatment_share,
        p_value=p_value,
        is_mismatch=p_value < config.mismatch_p,
    )


def _user_sums(outcomes: Outcomes, rows: BoolArray) -> Float64Array:
    """Return every user's outcomes summed over some rows, float64 [U, 3]."""
    users, num_users = outcomes.users[rows], len(outcomes.is_treatment)
    columns = [
        np.bincount(users, values, num_users) for values in outcomes.values[rows].T
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _lift(
    sums: Float64Array, members: BoolArray, is_treatment: BoolArray, metric: str
) -> Lift:
    """Return a metric's lift with the delta method's interval; no bootstrap yet."""
    control, treatment = (
        _mean_and_variance(sums[members & (is_treatment == arm)], metric)
        for arm in (False, True)
    )
    undefined = [math.nan] * 6
    if not control[0] > 0 or math.isnan(treatment[0]):
        return Lift(control[0], treatment[0], *undefined)
    ratio = treatment[0] / control[0]
    variance = (treatment[1] + ratio**2 * control[1]) / control[0] ** 2
    error = math.sqrt(variance)
    p_value = math.nan
    if error > 0:
        p_value = math.erfc(abs(ratio - 1) / error / math.sqrt(2))
    reach = _NORMAL_95 * error
    lift = ratio - 1
    return Lift(
        control[0],
        treatment[0],
        lift,
        lift - reach,
        lift + reach,
        p_value,
        math.nan,
        math.nan,
    )


def _mean_and_variance(sums: Float64Array, metric: str) -> tuple[float, float]:
    """Return a metric of one arm and the variance of that estimate."""
    numerator, denominator = _columns(sums, metric)
    num_users, total = len(sums), float(denominator.sum())
    if num_users < 2 or not total:
        return math.nan, math.nan
    value = float(numerator.sum()) / total
    residual = (numerator - value * denominator) * (num_users / total)
    return value, float(residual.var(ddof=1)) / num_users


def _columns(sums: Float64Array, metric: str) -> tuple[Float64Array, Float64Array]:
    above, below = METRICS[metric]
    numerator = sums[..., OUTCOMES.index(above)]
    if below is None:
        return numerator, np.ones_like(numerator)
    return numerator, sums[..., OUTCOMES.index(below)]


def _bootstrap(
    cohorts: Mapping[str, tuple[Float64Array, BoolArray]],
    is_treatment: BoolArray,
    config: AbConfig,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the interval of every lift, all from the same draws of users."""
    generator = np.random.default_rng(config.seed)
    totals = {}
    for arm in (False, True):
        in_arm = is_treatment == arm
        # Per cohort: the three outcomes, and 1 for a user the cohort is about.
        blocks = [
            np.column_stack([sums[in_arm], members[in_arm]])
            for sums, members in cohorts.values()
        ]
        stacked = np.concatenate(blocks, axis=1)
        totals[arm] = _resampled_totals(stacked, config, generator)
    result: dict[str, dict[str, tuple[float, float]]] = {}
    for place, name in enumerate(cohorts):
        block = slice(4 * place, 4 * place + 4)
        result[name] = {}
        for metric in METRICS:
            control, treatment = (
                _rates(totals[arm][:, block], metric) for arm in (False, True)
            )
            control[control <= 0] = math.nan
            result[name][metric] = _percentiles(treatment / control - 1)
    return result


def _rates(totals: Float64Array, metric: str) -> Float64Array:
    """Return a metric [R] of resampled totals [R, 4], NaN where it is undefined."""
    above, below = METRICS[metric]
    denominator = totals[:, 3 if below is None else OUTCOMES.index(below)]
    rate = np.full(len(totals), math.nan)
    numerator = totals[:, OUTCOMES.index(above)]
    return np.divide(numerator, denominator, out=rate, where=denominator > 0)


def _resampled_totals(
    sums: Float64Array, config: AbConfig, generator: np.random.Generator
) -> Float64Array:
    """Return the column sums [R, K] of users [U, K] drawn with replacement."""
    num_users = len(sums)
    totals = np.empty((config.resamples, sums.shape[1]))
    for resample in range(config.resamples):
        drawn = generator.integers(num_users, size=num_users)
        totals[resample] = np.bincount(drawn, minlength=num_users) @ sums
    return totals


def _percentiles(drawn: Float64Array) -> tuple[float, float]:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return math.nan, math.nan
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)
