"""The matrix of a content store: shards of rows, memory-mapped, read as one.

Letters: N items, C content dim, n rows asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Halves = npt.NDArray[np.float16]
Doubles = npt.NDArray[np.float64]

_BLOCK_BYTES = 64 << 20
# A spread below half precision's own rounding is noise, not content.
_RELATIVE_RESOLUTION = 2.0**-11
_ABSOLUTE_RESOLUTION = 2.0**-24


class Shard(Protocol):
    """Rows of the matrix, half precision [n_i, C]: an array, or what reads like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array."""

    @property
    def dtype(self) -> np.dtype[np.float16]:
        """Of an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class ShardedMatrix:
    """Several shards [n_i, C] below each other as one read-only array [N, C].

    Rows are read from disk as they are asked for.

    Args:
        shards: at least one, all with the same number of columns.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self._starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self.shape = int(self._starts[-1]), int(self.shards[0].shape[1])
        self.dtype = self.shards[0].dtype
        if any(shard.shape[1:] != self.shape[1:] for shard in self.shards):
            raise ValueError("shards differ in their number of columns")

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "ShardedMatrix":
        """Map the shards in `paths` without reading them."""
        # Plain views: slices of a memmap would carry its subclass everywhere.
        return cls([np.asarray(np.load(path, mmap_mode="r")) for path in paths])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Halves:
        """Return one row [C], or the rows of a slice or an integer array [n, C]."""
        if len(self.shards) == 1:
            return self.shards[0][rows]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if rows.ndim == 0:
            return self[rows[None]][0]
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        result = np.empty((len(rows), self.shape[1]), self.dtype)
        for number in np.unique(shard_of):
            mine = shard_of == number
            result[mine] = self.shards[number][rows[mine] - self._starts[number]]
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self[:].astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True)
class Moments:
    """Count, mean [C] and summed squared deviation [C] of some rows, float64."""

    count: int
    mean: Doubles
    squares: Doubles

    @classmethod
    def of(cls, vectors: npt.NDArray[Any]) -> "Moments":
        """Return the moments of `vectors` [n, C], accumulated in float64."""
        dim = vectors.shape[1]
        total = cls(0, np.zeros(dim), np.zeros(dim))
        for block in blocks(vectors):
            rows = vectors[block].astype(np.float64)
            mean = rows.mean(axis=0)
            squares = np.square(rows - mean).sum(axis=0)
            total = total + cls(len(rows), mean, squares)
        return total

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of rows (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        step = other.mean - self.mean
        between = np.square(step) * (self.count * other.count / count)
        return Moments(
            count,
            self.mean + step * (other.count / count),
            self.squares + other.squares + between,
        )

    def spread(self) -> Doubles:
        """Return the standard deviation, 1 where it is below half precision's own."""
        std = np.sqrt(self.squares / max(1, self.count))
        noise = np.maximum(
            _ABSOLUTE_RESOLUTION, _RELATIVE_RESOLUTION * np.abs(self.mean)
        )
        return np.where(std > noise, std, 1.0)


def blocks(vectors: npt.NDArray[Any]) -> Iterator[slice]:
    """Yield slices of rows that are small beside memory, even in float64."""
    rows = max(1, _BLOCK_BYTES // (8 * vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        yield slice(start, min(start + rows, len(vectors)))
