"""The metrics that read scores as probabilities: NE, log loss and calibration.

U users, R resamples in a block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from learn_torchrec.arrays import Float64Array
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.metric import (
    PairedSums,
    PreparedRows,
    Resampled,
    Totals,
    divide,
    ratio_gradient,
)
from learn_torchrec.evaluation.probability import (
    ProbabilitySums,
    binary_cross_entropy,
    binary_entropy,
)
from learn_torchrec.evaluation.rows import ScoredRows


class UserSums(NamedTuple):
    """Sums over every user's rows, float64 [U].

    Attributes:
        log_loss: weighted binary cross-entropies; NaN for all users if any score lies
            outside [0, 1].
        score: weighted scores; NaN likewise.
        weight: weights.
        positive_weight: weights of the positives.
    """

    log_loss: Float64Array
    score: Float64Array
    weight: Float64Array
    positive_weight: Float64Array


def sum_users(rows: ScoredRows, convention: Convention) -> UserSums:
    """Return the sums behind resampled differences."""
    scores, weights = rows.scores.astype(np.float64), rows.probability_weights()
    weights = np.ones(len(scores)) if weights is None else weights

    def by_user(values: Float64Array) -> Float64Array:
        return np.bincount(rows.users, values, rows.num_users).astype(np.float64)

    if ((scores < 0) | (scores > 1)).any():
        log_loss = score = np.full(rows.num_users, math.nan)
    else:
        surprise = binary_cross_entropy(rows.is_positive, scores)
        log_loss, score = by_user(weights * surprise), by_user(weights * scores)
    positive_weight = by_user(weights * rows.is_positive)
    return UserSums(log_loss, score, by_user(weights), positive_weight)


def total_sums(side: PreparedRows) -> ProbabilitySums:
    """Return the sums over all rows, from those of the users."""
    rows, users = side.rows, side.get(sum_users)
    log_loss, score, weight, positive_weight = (float(one.sum()) for one in users)
    return ProbabilitySums(
        rows=len(rows.scores),
        positives=int(rows.is_positive.sum()),
        weight=weight,
        positive_weight=positive_weight,
        score=score,
        log_loss=log_loss,
        outside=int(((rows.scores < 0) | (rows.scores > 1)).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class ProbabilityMetric:
    """A metric of sums over rows.

    Attributes:
        name: see `Metric`.
        of_sums: computes the metric.
        of_changes: computes its difference [R] from `UserSums` [R] that hold the
            changes of log loss and score, and the weights of both sides.
        gradient: derivatives [4] of that difference by `UserSums` [4].
    """

    name: str
    of_sums: Callable[[ProbabilitySums], float]
    of_changes: Callable[[UserSums], Float64Array]
    gradient: Callable[[Float64Array], Float64Array]
    user_statistic: None = None

    def value(self, totals: Totals, convention: Convention) -> float:
        """Return the metric; NaN unless all scores are in [0, 1]."""
        return self.of_sums(totals.probabilities)

    def difference(self, baseline: PreparedRows, candidate: PreparedRows) -> Resampled:
        """Return the difference, users weighted by how often they were drawn."""
        changes = _changes(baseline, candidate)
        return lambda counts: self.of_changes(
            UserSums._make(counts @ change for change in changes)
        )

    @property
    def paired_sums(self) -> PairedSums:
        """The difference as a function of the sums."""
        return PairedSums(lambda *sides: np.stack(_changes(*sides)), self.gradient)


def _changes(baseline: PreparedRows, candidate: PreparedRows) -> UserSums:
    before, after = (side.get(sum_users) for side in (baseline, candidate))
    return before._replace(
        log_loss=after.log_loss - before.log_loss, score=after.score - before.score
    )


def _log_loss_change(changes: UserSums) -> Float64Array:
    return divide(changes.log_loss, changes.weight)


def _ne_change(changes: UserSums) -> Float64Array:
    base_rate = divide(changes.positive_weight, changes.weight)
    return divide(_log_loss_change(changes), binary_entropy(base_rate))


def _calibration_change(changes: UserSums) -> Float64Array:
    return divide(changes.score, changes.positive_weight)


def _log_loss_gradient(sums: Float64Array) -> Float64Array:
    log_loss, _, weight, _ = sums
    by_log_loss, by_weight = ratio_gradient(np.array([log_loss, weight]))
    return np.array([by_log_loss, 0.0, by_weight, 0.0])


def _calibration_gradient(sums: Float64Array) -> Float64Array:
    _, score, _, positive_weight = sums
    by_score, by_positives = ratio_gradient(np.array([score, positive_weight]))
    return np.array([0.0, by_score, 0.0, by_positives])


def _ne_gradient(sums: Float64Array) -> Float64Array:
    log_loss, _, weight, positive_weight = sums
    rate = positive_weight / weight if weight > 0 else 0.0
    if not 0 < rate < 1:
        return np.full(4, math.nan)
    entropy = float(binary_entropy(rate))
    # By the base rate: d entropy / d rate = log((1 - rate) / rate).
    by_rate = -log_loss / weight / entropy**2 * math.log((1 - rate) / rate)
    by_weight = -(log_loss / weight / entropy + by_rate * rate) / weight
    return np.array([1 / (weight * entropy), 0.0, by_weight, by_rate / weight])


NE = ProbabilityMetric(
    name="ne",
    of_sums=ProbabilitySums.normalised_entropy,
    of_changes=_ne_change,
    gradient=_ne_gradient,
)
LOG_LOSS = ProbabilityMetric(
    name="log_loss",
    of_sums=ProbabilitySums.mean_log_loss,
    of_changes=_log_loss_change,
    gradient=_log_loss_gradient,
)
CALIBRATION = ProbabilityMetric(
    name="calibration",
    of_sums=ProbabilitySums.calibration,
    of_changes=_calibration_change,
    gradient=_calibration_gradient,
)
