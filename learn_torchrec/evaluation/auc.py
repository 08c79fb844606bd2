"""AUC over all rows and within users, exactly, plus NE, log loss and calibration.

Users whose rows are all of one class are left out of UAUC and WUAUC, the usual
convention of the two metrics the paper reports for its ranker. Libraries that give
such users 0.5, or merge users only within a batch, print numbers that differ by far
more than rankers do.

N rows, U distinct users, K users kept (both classes present).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.arrays import (
    BoolArray,
    Column,
    Float64Array,
    Int64Array,
    encode_ids,
    name_rows,
)
from learn_torchrec.schema import LABEL, SCORE, USER_ID, WEIGHT

# Keeps log(p) finite where a float32 sigmoid saturates to exactly 0 or 1.
_PROBABILITY_FLOOR = 1e-12


@dataclass(frozen=True)
class RankingMetrics:
    """Metrics of one score column. NaN where a metric is undefined.

    Attributes:
        auc: pooled over all rows: P(a positive outranks a negative), ties count 1/2.
        uauc: mean over the kept users of the AUC within the user.
        wuauc: the same mean weighted by the user's impressions (sum of weights).
        ne: normalised entropy: log loss over that of predicting the base rate.
        log_loss: mean binary cross-entropy in nats.
        calibration: sum of scores over sum of labels; 1 is calibrated.
        rows: rows of positive weight.
        users: distinct users among them.
        users_kept: users with at least one positive and one negative.
        positives: rows with label 1.
    """

    auc: float
    uauc: float
    wuauc: float
    ne: float
    log_loss: float
    calibration: float
    rows: int
    users: int
    users_kept: int
    positives: int


class PerUserAuc(NamedTuple):
    """AUC of every kept user.

    Attributes:
        user_index: int64 [K], ascending; users are numbered in order of their
            first row of positive weight.
        auc: float64 [K].
        impressions: float64 [K], the sum of the user's weights.
    """

    user_index: Int64Array
    auc: Float64Array
    impressions: Float64Array


class ScoredRows(NamedTuple):
    """Checked rows of positive weight, ready for the metrics.

    Attributes:
        users: int64 [N] in [0, num_users), numbered by first appearance.
        num_users: U.
        is_positive: bool [N].
        scores: float64 [N], finite.
        weights: float64 [N], positive.
    """

    users: Int64Array
    num_users: int
    is_positive: BoolArray
    scores: Float64Array
    weights: Float64Array


def evaluate_auc(
    user_ids: Column, labels: Column, scores: Column, weights: Column | None = None
) -> RankingMetrics:
    """Compute ranking and probability metrics of one score column.

    Args:
        user_ids: [N] int64 or string, NumPy or pyarrow.
        labels: [N] of 0 and 1.
        scores: [N] finite numbers. Log loss, NE and calibration read them as
            probabilities and are NaN when any lies outside [0, 1].
        weights: [N] non-negative sample weights, by default 1. A pair counts
            weight(positive) * weight(negative). Rows of weight 0 are padding and
            are left out of everything.

    Returns:
        The metrics; NaN where undefined (no rows, one class, no kept user).

    Raises:
        UserError: columns of different lengths, ids of another type, labels other
            than 0 and 1, non-finite scores, negative or non-finite weights.

    Example:
        >>> metrics = evaluate_auc([1, 1, 2, 2], [1, 0, 1, 0], [0.9, 0.2, 0.5, 0.5])
        >>> metrics.uauc
        0.75
    """
    rows = prepare_rows(user_ids, labels, scores, weights)
    by_user = _auc_by_group(rows, rows.users, rows.num_users)
    uauc, wuauc = mean_auc(by_user)
    pooled = _auc_by_group(rows, np.zeros_like(rows.users), 1).auc
    log_loss, ne, calibration = _probability_metrics(rows)
    return RankingMetrics(
        auc=float(pooled[0]) if len(pooled) else math.nan,
        uauc=uauc,
        wuauc=wuauc,
        ne=ne,
        log_loss=log_loss,
        calibration=calibration,
        rows=len(rows.users),
        users=rows.num_users,
        users_kept=len(by_user.auc),
        positives=int(rows.is_positive.sum()),
    )


def per_user_auc(
    user_ids: Column, labels: Column, scores: Column, weights: Column | None = None
) -> PerUserAuc:
    """Return the AUC of every user with both classes; arguments of `evaluate_auc`."""
    rows = prepare_rows(user_ids, labels, scores, weights)
    return user_auc(rows)


def user_auc(rows: ScoredRows) -> PerUserAuc:
    """`per_user_auc` of rows that `prepare_rows` has checked."""
    return _auc_by_group(rows, rows.users, rows.num_users)


def mean_auc(by_user: PerUserAuc) -> tuple[float, float]:
    """Return (UAUC, WUAUC) of per-user AUCs; NaN without users."""
    if not len(by_user.auc):
        return math.nan, math.nan
    weighted = by_user.impressions @ by_user.auc / by_user.impressions.sum()
    return float(by_user.auc.mean()), float(weighted)


def prepare_rows(
    user_ids: Column, labels: Column, scores: Column, weights: Column | None = None
) -> ScoredRows:
    """Check the columns and drop rows of weight 0; arguments of `evaluate_auc`.

    Raises:
        UserError: see `evaluate_auc`.
    """
    users, num_users = encode_ids(user_ids, USER_ID)
    label_values = _as_float(labels, LABEL, len(users))
    score_values = _as_float(scores, SCORE, len(users))
    if weights is None:
        weight_values = np.ones(len(users))
    else:
        weight_values = _as_float(weights, WEIGHT, len(users))
    _refuse(
        ~np.isfinite(weight_values) | (weight_values < 0),
        f"{WEIGHT}: negative or not finite",
        "weights must be 0 (ignore the row) or more",
    )
    keep = weight_values > 0
    _refuse(
        keep & (label_values != 0) & (label_values != 1),
        f"{LABEL}: neither 0 nor 1",
        "write labels as 0 or 1",
    )
    _refuse(
        keep & ~np.isfinite(score_values),
        f"{SCORE}: not finite",
        "find what made the NaN or infinity before evaluating",
    )
    if not keep.all():
        users, num_users = encode_ids(users[keep], USER_ID)
        label_values, score_values = label_values[keep], score_values[keep]
        weight_values = weight_values[keep]
    return ScoredRows(users, num_users, label_values == 1, score_values, weight_values)


def _as_float(column: Column, name: str, length: int) -> Float64Array:
    try:
        values = np.asarray(column).astype(np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name}: not numeric; write numbers") from None
    if values.shape != (length,):
        raise UserError(
            f"{name}: shape {list(values.shape)}, {USER_ID} has {length} rows; "
            "pass one value per row"
        )
    return values


def _refuse(is_bad: BoolArray, problem: str, mend: str) -> None:
    if is_bad.any():
        raise UserError(f"{problem} in {name_rows(is_bad)}; {mend}")


def _auc_by_group(rows: ScoredRows, groups: Int64Array, num_groups: int) -> PerUserAuc:
    """Mann-Whitney AUC within every group that has both classes: one sort in all."""
    if not len(groups):
        nothing = np.zeros(0)
        return PerUserAuc(np.zeros(0, np.int64), nothing, nothing)
    order = np.lexsort((rows.scores, groups))
    group, score = groups[order], rows.scores[order]
    weight, is_positive = rows.weights[order], rows.is_positive[order]
    is_new_group = np.diff(group, prepend=-1) != 0
    # A tie block is a run of equal scores within one group.
    is_new_block = is_new_group.copy()
    is_new_block[1:] |= score[1:] != score[:-1]
    block_starts = np.flatnonzero(is_new_block)
    positive = np.add.reduceat(weight * is_positive, block_starts)
    negative = np.add.reduceat(weight * ~is_positive, block_starts)
    block_group = group[block_starts]

    first_block = np.flatnonzero(is_new_group[block_starts])
    below = np.cumsum(negative) - negative
    below -= np.repeat(
        below[first_block], np.diff(first_block, append=len(block_starts))
    )
    won = np.bincount(block_group, positive * (below + negative / 2), num_groups)
    all_positive = np.bincount(block_group, positive, num_groups)
    all_negative = np.bincount(block_group, negative, num_groups)
    pairs = all_positive * all_negative
    kept = np.flatnonzero(pairs > 0)
    impressions: Float64Array = np.asarray(all_positive + all_negative, np.float64)
    return PerUserAuc(kept, won[kept] / pairs[kept], impressions[kept])


def _probability_metrics(rows: ScoredRows) -> tuple[float, float, float]:
    """Return (log loss, NE, calibration); NaN unless all scores lie in [0, 1]."""
    scores, weights = rows.scores, rows.weights
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return math.nan, math.nan, math.nan
    total = weights.sum()
    positive = weights[rows.is_positive].sum()
    clipped = np.clip(scores, _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)
    likelihood = np.where(rows.is_positive, clipped, 1 - clipped)
    log_loss = float(-(weights @ np.log(likelihood)) / total)
    calibration = float(weights @ scores / positive) if positive else math.nan
    base_rate = positive / total
    if not 0 < base_rate < 1:
        return log_loss, math.nan, calibration
    entropy = -(
        base_rate * math.log(base_rate) + (1 - base_rate) * math.log(1 - base_rate)
    )
    return log_loss, float(log_loss / entropy), calibration
