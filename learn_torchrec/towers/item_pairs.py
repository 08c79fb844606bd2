"""Whether vectors tell items that people take together from random pairs (I2I).

Letters: P pairs, N items, C dims, U users.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from learn_torchrec.arrays import (
    AnyArray,
    Float32Array,
    Float64Array,
    Int64Array,
)
from learn_torchrec.jagged import spread
from learn_torchrec.towers.holdout import RetrievalTask

_PAIRS_AT_ONCE = 65_536
_BINS = 50


@dataclass(frozen=True)
class ItemPairs:
    """Pairs of items that a user took one after the other, and random ones.

    Attributes:
        users: int64 [P], the user of each pair.
        first: int64 [P], rows of items.
        second: int64 [P], of what the user took next, another item.
        random: int64 [P], the seconds of other pairs: as popular, taken after something
            else.
    """

    users: Int64Array
    first: Int64Array
    second: Int64Array
    random: Int64Array

    @classmethod
    def of(cls, task: RetrievalTask, most: int) -> Self:
        """Return up to `most` pairs whose second is held out.

        What was trained on earlier events has met none of them.
        """
        starts = task.last_history + 1
        events, offsets = spread(starts, task.sequences.ends - starts)
        items = task.sequences.items
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        pairs = np.stack([users, items[events - 1], items[events]]).astype(np.int64)
        pairs = pairs[:, pairs[1] != pairs[2]]
        generator = np.random.default_rng(0)
        if pairs.shape[1] > most:
            chosen = generator.choice(pairs.shape[1], most, replace=False)
            pairs = pairs[:, np.sort(chosen)]
        random = generator.permutation(pairs[2])
        users, first, second = pairs
        different = first != random
        return cls(
            users[different], first[different], second[different], random[different]
        )

    def compare(self, vectors: AnyArray) -> "PairCosines":
        """Return the cosines of the pairs by some vectors [N, C]."""
        scaled = _unit(vectors)
        return PairCosines(
            self.users,
            _products(scaled, self.first, self.second),
            _products(scaled, self.first, self.random),
        )


@dataclass(frozen=True)
class PairCosines:
    """Cosines of `ItemPairs`.

    Attributes:
        users: int64 [P].
        taken: float64 [P], of pairs that a user took one after the other.
        random: float64 [P], of random pairs.
    """

    users: Int64Array
    taken: Float64Array
    random: Float64Array

    def by_user(self) -> tuple[Float64Array, Int64Array]:
        """Return each user's pair AUC, float64 [U], and number of pairs, int64 [U].

        A pair's AUC is the share of all random pairs that are less alike, ties half.
        The mean over users weighted by their pairs is the AUC of all pairs.
        """
        ordered = np.sort(self.random)
        below = np.searchsorted(ordered, self.taken, "left")
        up_to = np.searchsorted(ordered, self.taken, "right")
        won = (below + up_to) / 2 / max(1, len(ordered))
        owners, counts = np.unique(self.users, return_inverse=True, return_counts=True)[
            1:
        ]
        return np.bincount(owners, won) / counts, counts

    def histogram(self) -> dict[str, Any]:
        """Return the shares of both kinds of pairs in equal bins of the cosine."""
        both = np.concatenate([self.taken, self.random])
        edges = np.linspace(both.min(), both.max(), _BINS + 1)
        shares = {
            name: np.histogram(values, edges)[0] / max(1, len(values))
            for name, values in (("taken", self.taken), ("random", self.random))
        }
        return {
            "edges": edges.round(4).tolist(),
            **{name: share.round(5).tolist() for name, share in shares.items()},
        }


def _unit(vectors: AnyArray) -> Float32Array:
    scaled = vectors.astype(np.float32)
    scaled /= np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    return scaled


def _products(
    vectors: Float32Array, first: Int64Array, second: Int64Array
) -> Float64Array:
    found = np.empty(len(first))
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        found[part] = (vectors[first[part]] * vectors[second[part]]).sum(1)
    return found
