"""Interleaving: a pass's row groups, concatenated and cut into equal lanes.

Letters: G row groups, S steps of a window.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Int64Array
from learn_torchrec.datasets.loading.row_groups import PIECE_ROWS, RowSource

_FEW_LANES, _MOST_LANES = 8, 256
_LEAST_ROWS, _LEAST_GROUPS = 16, 10  # of a lane, in a batch and in all


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` of a row group."""

    group: int
    start: int
    stop: int


def cut_into_lanes(
    sizes: Int64Array, order: Int64Array, lanes: int
) -> list[list[Segment]]:
    """Concatenate row groups and cut their rows into equal lanes.

    Args:
        sizes: int64 [G], rows of each row group.
        order: int64 [G], the order of the row groups.
        lanes: number of lanes; their lengths differ by one row at most.
    """
    ends = np.cumsum(sizes[order])
    bounds = bounds_of(int(ends[-1]), lanes)
    result: list[list[Segment]] = []
    for lo, hi in itertools.pairwise(bounds):
        segments = []
        at = int(np.searchsorted(ends, lo, side="right"))
        while at < len(order) and (begin := ends[at] - sizes[order[at]]) < hi:
            start, stop = max(lo, begin) - begin, min(hi, ends[at]) - begin
            if start < stop:
                segments.append(Segment(int(order[at]), int(start), int(stop)))
            at += 1
        result.append(segments)
    return result


class Lane:
    """Reads a lane's rows; consecutive calls continue without seeking.

    Args:
        rows: of all lanes.
        segments: of this one.
        most: rows that are decoded at a time, and kept until they are taken.
    """

    def __init__(
        self, rows: RowSource, segments: list[Segment], most: int = PIECE_ROWS
    ) -> None:
        self._rows, self._segments, self._most = rows, segments, most
        self._next_row: int | None = None
        self._pieces: Iterator[pa.Table] = iter(())
        self._rest: pa.Table | None = None  # of a partly taken piece

    def take(self, start: int, stop: int) -> list[pa.Table]:
        """Return the lane's rows `start` to `stop` as tables."""
        if start != self._next_row:
            self._pieces = _read(self._rows, self._segments, start, self._most)
            self._rest = None
        self._next_row = stop
        parts = []
        while start < stop:
            piece = next(self._pieces) if self._rest is None else self._rest
            parts.append(piece.slice(0, stop - start))
            start += parts[-1].num_rows
            left = piece.slice(parts[-1].num_rows)
            self._rest = left if left.num_rows else None
        return parts


def _read(
    rows: RowSource, segments: Sequence[Segment], skip: int, most: int
) -> Iterator[pa.Table]:
    """Yield a lane's rows after the first `skip`.

    A function, not a method, so that a lane and its iterator are not a reference cycle:
    their memory is freed at once, not by the garbage collector.
    """
    for segment in segments:
        size = segment.stop - segment.start
        left = size - min(skip, size)
        pieces = rows.pieces(segment.group, segment.start + size - left, most)
        while left:
            piece = next(pieces).slice(0, left)
            left -= piece.num_rows
            yield piece
        skip -= min(skip, size)


def share_of(
    begins: Int64Array, ends: Int64Array, reader: int, readers: int
) -> tuple[Int64Array, Int64Array]:
    """Return the first and last + 1 row of one reader in every lane and step.

    Readers share the rows of a step evenly, lane after lane.

    Args:
        begins: int64 [lanes, S], first row of a step in the lane.
        ends: int64 [lanes, S], last row + 1.
        reader: 0 to `readers` - 1.
        readers: number of readers.

    Returns:
        Two arrays, int64 [lanes, S].
    """
    sizes = ends - begins
    firsts = np.cumsum(sizes, axis=0) - sizes
    totals = sizes.sum(axis=0)
    lo, hi = (totals * part // readers for part in (reader, reader + 1))
    lefts = begins + np.clip(lo - firsts, 0, sizes)
    return lefts, begins + np.clip(hi - firsts, 0, sizes)


def number_of_lanes(wanted: int, batch_size: int, groups: int) -> int:
    """Return how many lanes there are: a divisor of the batch, at most `wanted`.

    With `wanted` 0, as many as can occupy readers without decoding much twice: a lane
    has rows for a batch and, beyond a few lanes, row groups of its own, as one that two
    lanes share is decoded by both.

    Args:
        wanted: at most; 0 to choose.
        batch_size: rows of a global batch.
        groups: row groups.
    """
    fitting = min(_MOST_LANES, batch_size // _LEAST_ROWS, groups // _LEAST_GROUPS)
    most = wanted or max(_FEW_LANES, fitting)
    return max(n for n in range(1, most + 1) if batch_size % n == 0)


def bounds_of(count: int, parts: int) -> list[int]:
    """Return the bounds, `parts` + 1 of them, of almost equal parts of `count`."""
    return [part * count // parts for part in range(parts + 1)]
