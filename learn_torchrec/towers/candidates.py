"""The candidates of a training step, drawn from a catalogue too large to compare with.

Letters: N items, K candidates.
"""

import numpy as np

from learn_torchrec.arrays import Float64Array, Int64Array


class CandidateSampler:
    """Draws half of a step's candidates uniformly and half by their training events.

    Popular items make up most of the softmax's sum and are nearly always there; the
    uniform half reaches every item. Dividing a candidate's exponential by the
    probability that it is drawn makes the sum over candidates an unbiased estimate of
    the catalogue's (Horvitz and Thompson, 1952).

    Args:
        counts: int64 [N], training events of each item.
        size: draws of a step; K is below it by the items that are drawn twice.

    Attributes:
        inclusion: float64 [N], probability that an item is among a step's candidates.
    """

    inclusion: Float64Array

    def __init__(self, counts: Int64Array, size: int) -> None:
        num_items = len(counts)
        self._uniform = min(num_items, size - size // 2)
        self._popular = size // 2 if counts.sum() else 0
        share = counts / max(1, counts.sum())
        self._upper = share.cumsum()
        missed = (1 - share) ** self._popular
        self.inclusion = 1 - (1 - self._uniform / num_items) * missed

    def draw(self, seed: int, epoch: int, step: int) -> Int64Array:
        """Return the candidates of a step, int64 [K] catalogue rows, ascending."""
        random = np.random.default_rng([seed, epoch, step])
        num_items = len(self._upper)
        uniform = random.choice(num_items, self._uniform, replace=False, shuffle=False)
        places = random.random(self._popular) * self._upper[-1]
        popular = np.searchsorted(self._upper, places, side="right")
        rows: Int64Array = np.unique(np.r_[uniform, popular])
        return rows
