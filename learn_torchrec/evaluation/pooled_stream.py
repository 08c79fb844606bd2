"""Pairs of all rows of all ranks, counted range of scores by range.

The pooled AUC needs no users: positives and negatives are sorted by score, and each
rank counts a range of scores.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from learn_torchrec.evaluation.communicator import Communicator
from learn_torchrec.evaluation.pairs import GroupPairs, Scores, Ties, count_pairs
from learn_torchrec.evaluation.shards import StreamedRows, concatenate, exchange

_TASK_ROWS = 1 << 17  # positives that one core counts at a time
_RANGE_ROWS = 1 << 22  # rows of one score range where whole rows are sorted
_EDGE_SAMPLES = 4096


class PooledPairs:
    """Counts the pairs of all rows.

    Args:
        ties: who wins a pair of equal scores.
        pool: runs the counting.
        communicator: of the processes that together hold the rows.
    """

    def __init__(
        self, ties: Ties, pool: ThreadPoolExecutor, communicator: Communicator
    ) -> None:
        self._ties, self._pool, self._communicator = ties, pool, communicator

    def count(self, parts: list[StreamedRows]) -> GroupPairs:
        """Return the pairs of the rows of all ranks; takes the rows out of `parts`."""
        if self._communicator.size > 1:
            mine = concatenate(parts)
            parts.clear()
            edges = self._edges([mine], self._communicator.size)
            owners = np.searchsorted(edges, mine.scores, side="right")
            parts = [exchange(mine, owners, self._communicator)]
        if any(part.weights is not None for part in parts):
            counts = self._count_weighted_ranges(parts)
        else:
            counts = self._count_ranges(parts)
        return _stack(self._communicator.gather(_stack(counts)))

    def _count_ranges(self, parts: list[StreamedRows]) -> list[GroupPairs]:
        """Sort the scores of each class, then count in ranges of positives."""
        negatives, positives = (
            np.concatenate(
                [np.zeros(0, np.float32)]
                + [part.scores[part.is_positive == is_positive] for part in parts]
            )
            for is_positive in (False, True)
        )
        parts.clear()
        list(self._pool.map(lambda scores: scores.sort(), (negatives, positives)))
        starts = range(0, len(positives), _TASK_ROWS)
        ties = self._ties

        def count(start: int) -> float:
            mine = positives[start : start + _TASK_ROWS]
            first = np.searchsorted(negatives, mine[0], side="left")
            stop = np.searchsorted(negatives, mine[-1], side="right")
            rivals = negatives[first:stop]
            lower, upper = (
                int(np.searchsorted(rivals, mine, side=side).sum())
                for side in ("left", "right")
            )
            below = {"half": (lower + upper) / 2, "positive": upper, "negative": lower}
            return float(first) * len(mine) + below[ties]

        won = math.fsum(self._pool.map(count, starts))
        return [_pairs(won, len(positives), len(negatives))]

    def _count_weighted_ranges(self, parts: list[StreamedRows]) -> list[GroupPairs]:
        """Count the rows of one range of scores at a time."""
        num_rows = sum(len(part.scores) for part in parts)
        edges = self._edges(parts, num_rows // _RANGE_ROWS + 1, among_ranks=False)
        lows, highs = [-math.inf, *edges], [*edges, math.inf]

        def count(low: float, high: float) -> GroupPairs:
            rows = concatenate(
                [
                    part.take((part.scores >= low) & (part.scores < high))
                    for part in parts
                ]
            )
            one_group = np.zeros(len(rows.scores), np.int64)
            columns = (rows.is_positive, rows.scores, rows.weights)
            return count_pairs(one_group, 1, *columns, self._ties)

        return list(self._pool.map(count, lows, highs))

    def _edges(
        self, parts: list[StreamedRows], num_ranges: int, among_ranks: bool = True
    ) -> Scores:
        """Return scores [num_ranges - 1] that split the rows about evenly."""
        samples = [
            part.scores[:: len(part.scores) // _EDGE_SAMPLES + 1] for part in parts
        ]
        sample = np.concatenate([np.zeros(0), *samples])
        if among_ranks:
            sample = np.concatenate(self._communicator.gather(sample))
        if not len(sample):
            return np.zeros(num_ranges - 1)
        return np.quantile(sample, np.arange(1, num_ranges) / num_ranges)


def _pairs(won: float, positives: float, negatives: float) -> GroupPairs:
    return GroupPairs(*(np.array([float(x)]) for x in (won, positives, negatives)))


def _stack(ranges: Sequence[GroupPairs]) -> GroupPairs:
    """Merge the pairs of ranges of scores, lowest first."""
    won = positives = negatives = 0.0
    for one in ranges:
        won += float(one.won.sum()) + float(one.positives.sum()) * negatives
        positives += float(one.positives.sum())
        negatives += float(one.negatives.sum())
    return _pairs(won, positives, negatives)
