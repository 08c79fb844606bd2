"""How often a positive outranks a negative within its group: the count behind AUC.

Without weights, one sort of packed 64-bit keys serves all groups; weights take a slower
path. Both are exact, and a test compares them.

N rows, G groups, K tie blocks (runs of equal scores within a group).
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from learn_torchrec.arrays import BoolArray, Float64Array, Int64Array, UInt64Array

# Who wins a pair of equal scores: nobody (one half), the positive, the negative, or the
# row that comes first, as in a stable sort of the scores.
Ties = Literal["half", "positive", "negative", "first"]
Scores = npt.NDArray[np.floating[Any]]

_LABEL_BITS, _SCORE_BITS = 1, 32


class GroupPairs(NamedTuple):
    """Pair counts of every group, float64 [G].

    Attributes:
        won: pairs in which the positive outranks the negative.
        positives: sum of the positives' weights.
        negatives: sum of the negatives' weights.
    """

    won: Float64Array
    positives: Float64Array
    negatives: Float64Array


def break_ties(scores: Scores) -> Scores:
    """Return distinct scores [N] in the same order, the first of equals highest."""
    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(len(scores), 0, -1)
    return ranks


def count_pairs(
    groups: Int64Array,
    num_groups: int,
    is_positive: BoolArray,
    scores: Scores,
    weights: Float64Array | None = None,
    ties: Ties = "half",
) -> GroupPairs:
    """Count the pairs of every group.

    Args:
        groups: int64 [N] in [0, num_groups), at most 2**31 groups.
        num_groups: G.
        is_positive: bool [N].
        scores: floating [N], finite.
        weights: float64 [N], positive; None for 1. A pair counts their product.
        ties: who wins a pair of equal scores.
    """
    if ties == "first":
        scores = break_ties(scores)
    if weights is None:
        return _count(groups, num_groups, is_positive, scores, ties)
    return _count_weighted(groups, num_groups, is_positive, scores, weights, ties)


def _count(
    groups: Int64Array,
    num_groups: int,
    is_positive: BoolArray,
    scores: Scores,
    ties: Ties,
) -> GroupPairs:
    # Negatives sort before positives within a tie block, so ties count as won at first.
    keys = _keys(groups, scores)
    keys <<= np.uint64(_LABEL_BITS)
    keys |= is_positive
    keys.sort()
    label = (keys & np.uint64(1)).view(np.int64)
    # negatives[n] and won[n] are sums over the first n rows, across groups.
    negatives = np.zeros(len(keys) + 1, np.int64)
    np.cumsum(1 - label, out=negatives[1:])
    won = np.zeros(len(keys) + 1, np.int64)
    np.cumsum(np.multiply(label, negatives[:-1], out=label), out=won[1:])

    starts = np.arange(num_groups + 1, dtype=np.uint64)
    starts <<= np.uint64(_SCORE_BITS + _LABEL_BITS)
    bounds = np.searchsorted(keys, starts)
    negative = np.diff(negatives[bounds])
    positive = np.diff(bounds) - negative
    total = np.diff(won[bounds]) - negatives[bounds[:-1]] * positive
    share = {"half": 0.5, "negative": 1.0}.get(ties, 0.0)
    if share:
        total = total - share * _tied_pairs(keys, num_groups)
    return GroupPairs._make(np.float64(x) for x in (total, positive, negative))


def _keys(groups: Int64Array, scores: Scores) -> UInt64Array:
    """Return uint64 [N] that compare by group, then by score."""
    keys = groups.astype(np.uint64)
    keys <<= np.uint64(_SCORE_BITS)
    keys |= _order_bits(scores)
    return keys


def _order_bits(scores: Scores) -> npt.NDArray[np.uint32]:
    """Return uint32 [N] that compare as the scores do."""
    single = scores.astype(np.float32)
    if scores.dtype != np.float32 and not np.array_equal(single, scores):
        # More precise than float32: ranks replace them.
        order = np.argsort(scores)
        ordered = scores[order]
        ranks = np.zeros(len(scores), np.uint32)
        ranks[order[1:]] = np.cumsum(ordered[1:] != ordered[:-1], dtype=np.uint32)
        return ranks
    single = single + np.float32(0)  # -0.0 equals 0.0
    bits = single.view(np.uint32)
    return np.where(single < 0, ~bits, bits | np.uint32(1 << 31))


def _tied_pairs(keys: UInt64Array, num_groups: int) -> Int64Array:
    """Count the pairs of equal scores in every group [G], from sorted keys."""
    # Between a tie block's negatives and its positives, only the label bit changes.
    grows = keys[1:] == (keys[:-1] | np.uint64(1))
    first = np.flatnonzero(grows & (keys[:-1] != keys[1:])) + 1
    tied = np.zeros(num_groups, np.int64)
    if len(first):
        positive = keys[first]
        pairs = first - np.searchsorted(keys, positive - np.uint64(1))
        pairs *= np.searchsorted(keys, positive, side="right") - first
        group = positive >> np.uint64(_SCORE_BITS + _LABEL_BITS)
        np.add.at(tied, group.view(np.int64), pairs)
    return tied


def _count_weighted(
    groups: Int64Array,
    num_groups: int,
    is_positive: BoolArray,
    scores: Scores,
    weights: Float64Array,
    ties: Ties,
) -> GroupPairs:
    if not len(groups):
        return GroupPairs(*np.zeros((3, num_groups)))
    keys = _keys(groups, scores)
    order = np.argsort(keys)
    keys = keys[order]
    weight, label = weights[order], is_positive[order]
    group = (keys >> np.uint64(_SCORE_BITS)).view(np.int64)
    is_new_group = np.diff(group, prepend=-1) != 0
    is_new_block = np.ones(len(keys), dtype=bool)
    is_new_block[1:] = keys[1:] != keys[:-1]
    block_starts = np.flatnonzero(is_new_block)
    positive = np.add.reduceat(weight * label, block_starts)
    negative = np.add.reduceat(weight * ~label, block_starts)
    block_group = group[block_starts]

    first_blocks = np.flatnonzero(is_new_group[block_starts])
    below = _sums_before(negative, first_blocks)
    share = {"half": 0.5, "positive": 1.0}.get(ties, 0.0)
    won = np.bincount(block_group, positive * (below + share * negative), num_groups)
    sums = (np.bincount(block_group, x, num_groups) for x in (positive, negative))
    return GroupPairs._make([won, *sums])


def _sums_before(values: Float64Array, starts: Int64Array) -> Float64Array:
    """Return for each value [K] the sum of the values before it in its group.

    One running sum over all groups, minus its value at each group's start, would lose
    the digits of light users after heavy ones. So groups of similar length form a
    matrix [groups, length], which is summed along its rows.

    Args:
        values: float64 [K], group after group.
        starts: int64, where each group starts.
    """
    lengths = np.diff(starts, append=len(values))
    sums = np.zeros(len(values))
    magnitudes = np.frexp(lengths)[1]  # lengths in [2 ** (m - 1), 2 ** m)
    for magnitude in np.flatnonzero(np.bincount(magnitudes)):
        chosen = magnitudes == magnitude
        length = int(lengths[chosen].max())
        place = starts[chosen, None] + np.arange(length)
        is_inside = np.arange(length) < lengths[chosen, None]
        matrix = np.where(is_inside, values[np.minimum(place, len(values) - 1)], 0.0)
        before = np.zeros_like(matrix)
        np.cumsum(matrix[:, :-1], axis=1, out=before[:, 1:])
        sums[place[is_inside]] = before[is_inside]
    return sums
