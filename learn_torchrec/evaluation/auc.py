"""Ranking metrics of a score column: AUC, UAUC, WUAUC, NE, log loss, calibration.

`METRICS` lists those that tables, gates, the paired bootstrap and the report know.
`stream.py` computes the same metrics of rows that do not fit in memory.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from learn_torchrec.arrays import Column
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.likelihood import CALIBRATION, LOG_LOSS, NE
from learn_torchrec.evaluation.metric import Metric, PreparedRows, Totals, UserStatistic
from learn_torchrec.evaluation.ndcg import UNDCG
from learn_torchrec.evaluation.pairs import GroupPairs, count_pairs
from learn_torchrec.evaluation.pooled_auc import AUC
from learn_torchrec.evaluation.probability import ProbabilitySums, probability_sums
from learn_torchrec.evaluation.rows import ScoredRows, prepare_rows
from learn_torchrec.evaluation.user_auc import UAUC, WUAUC, count_users

DEFAULT_METRICS: tuple[Metric, ...] = (AUC, UAUC, WUAUC, NE, LOG_LOSS, CALIBRATION)
METRICS: dict[str, Metric] = {one.name: one for one in (*DEFAULT_METRICS, UNDCG)}

# Metrics by name, NaN where undefined, then counts: `rows` of positive weight, distinct
# `users` among them, `users_kept` with both classes, and `positives`.
RankingMetrics: TypeAlias = dict[str, float]


def evaluate_auc(
    user_ids: Column,
    labels: Column,
    scores: Column,
    weights: Column | None = None,
    *,
    clicks: Column | None = None,
    sampling_rates: Column | None = None,
    convention: Convention = PAPER,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
) -> RankingMetrics:
    """Compute ranking and probability metrics of one score column.

    Args:
        user_ids: [N] int64 or string, NumPy or pyarrow.
        labels: [N] of 0 and 1.
        scores: [N] finite numbers. Log loss, NE and calibration read them as
            probabilities and are NaN when any lies outside [0, 1].
        weights: [N] non-negative sample weights, by default 1. A pair counts
            weight(positive) * weight(negative). Rows of weight 0 are padding and
            count nowhere.
        clicks: [N] non-negative numbers, for `user_weight="clicks"`.
        sampling_rates: [N] in (0, 1], by default 1: the chance with which a row with
            label 0 was kept. It counts 1 / rate in log loss, NE and calibration, which
            are then those among all rows; in the AUCs it counts once.
        convention: which users count, by what weight, and who wins a tie.
        metrics: some of `METRICS`, or your own. By default:
            `auc` pooled over all rows: P(a positive outranks a negative), ties 1/2;
            `uauc` mean over the kept users of the AUC within the user;
            `wuauc` the same weighted by the user's impressions (sum of weights);
            `ne` normalised entropy: log loss relative to predicting the base rate;
            `log_loss` mean binary cross-entropy in nats;
            `calibration` sum of scores over sum of labels; 1 is calibrated.

    Returns:
        The metrics; NaN where undefined (no rows, one class, no kept user).

    Raises:
        UserError: columns of different lengths, ids neither int64 nor string, labels
            other than 0 and 1, non-finite scores, negative or non-finite weights,
            rates outside (0, 1], no clicks where the convention needs them, or weights,
            clicks or rates outside 1e-100 to 1e100.

    Example:
        >>> metrics = evaluate_auc([1, 1, 2, 2], [1, 0, 1, 0], [0.9, 0.2, 0.5, 0.5])
        >>> metrics["uauc"]
        0.75
    """
    rows = prepare_rows(user_ids, labels, scores, weights, clicks, sampling_rates)
    return metrics_of(totals_of(rows, convention, metrics), convention, metrics)


def named_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Return metrics by their names, in the order given.

    Raises:
        UserError: an unknown name.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"no metric {unknown[0]!r}; choose from {', '.join(METRICS)}")
    return tuple(METRICS[name] for name in dict.fromkeys(names))


def totals_of(
    rows: ScoredRows,
    convention: Convention = PAPER,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
) -> Totals:
    """Return the sums behind the metrics of checked rows."""
    prepared = PreparedRows(rows, convention)
    return Totals(
        users={one: prepared.get(one) for one in user_statistics(metrics)},
        pooled=prepared.get(_pooled_pairs),
        probabilities=prepared.get(_probability_sums),
    )


def user_statistics(metrics: Sequence[Metric]) -> list[UserStatistic]:
    """Return the distinct user statistics that metrics need, `count_users` always."""
    needed = (one.user_statistic for one in metrics)
    return list(dict.fromkeys([count_users, *(one for one in needed if one)]))


def metrics_of(
    totals: Totals,
    convention: Convention = PAPER,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
) -> RankingMetrics:
    """Return metrics and counts from the sums, under a convention.

    Raises:
        UserError: the convention weights by clicks, which are missing.
    """
    users = totals.users[count_users]
    kept = users.positives * users.negatives > 0
    return {
        **{one.name: one.value(totals, convention) for one in metrics},
        "rows": totals.probabilities.rows,
        "users": len(kept),
        "users_kept": int(kept.sum()),
        "positives": totals.probabilities.positives,
    }


def _pooled_pairs(rows: ScoredRows, convention: Convention) -> GroupPairs:
    columns = (rows.is_positive, rows.scores, rows.weights, convention.ties)
    return count_pairs(np.zeros_like(rows.users), 1, *columns)


def _probability_sums(rows: ScoredRows, convention: Convention) -> ProbabilitySums:
    weights = rows.probability_weights()
    return probability_sums(rows.is_positive, rows.scores, weights)
