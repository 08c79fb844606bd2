"""Paired bootstrap over users: is one score column better than another?

Impressions of one user are not independent, so users are resampled, not rows.
Both columns see the same resamples, which removes most of the variance that
comes from which users were drawn. Where many cohorts and metrics are looked at, some
p-value is small by chance: `adjust_p_values` corrects a family of them.

U users, N rows, R resamples in a block.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.arrays import Column, Float64Array, Int64Array
from learn_torchrec.evaluation.auc import (
    ScoredRows,
    count_users,
    prepare_rows,
    users_that_count,
)
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.pairs import break_ties
from learn_torchrec.evaluation.probability import binary_cross_entropy, binary_entropy

_BLOCK_ELEMENTS = 1 << 22  # float64 values of one [R, N] working array: 32 MiB
_INTERVAL = (2.5, 97.5)


class PairedDifference(NamedTuple):
    """Candidate minus baseline. NaN where the metric is undefined.

    Attributes:
        difference: on the rows as they are.
        low: lower end of the 95 % percentile interval.
        high: upper end.
        p_value: two-sided, for "no difference"; at least 2 / (resamples + 1).
        p_adjusted: the p-value among all comparisons of its family (Holm); NaN until
            `adjust_p_values` has seen the family.
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float = math.nan


class _PooledPairs(NamedTuple):
    """Where each positive stands among the sorted negatives: fixed by the scores.

    Positive p wins half of its pairs with the `lower[p]` lowest negatives, and half of
    those with the `upper[p]` lowest.
    """

    negative_users: Int64Array
    negative_weights: Float64Array
    positive_users: Int64Array
    positive_weights: Float64Array
    lower: Int64Array
    upper: Int64Array


class _UserSums(NamedTuple):
    """Sums over every user's rows, float64 [U]; NaN where scores are no probabilities.

    `log_loss` and `score` are weighted sums over the rows of one column.
    """

    log_loss: Float64Array
    score: Float64Array


class _Comparison(NamedTuple):
    """All that the differences need of the rows, whichever users are drawn.

    Attributes:
        counted_users: [K] that the convention counts.
        gain: [K] candidate's AUC within the user minus the baseline's.
        user_weight: [K] of the user in WUAUC.
        weight: [U] sum of the user's weights.
        positive_weight: [U] of the positives.
        baseline: pairs of the pooled AUC.
        candidate: pairs of the pooled AUC.
        baseline_sums: of the probability metrics.
        candidate_sums: of the probability metrics.
    """

    counted_users: Int64Array
    gain: Float64Array
    user_weight: Float64Array
    weight: Float64Array
    positive_weight: Float64Array
    baseline: _PooledPairs
    candidate: _PooledPairs
    baseline_sums: _UserSums
    candidate_sums: _UserSums


def paired_bootstrap(  # noqa: PLR0913  the arguments of `evaluate_auc`, and of draws
    user_ids: Column,
    labels: Column,
    baseline_scores: Column,
    candidate_scores: Column,
    weights: Column | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    *,
    clicks: Column | None = None,
    convention: Convention = PAPER,
) -> dict[str, PairedDifference]:
    """Compare two score columns of the same rows, resampling users.

    Args:
        user_ids: [N] int64 or string.
        labels: [N] of 0 and 1.
        baseline_scores: [N] finite numbers.
        candidate_scores: [N] finite numbers.
        weights: [N] sample weights, as for `evaluate_auc`.
        num_resamples: how many times U users are drawn with replacement.
        seed: of the draws.
        clicks: [N], as for `evaluate_auc`.
        convention: of AUC, UAUC and WUAUC, as for `evaluate_auc`.

    Returns:
        The difference of "auc", "uauc", "wuauc", "ne", "log_loss" and "calibration".
        Resamples in which a metric is undefined (no pair drawn) are left out of its
        interval.

    Raises:
        UserError: see `evaluate_auc`; fewer than one resample.
    """
    if num_resamples < 1:
        raise UserError(f"num_resamples {num_resamples}: use 1 or more")
    baseline, candidate = (
        prepare_rows(user_ids, labels, scores, weights, clicks)
        for scores in (baseline_scores, candidate_scores)
    )
    num_users = baseline.num_users
    comparison = _compare(baseline, candidate, convention)
    observed = _differences(comparison, np.ones((1, num_users)))
    block = max(1, _BLOCK_ELEMENTS // max(len(baseline.users), 1))
    blocks = [
        _differences(comparison, counts)
        for counts in _resamples(num_users, num_resamples, block, seed)
    ]
    return {
        name: _summarise(
            float(observed[name][0]), np.concatenate([drawn[name] for drawn in blocks])
        )
        for name in observed
    }


def adjust_p_values(
    family: Sequence[PairedDifference],
) -> list[PairedDifference]:
    """Return the same differences with Holm's adjusted p-values.

    The smallest of m p-values is multiplied by m, the next by m - 1 and so on, never
    below the one before: a bound on the chance of even one false finding among all m.
    Undefined differences do not count.
    """
    defined = [i for i, one in enumerate(family) if not math.isnan(one.p_value)]
    defined.sort(key=lambda i: family[i].p_value)
    adjusted = list(family)
    largest = 0.0
    for place, i in enumerate(defined):
        scaled = family[i].p_value * (len(defined) - place)
        largest = min(1.0, max(largest, scaled))
        adjusted[i] = family[i]._replace(p_adjusted=largest)
    return adjusted


def _resamples(
    num_users: int, num_resamples: int, block: int, seed: int
) -> Iterator[Float64Array]:
    """Yield [R, U] blocks of how often each user was drawn (multinomial counts)."""
    generator = np.random.default_rng(seed)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        if not num_users:
            yield np.zeros((size, 0))
            continue
        drawn = generator.integers(num_users, size=(size, num_users))
        drawn += np.arange(size)[:, None] * num_users
        counts = np.bincount(drawn.ravel(), minlength=size * num_users)
        yield counts.reshape(size, num_users).astype(np.float64)


def _compare(
    baseline: ScoredRows, candidate: ScoredRows, convention: Convention
) -> _Comparison:
    before, after = (
        users_that_count(count_users(rows, convention), convention)
        for rows in (baseline, candidate)
    )
    weights = baseline.row_weights()
    # Which users count depends on the labels alone, so they are the same users.
    return _Comparison(
        counted_users=before.user_index,
        gain=after.auc - before.auc,
        user_weight=before.weights,
        weight=_by_user(baseline, weights),
        positive_weight=_by_user(baseline, weights * baseline.is_positive),
        baseline=_pooled_pairs(baseline, convention),
        candidate=_pooled_pairs(candidate, convention),
        baseline_sums=_user_sums(baseline),
        candidate_sums=_user_sums(candidate),
    )


def _by_user(rows: ScoredRows, values: Float64Array) -> Float64Array:
    """Return the sums [U] of the users' values [N]."""
    return np.bincount(rows.users, values, rows.num_users).astype(np.float64)


def _user_sums(rows: ScoredRows) -> _UserSums:
    scores = rows.scores.astype(np.float64)
    if ((scores < 0) | (scores > 1)).any():
        undefined = np.full(rows.num_users, math.nan)
        return _UserSums(undefined, undefined)
    weights = rows.row_weights()
    surprise = binary_cross_entropy(rows.is_positive, scores)
    return _UserSums(
        _by_user(rows, weights * surprise), _by_user(rows, weights * scores)
    )


def _differences(
    comparison: _Comparison, counts: Float64Array
) -> dict[str, Float64Array]:
    """Return each metric's difference [R], users counted as `counts` [R, U] says."""
    kept = counts[:, comparison.counted_users]
    gain, weight = comparison.gain, comparison.user_weight
    return {
        "auc": _pooled_auc(comparison.candidate, counts)
        - _pooled_auc(comparison.baseline, counts),
        "uauc": _divide(kept @ gain, kept.sum(axis=1)),
        "wuauc": _divide(kept @ (weight * gain), kept @ weight),
        **_probability_differences(comparison, counts),
    }


def _probability_differences(
    comparison: _Comparison, counts: Float64Array
) -> dict[str, Float64Array]:
    before, after = comparison.baseline_sums, comparison.candidate_sums
    weight = counts @ comparison.weight
    positive = counts @ comparison.positive_weight
    log_loss = _divide(counts @ (after.log_loss - before.log_loss), weight)
    base_rate = _divide(positive, weight)
    entropy = binary_entropy(base_rate)
    return {
        "ne": _divide(log_loss, entropy),
        "log_loss": log_loss,
        "calibration": _divide(counts @ (after.score - before.score), positive),
    }


def _pooled_pairs(rows: ScoredRows, convention: Convention) -> _PooledPairs:
    weights, scores = rows.row_weights(), rows.scores
    if convention.ties == "first":
        scores = break_ties(scores)
    negatives = np.flatnonzero(~rows.is_positive)
    negatives = negatives[np.argsort(scores[negatives])]
    positives = np.flatnonzero(rows.is_positive)
    positives = positives[np.argsort(scores[positives])]
    below, no_higher = (
        np.searchsorted(scores[negatives], scores[positives], side=side)
        for side in ("left", "right")
    )
    return _PooledPairs(
        negative_users=rows.users[negatives],
        negative_weights=weights[negatives],
        positive_users=rows.users[positives],
        positive_weights=weights[positives],
        lower=no_higher if convention.ties == "positive" else below,
        upper=below if convention.ties == "negative" else no_higher,
    )


def _pooled_auc(pairs: _PooledPairs, counts: Float64Array) -> Float64Array:
    """Return the AUC [R] over all rows, each weighted by its user's count."""
    negative = counts[:, pairs.negative_users] * pairs.negative_weights
    positive = counts[:, pairs.positive_users] * pairs.positive_weights
    # below[:, n] is the weight of the n lowest negatives.
    below = np.zeros((len(counts), len(pairs.negative_users) + 1))
    np.cumsum(negative, axis=1, out=below[:, 1:])
    beaten = (below[:, pairs.lower] + below[:, pairs.upper]) / 2
    won = np.einsum("rp,rp->r", positive, beaten)
    return _divide(won, positive.sum(axis=1) * below[:, -1])


def _divide(numerator: Float64Array, denominator: Float64Array) -> Float64Array:
    result = np.full(len(numerator), math.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _summarise(observed: float, drawn: Float64Array) -> PairedDifference:
    drawn = drawn[np.isfinite(drawn)]
    if math.isnan(observed) or not len(drawn):
        return PairedDifference(math.nan, math.nan, math.nan, math.nan)
    low, high = np.percentile(drawn, _INTERVAL)
    # One is added to both sides of the fraction: the data count as one resample,
    # and no finite number of resamples proves p = 0.
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p_value = min(1.0, 2 * (tail + 1) / (len(drawn) + 1))
    return PairedDifference(observed, float(low), float(high), float(p_value))
