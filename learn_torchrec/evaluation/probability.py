"""Log loss, NE and calibration: scores read as probabilities.

N rows.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from learn_torchrec.arrays import BoolArray, Float64Array
from learn_torchrec.evaluation.pairs import Scores

# Keeps log(p) finite where a float32 sigmoid saturates to exactly 0 or 1.
_PROBABILITY_FLOOR = 1e-12


@dataclass(frozen=True, kw_only=True)
class ProbabilitySums:
    """Sums over rows behind log loss, NE and calibration.

    Attributes:
        rows: rows counted.
        positives: rows with label 1.
        weight: sum of the weights.
        positive_weight: sum of the positives' weights.
        score: weighted sum of the scores.
        log_loss: weighted sum of the binary cross-entropies.
        outside: rows whose score lies outside [0, 1].
    """

    rows: int = 0
    positives: int = 0
    weight: float = 0.0
    positive_weight: float = 0.0
    score: float = 0.0
    log_loss: float = 0.0
    outside: int = 0

    def __add__(self, other: "ProbabilitySums") -> "ProbabilitySums":
        return ProbabilitySums(
            **{
                field.name: getattr(self, field.name) + getattr(other, field.name)
                for field in fields(self)
            }
        )

    def mean_log_loss(self) -> float:
        """Return the log loss; NaN unless all scores are in [0, 1]."""
        return self.log_loss / self.weight if self._are_probabilities else math.nan

    def normalised_entropy(self) -> float:
        """Return log loss relative to the base rate's; also NaN for one class."""
        base_rate = self.positive_weight / self.weight if self.rows else 0.0
        if not self._are_probabilities or not 0 < base_rate < 1:
            return math.nan
        return self.mean_log_loss() / float(binary_entropy(np.float64(base_rate)))

    def calibration(self) -> float:
        """Return sum of scores over sum of labels; also NaN without positives."""
        if not self._are_probabilities or not self.positive_weight:
            return math.nan
        return self.score / self.positive_weight

    @property
    def _are_probabilities(self) -> bool:
        return bool(self.rows) and not self.outside


def probability_sums(
    is_positive: BoolArray, scores: Scores, weights: Float64Array | None
) -> ProbabilitySums:
    """Return the sums behind log loss, NE and calibration of checked columns."""
    if not len(scores):
        return ProbabilitySums()
    outside = int(((scores < 0) | (scores > 1)).sum())
    values = scores.astype(np.float64)
    surprise = binary_cross_entropy(is_positive, values)
    positives = int(is_positive.sum())
    if weights is None:
        sums = (len(scores), positives, values.sum(), surprise.sum())
    else:
        values *= weights
        surprise *= weights
        positive_weight = weights[is_positive].sum()
        sums = (weights.sum(), positive_weight, values.sum(), surprise.sum())
    weight, positive_weight, score, log_loss = map(float, sums)
    return ProbabilitySums(
        rows=len(scores),
        positives=positives,
        weight=weight,
        positive_weight=positive_weight,
        score=score,
        log_loss=log_loss,
        outside=outside,
    )


def binary_cross_entropy(
    is_positive: BoolArray, probabilities: Float64Array
) -> Float64Array:
    """Return -log of the probability of each row's label, float64 [N]."""
    likelihood = np.where(is_positive, probabilities, 1 - probabilities)
    np.maximum(likelihood, _PROBABILITY_FLOOR, out=likelihood)
    np.log(likelihood, out=likelihood)
    return np.negative(likelihood, out=likelihood)


def binary_entropy(base_rate: Any) -> Any:
    """Return the entropy in nats of a label with this base rate; 0 at 0 and 1."""
    is_mixed = (base_rate > 0) & (base_rate < 1)
    rate = np.where(is_mixed, base_rate, 0.5)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    return np.where(is_mixed, entropy, 0.0)
