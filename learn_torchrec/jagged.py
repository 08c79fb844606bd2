"""Jagged arrays: rows of different lengths, stored one after another.

Letters: N rows, V values of all rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learn_torchrec.arrays import AnyArray, BoolArray, Int64Array, IntArray
from learn_torchrec.errors import UserError


@dataclass(frozen=True)
class Jagged:
    """Values and row offsets; row n is `values[offsets[n]:offsets[n + 1]]`.

    Attributes:
        values: [V], of any type; memory-mapped arrays stay mapped.
        offsets: int64 [N + 1], non-decreasing from 0 to V.

    Raises:
        UserError: offsets that do not match the values.

    Example:
        >>> baskets = Jagged.from_lists([[7, 8], [], [9]])
        >>> baskets.lengths.tolist(), baskets[2].tolist()
        ([2, 0, 1], [9])
        >>> baskets.take(np.array([2, 0])).values.tolist()
        [9, 7, 8]
    """

    values: AnyArray
    offsets: Int64Array

    def __post_init__(self) -> None:
        offsets = np.asarray(self.offsets, dtype=np.int64)
        object.__setattr__(self, "values", np.asarray(self.values))
        object.__setattr__(self, "offsets", offsets)
        if (
            offsets.ndim != 1
            or not len(offsets)
            or offsets[0] != 0
            or offsets[-1] != len(self.values)
            or (np.diff(offsets) < 0).any()
        ):
            raise UserError(
                f"offsets: must rise from 0 to the number of values, {len(self.values)}"
            )

    @classmethod
    def from_lists(
        cls, lists: Iterable[Sequence[Any]], dtype: Any = np.int64
    ) -> "Jagged":
        """Build from a sequence of values per row."""
        parts = [np.asarray(part, dtype=dtype) for part in lists]
        values = np.concatenate([np.zeros(0, dtype), *parts])
        return cls.from_lengths(values, np.array([len(p) for p in parts], np.int64))

    @classmethod
    def from_lengths(cls, values: AnyArray, lengths: Int64Array) -> "Jagged":
        """Build from values and row lengths, int64 [N]."""
        return cls(values, offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> AnyArray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> Int64Array:
        """Length of each row, int64 [N]."""
        return np.diff(self.offsets)

    def owners(self) -> Int64Array:
        """Return the row of every value, int64 [V]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: Int64Array) -> "Jagged":
        """Return the rows with these numbers, in that order."""
        index, offsets = take_index(self.offsets, rows)
        return Jagged(self.values[index], offsets)

    def filter(self, keep: BoolArray) -> "Jagged":
        """Return all rows with only the values where `keep` [V] is true."""
        kept_before = np.r_[0, np.cumsum(keep)]
        return Jagged(self.values[keep], kept_before[self.offsets])


def offsets_of(lengths: Int64Array) -> Int64Array:
    """Return the offsets, int64 [N + 1], of rows of these lengths [N]."""
    return np.r_[0, np.cumsum(lengths, dtype=np.int64)]


def positions_in(lengths: Int64Array) -> Int64Array:
    """Return 0, 1, ... within each row, int64 [V], for rows of these lengths [N]."""
    starts = offsets_of(lengths)[:-1]
    return np.arange(int(np.sum(lengths))) - np.repeat(starts, lengths)


def take_index(offsets: Int64Array, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return the indices of the values of some rows, and the new offsets.

    For containers of several arrays with the same offsets.

    Args:
        offsets: int64 [N + 1].
        rows: int64 [n], row numbers in any order.

    Returns:
        Indices, int64 [values of those rows], and offsets, int64 [n + 1].
    """
    return spread(offsets[rows], offsets[rows + 1] - offsets[rows])


def spread(starts: Int64Array, lengths: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return the numbers of ranges [start, start + length), range after range.

    Args:
        starts: int64 [n].
        lengths: int64 [n].

    Returns:
        The numbers, int64 [V], and the offsets of each range in them, int64 [n + 1].
    """
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets


def first_at_or_after(
    times: IntArray, low: Int64Array, high: Int64Array, wanted: Int64Array
) -> Int64Array:
    """Return the index of the first time in each run times[low:high] >= `wanted`.

    Bisects all n runs at once and reads little of a memory-mapped array.
    """
    pending = np.flatnonzero(low < high)
    low, high = low.copy(), high.copy()
    while len(pending):
        middle = (low[pending] + high[pending]) // 2
        is_before = times[middle] < wanted[pending]
        low[pending[is_before]] = middle[is_before] + 1
        high[pending[~is_before]] = middle[~is_before]
        pending = pending[low[pending] < high[pending]]
    return low
