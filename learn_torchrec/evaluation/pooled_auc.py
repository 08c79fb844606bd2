"""AUC over all rows: P(a positive outranks a negative), of any users.

R resamples in a block, U users.
"""

import math
from typing import NamedTuple

import numpy as np

from learn_torchrec.arrays import Float64Array, Int64Array
from learn_torchrec.evaluation.class_ranks import ranked_scores
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.metric import (
    PairedSums,
    PreparedRows,
    Resampled,
    Totals,
    divide,
)
from learn_torchrec.evaluation.rows import ScoredRows
from learn_torchrec.evaluation.user_auc import count_users


class PooledAuc:
    """The metric "auc"."""

    name = "auc"
    user_statistic = None

    def value(self, totals: Totals, convention: Convention) -> float:
        """Return the AUC; for one class NaN, or 0.5 if the convention says so."""
        pooled = totals.pooled
        pairs = float((pooled.positives * pooled.negatives).sum())
        if pairs:
            return float(pooled.won.sum()) / pairs
        is_half = totals.probabilities.rows and convention.single_class == "half"
        return 0.5 if is_half else math.nan

    def difference(self, baseline: PreparedRows, candidate: PreparedRows) -> Resampled:
        """Return the difference over all rows of resampled users."""
        before, after = (side.get(_sorted_classes) for side in (baseline, candidate))
        return lambda counts: _auc(after, counts) - _auc(before, counts)

    @property
    def paired_sums(self) -> PairedSums:
        """The difference as pairs won over pairs."""
        return PairedSums(_won_more, _auc_gradient)


class _SortedClasses(NamedTuple):
    """Ranks of the positives among the sorted negatives.

    Positive p wins half a pair against each of the `lower[p]` lowest negatives, and
    another half against each of the `upper[p]` lowest.
    """

    negative_users: Int64Array
    negative_weights: Float64Array
    positive_users: Int64Array
    positive_weights: Float64Array
    lower: Int64Array
    upper: Int64Array


def _sorted_classes(rows: ScoredRows, convention: Convention) -> _SortedClasses:
    weights, scores = rows.row_weights(), ranked_scores(rows, convention)
    negatives = np.flatnonzero(~rows.is_positive)
    negatives = negatives[np.argsort(scores[negatives])]
    positives = np.flatnonzero(rows.is_positive)
    positives = positives[np.argsort(scores[positives])]
    below, no_higher = (
        np.searchsorted(scores[negatives], scores[positives], side=side)
        for side in ("left", "right")
    )
    return _SortedClasses(
        negative_users=rows.users[negatives],
        negative_weights=weights[negatives],
        positive_users=rows.users[positives],
        positive_weights=weights[positives],
        lower=no_higher if convention.ties == "positive" else below,
        upper=below if convention.ties == "negative" else no_higher,
    )


def _won_more(baseline: PreparedRows, candidate: PreparedRows) -> Float64Array:
    """Return the pairs of each user's rows that are won more, and both weights [3, U].

    A pair is counted with its positive's user and with its negative's.
    """
    before, after = (_won_pairs(side) for side in (baseline, candidate))
    rows, users = baseline.rows, baseline.get(count_users)
    gained = np.bincount(rows.users, after - before, rows.num_users)
    return np.stack([gained, users.positives, users.negatives])


def _won_pairs(side: PreparedRows) -> Float64Array:
    scores = ranked_scores(side.rows, side.convention)
    won = side.ranks.of(side.rows.is_positive, scores)
    return won if side.rows.weights is None else won * side.rows.weights


def _auc_gradient(sums: Float64Array) -> Float64Array:
    gained, positives, negatives = sums
    pairs = positives * negatives
    if pairs <= 0:
        return np.full(3, math.nan)
    difference = gained / 2 / pairs
    return np.array([1 / pairs, -difference / positives, -difference / negatives])


def _auc(pairs: _SortedClasses, counts: Float64Array) -> Float64Array:
    """Return the AUC [R] over all rows, users counted `counts` [R, U] times."""
    negative = counts[:, pairs.negative_users] * pairs.negative_weights
    positive = counts[:, pairs.positive_users] * pairs.positive_weights
    # below[:, n] is the weight of the n lowest negatives.
    below = np.zeros((len(counts), len(pairs.negative_users) + 1))
    np.cumsum(negative, axis=1, out=below[:, 1:])
    beaten = (below[:, pairs.lower] + below[:, pairs.upper]) / 2
    won = np.einsum("rp,rp->r", positive, beaten)
    return divide(won, positive.sum(axis=1) * below[:, -1])


AUC = PooledAuc()
