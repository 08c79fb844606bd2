"""Results of an A/B test from user-day outcomes: lifts, intervals, daily series.

Users are randomised, so users are the unit of analysis: a user's days are summed before
anything is compared. Rates (conversions per impression, revenue per impression) are
ratios of two such sums. The delta method gives their variance; a bootstrap over users
checks it without linearisation.

N user-days, U users of both arms, R resamples.
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
from learn_torchrec.evaluation.cohorts import ALL

# The outcomes in each metric's numerator and denominator (None: number of users).
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
    """Design of a test, and how it is analysed.

    Attributes:
        control: name of the control arm in the column `arm`.
        treatment: name of the treatment arm.
        treatment_share: share of the test's users assigned to the treatment.
        mismatch_p: the sample ratio is a mismatch if its p-value is below this.
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
    """Relative difference of a metric between the arms; NaN where undefined.

    Attributes:
        control: the metric in the control arm.
        treatment: the metric in the treatment arm.
        lift: treatment over control, minus 1.
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
    bootstrap_low: float = math.nan
    bootstrap_high: float = math.nan


class SampleRatio(NamedTuple):
    """Whether the arms have the expected sizes.

    Attributes:
        control_users: number of users in the control arm.
        treatment_users: number of users in the treatment arm.
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
class AbResult:
    """All results of one test.

    Attributes:
        sample_ratio: the check to look at first.
        lifts: by cohort ("all" first) and metric.
        shares: share of the control arm's revenue, by cohort.
        daily: by metric, one entry per day.
        days: number of days.
        is_simulated: whether the outcomes were generated, not observed.
    """

    sample_ratio: SampleRatio
    lifts: dict[str, dict[str, Lift]]
    shares: dict[str, float]
    daily: dict[str, list[DayLift]]
    days: int
    is_simulated: bool


def analyse_ab_test(outcomes: Outcomes, config: AbConfig) -> AbResult:
    """Return sample ratio, lifts by cohort with intervals, and daily series."""
    is_treatment = outcomes.is_treatment
    cohorts = {
        name: (_user_sums(outcomes, cohort.rows), cohort.members)
        for name, cohort in outcomes.cohorts.items()
    }
    intervals = _bootstrap(cohorts, is_treatment, config)
    lifts = {
        name: {
            metric: _lift(sums, members, is_treatment, metric)._replace(
                bootstrap_low=low, bootstrap_high=high
            )
            for metric, (low, high) in intervals[name].items()
        }
        for name, (sums, members) in cohorts.items()
    }
    revenues = {
        name: sums[~is_treatment, OUTCOMES.index(REVENUE)].sum()
        for name, (sums, _) in cohorts.items()
    }
    total = revenues[ALL]
    shares = {
        name: float(revenue / total) if total else math.nan
        for name, revenue in revenues.items()
    }
    _, everyone = cohorts[ALL]
    daily: dict[str, list[DayLift]] = {metric: [] for metric in METRICS}
    days = np.unique(outcomes.days)
    for day in days:
        sums = _user_sums(outcomes, outcomes.days == day)
        for metric in METRICS:
            one = _lift(sums, everyone, is_treatment, metric)
            daily[metric].append(DayLift(int(day), one.lift, one.low, one.high))
    return AbResult(
        sample_ratio=check_sample_ratio(is_treatment, config),
        lifts=lifts,
        shares=shares,
        daily=daily,
        days=len(days),
        is_simulated=outcomes.is_simulated,
    )


def check_sample_ratio(is_treatment: BoolArray, config: AbConfig) -> SampleRatio:
    """Test the arms' sizes against their expected shares."""
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
    """Return each user's outcomes summed over some rows, float64 [U, 3]."""
    users, num_users = outcomes.users[rows], len(outcomes.is_treatment)
    columns = [
        np.bincount(users, values, num_users) for values in outcomes.values[rows].T
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _lift(
    sums: Float64Array, members: BoolArray, is_treatment: BoolArray, metric: str
) -> Lift:
    """Return a metric's lift with the delta method's interval, without bootstrap."""
    (control, control_variance), (treatment, treatment_variance) = (
        _mean_and_variance(sums[members & (is_treatment == arm)], metric)
        for arm in (False, True)
    )
    if not control > 0 or math.isnan(treatment):
        return Lift(control, treatment, math.nan, math.nan, math.nan, math.nan)
    ratio = treatment / control
    variance = (treatment_variance + ratio**2 * control_variance) / control**2
    error = math.sqrt(variance)
    lift, reach = ratio - 1, _NORMAL_95 * error
    p_value = math.erfc(abs(lift) / error / math.sqrt(2)) if error > 0 else math.nan
    return Lift(control, treatment, lift, lift - reach, lift + reach, p_value)


def _mean_and_variance(sums: Float64Array, metric: str) -> tuple[float, float]:
    """Return a metric of one arm and the variance of that estimate."""
    above, below = METRICS[metric]
    numerator = sums[:, OUTCOMES.index(above)]
    denominator = np.ones(len(sums))
    if below is not None:
        denominator = sums[:, OUTCOMES.index(below)]
    num_users, total = len(sums), float(denominator.sum())
    if num_users < 2 or not total:
        return math.nan, math.nan
    value = float(numerator.sum()) / total
    residual = (numerator - value * denominator) * (num_users / total)
    return value, float(residual.var(ddof=1)) / num_users


def _bootstrap(
    cohorts: Mapping[str, tuple[Float64Array, BoolArray]],
    is_treatment: BoolArray,
    config: AbConfig,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the intervals by cohort and metric, all from the same draws of users."""
    generator = np.random.default_rng(config.seed)
    totals = {}
    for arm in (False, True):
        in_arm = is_treatment == arm
        # Per cohort: the three outcomes, and 1 for its members.
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
    """Return a metric [R] of resampled totals [R, 4], NaN where undefined."""
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
