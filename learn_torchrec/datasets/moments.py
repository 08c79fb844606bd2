"""Moments: how many events, or impressions, there are at each second.

What a split asks of a log, its first and last time and any share of it, is answered
from these counts, which are memory-mapped where `prepare` has written them. A rank then
reads a few of them, and not the times of all events.

Letters: N times, K distinct ones.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import Int64Array, IntArray

_COUNTED = 1 << 24  # times at once
_SECONDS, _ENDS = "seconds.npy", "seconds_ends.npy"


@dataclass(frozen=True)
class Moments:
    """Counted times.

    Attributes:
        seconds: integers [K], ascending, unix seconds.
        ends: int64 [K], how many of the N times are at or before each.
    """

    seconds: IntArray
    ends: Int64Array

    @classmethod
    def of(cls, times: "IntArray | Moments") -> "Moments":
        """Count times, [N] in any order; counted ones are returned as they are."""
        return times if isinstance(times, Moments) else cls.of_parts([times])

    @classmethod
    def of_parts(cls, parts: Iterable[IntArray]) -> Self:
        """Count times that come in parts, of which few are in memory at a time."""
        seconds, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for part in _joined(parts):
            more, found = np.unique(part, return_counts=True)
            both = np.concatenate([seconds, more.astype(np.int64)])
            order = np.argsort(both, kind="stable")
            starts = np.flatnonzero(np.diff(both[order], prepend=both.min() - 1))
            seconds = both[order][starts]
            counts = np.add.reduceat(np.concatenate([counts, found])[order], starts)
        return cls(seconds, np.cumsum(counts))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def first(self) -> int:
        """The earliest time."""
        return int(self.seconds[0])

    @property
    def last(self) -> int:
        """The latest time."""
        return int(self.seconds[-1])

    def quantile(self, share: float, method: str = "lower") -> int:
        """Return what `numpy.quantile` returns for the times; "lower" or "higher".

        Raises:
            ValueError: a share outside of 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError("a share is from 0 to 1")
        place = (len(self) - 1) * share
        whole = np.floor(place) if method == "lower" else np.ceil(place)
        return int(self.seconds[np.searchsorted(self.ends, whole, side="right")])

    def between(self, first: int, end: int) -> "Moments":
        """Return the times in [first, end)."""
        low, high = np.searchsorted(self.seconds, [first, end])
        before = self.ends[low - 1] if low else 0
        return Moments(self.seconds[low:high], self.ends[low:high] - before)

    def write(self, directory: Path) -> None:
        """Write the counts into a new directory."""
        directory.mkdir()
        np.save(directory / _SECONDS, self.seconds)
        np.save(directory / _ENDS, self.ends)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Map the files of `write`.

        Raises:
            OSError: a file is missing; ValueError: damaged.
        """
        return cls(
            map_array(directory / _SECONDS, np.int64, 1),
            map_array(directory / _ENDS, np.int64, 1),
        )


def _joined(parts: Iterable[IntArray]) -> Iterator[IntArray]:
    """Join parts, so that merging their counts takes a fraction of the time."""
    held: list[IntArray] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= _COUNTED:
            yield np.concatenate(held)
            held.clear()
    if any(map(len, held)):
        yield np.concatenate(held)
