"""AUC over all rows and within users, exactly, plus NE, log loss and calibration.

Users whose rows are all of one class are left out of UAUC and WUAUC, the usual
convention of the two metrics the paper reports for its ranker; `conventions.py` names
the others. `stream.py` computes the same of rows that do not fit in memory.

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
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.pairs import GroupPairs, Scores, count_pairs
from learn_torchrec.evaluation.probability import ProbabilitySums, probability_sums
from learn_torchrec.schema import CLICK, LABEL, SCORE, USER_ID, WEIGHT


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
    """AUC of every user that counts.

    Attributes:
        user_index: int64 [K], ascending; users are numbered in order of their
            first row of positive weight.
        auc: float64 [K].
        weights: float64 [K], the user's in WUAUC: the impressions (sum of the row
            weights), where no convention says otherwise.
    """

    user_index: Int64Array
    auc: Float64Array
    weights: Float64Array


class Columns(NamedTuple):
    """Checked columns of the rows of positive weight.

    Attributes:
        is_positive: bool [N].
        scores: float32 or float64 [N], finite.
        weights: float64 [N], positive; None for 1.
        clicks: float64 [N], or None where there is no such column.
        kept: bool, which of the rows given these are; None for all.
    """

    is_positive: BoolArray
    scores: Scores
    weights: Float64Array | None
    clicks: Float64Array | None
    kept: BoolArray | None


class ScoredRows(NamedTuple):
    """Checked rows of positive weight, ready for the metrics.

    Attributes:
        users: int64 [N] in [0, num_users), numbered by first appearance.
        num_users: U.
        is_positive: bool [N].
        scores: float32 or float64 [N], finite.
        weights: float64 [N], positive; None for 1.
        clicks: float64 [N], or None.
    """

    users: Int64Array
    num_users: int
    is_positive: BoolArray
    scores: Scores
    weights: Float64Array | None
    clicks: Float64Array | None = None

    def row_weights(self) -> Float64Array:
        """Return the weights [N], written out."""
        return np.ones(len(self.users)) if self.weights is None else self.weights


class UserPairs(NamedTuple):
    """What every convention needs of each user, float64 [U]; see `GroupPairs`.

    Attributes:
        won: pairs in which the positive outranks the negative.
        positives: sum of the positives' weights.
        negatives: sum of the negatives' weights.
        clicks: sum of the clicks, or None where there is no such column.
    """

    won: Float64Array
    positives: Float64Array
    negatives: Float64Array
    clicks: Float64Array | None


class Totals(NamedTuple):
    """Everything that the metrics of a table are made from."""

    users: UserPairs
    pooled: GroupPairs
    probabilities: ProbabilitySums


def evaluate_auc(
    user_ids: Column,
    labels: Column,
    scores: Column,
    weights: Column | None = None,
    *,
    clicks: Column | None = None,
    convention: Convention = PAPER,
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
        clicks: [N] non-negative numbers, for `user_weight="clicks"`.
        convention: which users count, by what weight, and who wins a tie.

    Returns:
        The metrics; NaN where undefined (no rows, one class, no kept user).

    Raises:
        UserError: columns of different lengths, ids of another type, labels other
            than 0 and 1, non-finite scores, negative or non-finite weights, or no
            clicks where the convention needs them.

    Example:
        >>> metrics = evaluate_auc([1, 1, 2, 2], [1, 0, 1, 0], [0.9, 0.2, 0.5, 0.5])
        >>> metrics.uauc
        0.75
    """
    rows = prepare_rows(user_ids, labels, scores, weights, clicks)
    return metrics_of(totals_of(rows, convention), convention)


def per_user_auc(
    user_ids: Column, labels: Column, scores: Column, weights: Column | None = None
) -> PerUserAuc:
    """Return the AUC of every user with both classes; arguments of `evaluate_auc`."""
    rows = prepare_rows(user_ids, labels, scores, weights)
    return users_that_count(count_users(rows), PAPER)


def totals_of(rows: ScoredRows, convention: Convention = PAPER) -> Totals:
    """Return the sums behind the metrics of checked rows."""
    everyone = np.zeros_like(rows.users)
    columns = (rows.is_positive, rows.scores, rows.weights, convention.ties)
    return Totals(
        users=count_users(rows, convention),
        pooled=count_pairs(everyone, 1, *columns),
        probabilities=probability_sums(rows.is_positive, rows.scores, rows.weights),
    )


def metrics_of(totals: Totals, convention: Convention = PAPER) -> RankingMetrics:
    """Return the metrics that a convention makes of the sums.

    Raises:
        UserError: the convention weights by clicks, and there are none.
    """
    users, pooled, sums = totals
    uauc, wuauc = user_means(users, convention)
    pairs = float((pooled.positives * pooled.negatives).sum())
    undefined = 0.5 if sums.rows and convention.single_class == "half" else math.nan
    log_loss, ne, calibration = sums.metrics()
    kept = users.positives * users.negatives > 0
    return RankingMetrics(
        auc=float(pooled.won.sum()) / pairs if pairs else undefined,
        uauc=uauc,
        wuauc=wuauc,
        ne=ne,
        log_loss=log_loss,
        calibration=calibration,
        rows=sums.rows,
        users=len(kept),
        users_kept=int(kept.sum()),
        positives=sums.positives,
    )


def user_means(users: UserPairs, convention: Convention) -> tuple[float, float]:
    """Return (UAUC, WUAUC) under a convention; NaN without users.

    Raises:
        UserError: the convention weights by clicks, and there are none.
    """
    _, auc, weights = users_that_count(users, convention)
    if not len(auc):
        return math.nan, math.nan
    total = float(weights.sum())
    weighted = float((weights * auc).sum()) / total if total else math.nan
    return float(auc.mean()), weighted


def users_that_count(users: UserPairs, convention: Convention) -> PerUserAuc:
    """Return the AUC and the weight of the users that a convention counts.

    Raises:
        UserError: the convention weights by clicks, and there are none.
    """
    pairs = users.positives * users.negatives
    auc = np.full(len(pairs), 0.5)
    np.divide(users.won, pairs, out=auc, where=pairs > 0)
    is_counted = pairs > 0
    if convention.single_class == "half":
        is_counted = np.ones(len(pairs), dtype=bool)
    counted = np.flatnonzero(is_counted)
    weights = _user_weights(users, convention)
    return PerUserAuc(counted, auc[counted], weights[counted])


def _user_weights(users: UserPairs, convention: Convention) -> Float64Array:
    if convention.user_weight == "positives":
        return users.positives
    if convention.user_weight == "none":
        return np.ones(len(users.won))
    if convention.user_weight == "impressions":
        return users.positives + users.negatives
    if users.clicks is None:
        raise UserError(
            f"{CLICK}: no such column, and user_weight=clicks needs it; add it to the "
            "predictions or weight by impressions"
        )
    return users.clicks


def prepare_rows(
    user_ids: Column,
    labels: Column,
    scores: Column,
    weights: Column | None = None,
    clicks: Column | None = None,
) -> ScoredRows:
    """Check the columns and drop rows of weight 0; arguments of `evaluate_auc`.

    Raises:
        UserError: see `evaluate_auc`.
    """
    users, num_users = encode_ids(user_ids, USER_ID)
    columns = check_columns(len(users), labels, scores, weights, clicks)
    if columns.kept is not None:
        users, num_users = encode_ids(users[columns.kept], USER_ID)
    return ScoredRows(
        users=users,
        num_users=num_users,
        is_positive=columns.is_positive,
        scores=columns.scores,
        weights=columns.weights,
        clicks=columns.clicks,
    )


def check_columns(
    length: int,
    labels: Column,
    scores: Column,
    weights: Column | None = None,
    clicks: Column | None = None,
    first_row: int = 0,
) -> Columns:
    """Check the columns beside the ids and drop rows of weight 0.

    Args:
        length: N, the number of ids.
        labels: see `evaluate_auc`, as the next three.
        scores: [N].
        weights: [N], or None.
        clicks: [N], or None.
        first_row: number of the first row, for messages.

    Raises:
        UserError: see `evaluate_auc`.
    """

    def refuse(is_bad: BoolArray, problem: str, mend: str) -> None:
        if is_bad.any():
            raise UserError(f"{problem} in {name_rows(is_bad, first_row)}; {mend}")

    label_values = _as_numbers(labels, LABEL, length)
    score_values = _as_float(scores, SCORE, length)
    weight_values: Float64Array | None = None
    click_values: Float64Array | None = None
    kept: BoolArray | None = None
    if weights is not None:
        weight_values = _as_float(weights, WEIGHT, length).astype(np.float64)
        refuse(
            ~np.isfinite(weight_values) | (weight_values < 0),
            f"{WEIGHT}: negative or not finite",
            "weights must be 0 (ignore the row) or more",
        )
        if not weight_values.all():
            kept = weight_values > 0
    is_used = np.True_ if kept is None else kept
    refuse(
        is_used & (label_values != 0) & (label_values != 1),
        f"{LABEL}: neither 0 nor 1",
        "write labels as 0 or 1",
    )
    refuse(
        is_used & ~np.isfinite(score_values),
        f"{SCORE}: not finite",
        "find what made the NaN or infinity before evaluating",
    )
    if clicks is not None:
        click_values = _as_float(clicks, CLICK, length).astype(np.float64)
        refuse(
            is_used & ~(click_values >= 0),
            f"{CLICK}: negative or not a number",
            "clicks must be 0 or more",
        )
    columns = (label_values == 1, score_values, weight_values, click_values)
    if kept is None:
        return Columns._make([*columns, None])
    return Columns._make([*(c if c is None else c[kept] for c in columns), kept])


def count_users(rows: ScoredRows, convention: Convention = PAPER) -> UserPairs:
    """Return what every user's pairs and clicks add up to."""
    columns = (rows.is_positive, rows.scores, rows.weights, convention.ties)
    clicks: Float64Array | None = None
    if rows.clicks is not None:
        clicks = np.bincount(rows.users, rows.clicks, rows.num_users).astype(np.float64)
    pairs = count_pairs(rows.users, rows.num_users, *columns)
    return UserPairs(*pairs, clicks)


def _as_float(column: Column, name: str, length: int) -> Scores:
    """Return a column as float32 if it is that already, else as float64."""
    values = _as_numbers(column, name, length)
    return values if values.dtype == np.float32 else values.astype(np.float64)


def _as_numbers(column: Column, name: str, length: int) -> np.ndarray:
    values = np.asarray(column)
    if values.dtype.kind not in "biuf":
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError):
            raise UserError(f"{name}: not numeric; write numbers") from None
    if values.shape != (length,):
        raise UserError(
            f"{name}: shape {list(values.shape)}, {USER_ID} has {length} rows; "
            "pass one value per row"
        )
    return values
