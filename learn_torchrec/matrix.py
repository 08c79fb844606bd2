"""Vectors on disk: a half-precision matrix in memory-mapped shards, read as one.

Each rank writes its own shard into a folder; their numbers give the order of rows.

Letters: N rows, D dims, n rows looked up.
"""

import fnmatch
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import BoolArray, Float16Array
from learn_torchrec.refusals import naming

SHARDS = "vectors"
_BLOCK_BYTES = 64 << 20
_EXPONENT = np.uint16(0x7C00)  # all bits set only in infinities and NaN


class Shard(Protocol):
    """Rows of the matrix, half precision [n_i, D]: an array or an array-like."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array."""

    @property
    def dtype(self) -> np.dtype[np.float16]:
        """Of an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class ShardedMatrix:
    """Stacked shards [n_i, D] as one read-only array [N, D].

    Rows are read from disk on demand. An opened matrix pickles as its paths: another
    process maps the same files.

    Args:
        shards: at least one, all with the same number of columns.
        paths: of the files, if the shards are mapped.
    """

    def __init__(
        self, shards: Sequence[Shard], paths: Sequence[Path] | None = None
    ) -> None:
        self.shards = [shard for shard in shards if len(shard)] or [shards[0]]
        self._paths = paths
        self._starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self.shape = int(self._starts[-1]), int(self.shards[0].shape[1])
        self.dtype = self.shards[0].dtype
        if any(shard.shape[1:] != self.shape[1:] for shard in self.shards):
            raise ValueError("shards differ in their number of columns")

    @classmethod
    def open(cls, paths: Sequence[Path]) -> Self:
        """Map the shards at `paths` without reading them.

        Raises:
            OSError: a file is missing; ValueError: damaged.
        """
        return cls([map_array(path, np.float16, 2) for path in paths], paths)

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        if self._paths is not None:
            return type(self).open, (self._paths,)
        return type(self), (self.shards,)

    def __getitem__(self, rows: Any) -> Float16Array:
        """Return one row [D], or the rows of a slice or an integer array [n, D]."""
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


def shards_of(directory: Path, files: Iterable[Path]) -> list[Path]:
    """Return the shards of a folder among some files, in their order."""
    ours = [p for p in files if p.parent == directory]
    return sorted(p for p in ours if fnmatch.fnmatch(p.name, f"{SHARDS}-*.npy"))


def create_shard(directory: Path, number: int, shape: tuple[int, int]) -> Any:
    """Return the mapped float16 array of a new shard, to fill and flush.

    Raises:
        OSError: there is no room for all of it.
    """
    path = directory / f"{SHARDS}-{number:05d}.npy"
    shard = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    # A full disk would otherwise kill the process (SIGBUS) where the map is filled.
    with path.open("r+b") as stream, naming(path):
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return shard


def finite_rows(halves: Float16Array) -> BoolArray:
    """Return which rows [n, D] are finite, bool [n]."""
    # np.isfinite takes ten times as long for half precision.
    return ((halves.view(np.uint16) & _EXPONENT) != _EXPONENT).all(axis=1)


def blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of a matrix's rows of at most 64 MiB in float64."""
    rows = max(1, _BLOCK_BYTES // (8 * shape[1]))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))
