"""Intervals without resampling: each user's influence on a paired difference.

Where a difference is a smooth function of sums over users, its variance over draws of
users is the sum of the squares of the users' influences, their first-order effects
(the infinitesimal jackknife). Two sums per metric suffice, so rows stream, and ranks
merge. On data of more than some fifty users the intervals are as wide as those of the
bootstrap over users (`significance.paired_bootstrap`), which they replace where a
thousand resamples of all rows would take days.

U users, D summands of a user.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from learn_torchrec.arrays import Column, Float64Array
from learn_torchrec.evaluation.auc import (
    DEFAULT_METRICS,
    RankingMetrics,
    metrics_of,
    totals_of,
)
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.metric import Metric, PairedSums, PreparedRows
from learn_torchrec.evaluation.rows import prepare_rows
from learn_torchrec.evaluation.significance import PairedDifference

_NORMAL_97_5 = 1.959963984540054  # standard normal quantile


class UserMoments(NamedTuple):
    """First and second moments of the summands of users; those of parts add up.

    Attributes:
        users: that count.
        sums: float64 [D].
        products: float64 [D, D], sums of products of two summands of one user.
    """

    users: int
    sums: Float64Array
    products: Float64Array

    def merge(self, other: "UserMoments") -> "UserMoments":
        """Return the moments of both parts' users."""
        return UserMoments(
            self.users + other.users,
            self.sums + other.sums,
            self.products + other.products,
        )


def paired_influence(  # noqa: PLR0913  the arguments of `evaluate_auc` and one more
    user_ids: Column,
    labels: Column,
    baseline_scores: Column,
    candidate_scores: Column,
    weights: Column | None = None,
    *,
    clicks: Column | None = None,
    sampling_rates: Column | None = None,
    convention: Convention = PAPER,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
) -> dict[str, PairedDifference]:
    """Compare two score columns of the same rows by the influence of their users.

    The arguments are those of `evaluate_auc`. `paired_stream.PairedStream` does the
    same with rows that come in batches.

    Returns:
        The difference of each metric that has one, by name.

    Raises:
        UserError: see `evaluate_auc`.
    """
    before, after = (
        PreparedRows(
            prepare_rows(user_ids, labels, scores, weights, clicks, sampling_rates),
            convention,
        )
        for scores in (baseline_scores, candidate_scores)
    )
    values_before, values_after = (
        metrics_of(totals_of(side.rows, convention, metrics), convention, metrics)
        for side in (before, after)
    )
    moments = moments_of(before, after, metrics)
    return summarise(values_before, values_after, moments, metrics)


def mean_difference(
    pairs: Sequence[tuple[PreparedRows, PreparedRows]], metric: Metric
) -> PairedDifference:
    """Compare two models of several seeds by a metric, averaged over the seeds.

    A user's influence is averaged over the seeds as the difference is: the interval is
    over users, for the seeds at hand.

    Args:
        pairs: baseline and candidate of each seed, of the same rows.
        metric: that has `paired_sums`.
    """
    sums = metric.paired_sums
    if sums is None:
        raise ValueError(f"{metric.name} is no function of sums over users")
    observed, influences = [], []
    for before, after in pairs:
        convention = before.convention
        values = (
            metrics_of(totals_of(side.rows, convention, [metric]), convention, [metric])
            for side in (before, after)
        )
        first, second = (one[metric.name] for one in values)
        observed.append(second - first)
        vectors = sums.vectors(before, after)
        influences.append(sums.gradient(vectors.sum(axis=1)) @ vectors)
    influence = np.mean(influences, axis=0)
    users, deviation = len(influence), math.nan
    if users > 1:
        deviation = math.sqrt(float(influence @ influence) * users / (users - 1))
    return _difference(float(np.mean(observed)), deviation)


def moments_of(
    before: PreparedRows, after: PreparedRows, metrics: Sequence[Metric]
) -> dict[str, UserMoments]:
    """Return the moments of rows of whole users, by metric."""
    result = {}
    for name, sums in _paired_sums(metrics).items():
        vectors = sums.vectors(before, after)
        result[name] = UserMoments(
            vectors.shape[1], vectors.sum(axis=1), vectors @ vectors.T
        )
    return result


def summarise(
    before: RankingMetrics,
    after: RankingMetrics,
    moments: Mapping[str, UserMoments],
    metrics: Sequence[Metric],
) -> dict[str, PairedDifference]:
    """Return the differences of metrics with normal 95 % intervals and p-values."""
    return {
        name: _difference(after[name] - before[name], _deviation(sums, moments[name]))
        for name, sums in _paired_sums(metrics).items()
    }


def _paired_sums(metrics: Sequence[Metric]) -> dict[str, PairedSums]:
    return {one.name: one.paired_sums for one in metrics if one.paired_sums is not None}


def _deviation(sums: PairedSums, moments: UserMoments) -> float:
    """Return the standard deviation of a difference over draws of users."""
    if moments.users < 2:  # a single user does not tell how users differ
        return math.nan
    gradient = sums.gradient(moments.sums)
    variance = float(gradient @ moments.products @ gradient)
    if math.isnan(variance):
        return math.nan
    return math.sqrt(max(0.0, variance * moments.users / (moments.users - 1)))


def _difference(observed: float, deviation: float) -> PairedDifference:
    if math.isnan(observed) or math.isnan(deviation):
        return PairedDifference(observed, math.nan, math.nan, math.nan)
    margin = _NORMAL_97_5 * deviation
    if deviation:
        p_value = math.erfc(abs(observed) / deviation / math.sqrt(2))
    else:
        p_value = float(observed == 0)
    return PairedDifference(observed, observed - margin, observed + margin, p_value)
