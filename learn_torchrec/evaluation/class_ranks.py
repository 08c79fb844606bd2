"""How much of the other class each row outranks, from counts by ranges of scores.

Ranges of one score each give exact ranks. Of tables too large for that, ranges hold
equal shares of a sample of the scores, and rows within a range count as tied: a rank is
wrong by at most half a range's share of the rows. A score that is frequent has a range
of its own.

N rows, B ranges.
"""

from typing import NamedTuple

import numpy as np

from learn_torchrec.arrays import BoolArray, Float64Array, Int64Array
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.pairs import Scores, Ties, break_ties
from learn_torchrec.evaluation.rows import ScoredRows

# Of the negatives that a positive outranks, and of the positives that outrank a
# negative: the share of tied ones that counts as won by the positive.
_TIED = {"half": 0.5, "positive": 1.0, "negative": 0.0, "first": 0.5}


class ScoreRanges(NamedTuple):
    """Ranges of scores; range b is `edges[b - 1] <= score < edges[b]`.

    Attributes:
        edges: [B - 1] ascending, of the scores' dtype.
        is_single: bool [B], ranges of one score.
    """

    edges: Scores
    is_single: BoolArray

    def of(self, scores: Scores) -> Int64Array:
        """Return each score's range, int64 [N]."""
        # Sorted scores are found several times faster, as edges stay in the cache.
        order = np.argsort(scores)
        ranges = np.empty(len(scores), np.int64)
        ranges[order] = np.searchsorted(self.edges, scores[order], side="right")
        return ranges

    def weigh(
        self, is_positive: BoolArray, scores: Scores, weights: Float64Array | None
    ) -> Float64Array:
        """Return the weight of the negatives and the positives by range, [2, B]."""
        result = np.zeros((2, len(self.is_single)))
        for place, chosen in enumerate((~is_positive, is_positive)):
            mine = scores[chosen]
            if weights is None:
                below = np.searchsorted(np.sort(mine), self.edges)
                result[place] = np.diff(below, prepend=0, append=len(mine))
            else:
                size = len(self.is_single)
                result[place] = np.bincount(self.of(mine), weights[chosen], size)
        return result


class ClassRanks(NamedTuple):
    """What a row of each class and range outranks.

    Attributes:
        ranges: of the scores.
        won: float64 [2, B]: for a negative, the weight of the positives that outrank
            it; for a positive, of the negatives that it outranks.
    """

    ranges: ScoreRanges
    won: Float64Array

    def of(self, is_positive: BoolArray, scores: Scores) -> Float64Array:
        """Return the weight of the pairs that each row's positive wins, float64 [N]."""
        cells = self.ranges.of(scores)
        cells += len(self.ranges.is_single) * is_positive
        return self.won.ravel()[cells]


def single_scores(scores: Scores) -> ScoreRanges:
    """Return a range for each distinct score."""
    edges = np.unique(scores)
    return ScoreRanges(edges, np.ones(len(edges) + 1, bool))


def equal_shares(sample: Scores, num_shares: int) -> ScoreRanges:
    """Return ranges that hold about equal shares of the scores.

    Each edge is also the range of its own score, so that ties at it are ties.
    """
    if not len(sample):
        return single_scores(sample)
    places = np.linspace(0, len(sample) - 1, num_shares + 1).astype(np.int64)
    quantiles = np.sort(sample)[places]
    above = np.nextafter(quantiles, np.inf, dtype=quantiles.dtype)
    edges = np.unique(np.concatenate([quantiles, above]))
    is_single = np.zeros(len(edges) + 1, bool)
    is_single[1:-1] = np.nextafter(edges[:-1], np.inf, dtype=edges.dtype) == edges[1:]
    return ScoreRanges(edges, is_single)


def rank_classes(ranges: ScoreRanges, weights: Float64Array, ties: Ties) -> ClassRanks:
    """Return what rows outrank, from the weights [2, B] of `ScoreRanges.weigh`."""
    negative, positive = weights
    tied = np.where(ranges.is_single, _TIED[ties], 0.5)
    below = np.cumsum(negative) - negative
    above = positive.sum() - np.cumsum(positive)
    won = np.stack([above + tied * positive, below + tied * negative])
    return ClassRanks(ranges, won)


def exact_ranks(rows: ScoredRows, convention: Convention) -> ClassRanks:
    """Return the ranks of rows that are a whole table."""
    scores = ranked_scores(rows, convention)
    ranges = single_scores(scores)
    weights = ranges.weigh(rows.is_positive, scores, rows.weights)
    return rank_classes(ranges, weights, convention.ties)


def ranked_scores(rows: ScoredRows, convention: Convention) -> Scores:
    """Return scores [N] among which no tie is left that the first row wins."""
    return break_ties(rows.scores) if convention.ties == "first" else rows.scores
