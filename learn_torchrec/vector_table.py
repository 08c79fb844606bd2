"""Vectors by id, or by id and time, searched in memory-mapped files.

Layout of a folder: the ids and their index (see `ids.IdIndex`), `vectors-*.npy` (see
`matrix`) and, if an id has vectors for several times, `offsets.npy` (of each id's
vectors) and `times.npy`. Opening reads none of them.

Letters: K ids, V vectors, D dims, n rows or ids looked up.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import AnyArray, Column, Float16Array, Int64Array
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN, IdIndex, encode_ids
from learn_torchrec.jagged import first_at_or_after, offsets_of
from learn_torchrec.matrix import ShardedMatrix, finite_rows, shards_of

USERS, ITEMS = "users", "items"  # the tables of a vectors artefact
_OFFSETS_FILE, _TIMES_FILE = "offsets.npy", "times.npy"


@dataclass(frozen=True, kw_only=True)
class VectorTable:
    """A vector of each id, or one for each time at which an id's vector changed.

    An opened table pickles as its path: another process maps the same files.

    Attributes:
        index: of the K ids.
        vectors: float16 [V, D].
        offsets: int64 [K + 1]; id k has vectors offsets[k] to offsets[k + 1]. None if
            each id has one (then V = K).
        times: int64 [V], unix seconds, non-decreasing within an id; None if vectors
            have no times.
        directory: of the files; None in memory.
        files: of the artefact, if there is one.

    Example:
        >>> users = VectorTable.build(
        ...     ids=["a", "a"], times=[110, 120], vectors=[[1.0, 0.0], [0.0, 1.0]]
        ... )
        >>> rows = users.rows_as_of(pa.array(["a", "b"], pa.large_string()), [120, 500])
        >>> rows.tolist(), users.gather(rows).tolist()
        ([0, -1], [[1.0, 0.0], [0.0, 0.0]])
    """

    index: IdIndex
    vectors: ShardedMatrix | Float16Array
    offsets: Int64Array | None = None
    times: Int64Array | None = None
    directory: Path | None = None
    files: tuple[Path, ...] | None = None

    def __post_init__(self) -> None:
        if self.times is None or self.offsets is None:
            fits = len(self.vectors) == len(self.index)
        else:
            fits = len(self.vectors) == len(self.times) == self.offsets[-1]
            fits = fits and len(self.offsets) == len(self.index) + 1
        if not fits:
            raise ValueError("ids, times and vectors do not match")

    @classmethod
    def build(
        cls, *, ids: Column, vectors: AnyArray, times: Int64Array | None = None
    ) -> Self:
        """Return a table in memory.

        Args:
            ids: [V]; distinct if there are no times.
            vectors: [V, D].
            times: int64 [V], unix seconds; of equal times of an id the last row counts.

        Raises:
            UserError: null ids, ids of another type, or one that occurs twice.
        """
        halves = np.asarray(vectors, np.float16)
        if times is None:
            return cls(index=IdIndex.build(ids, "ids"), vectors=halves)
        codes, known = encode_ids(ids, "ids")
        if len(codes) != len(halves):
            raise ValueError(f"{len(codes)} ids and {len(halves)} vectors")
        order = np.lexsort((times, codes))
        return cls(
            index=IdIndex.build(known, "ids"),
            vectors=halves[order],
            offsets=offsets_of(np.bincount(codes, minlength=len(known))),
            times=np.asarray(times, np.int64)[order],
        )

    @classmethod
    def open(cls, directory: Path, files: Collection[Path] | None = None) -> Self:
        """Map the files of `write_index` and of the ranks' shards.

        Args:
            directory: of the table.
            files: that an artefact's manifest lists; None for all that are there.

        Raises:
            OSError: a file is missing; ValueError, ArrowInvalid: damaged.
        """
        files = [*directory.iterdir()] if files is None else files
        offsets = times = None
        if directory / _TIMES_FILE in files:
            offsets = map_array(directory / _OFFSETS_FILE, np.int64, 1)
            times = map_array(directory / _TIMES_FILE, np.int64, 1)
        return cls(
            index=IdIndex.open(directory),
            vectors=ShardedMatrix.open(shards_of(directory, files)),
            offsets=offsets,
            times=times,
            directory=directory,
            files=tuple(files),
        )

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        if self.directory is not None:
            return type(self).open, (self.directory, self.files)
        return super().__reduce_ex__(protocol)

    def rows_as_of(self, ids: pa.Array, times: Int64Array | None) -> Int64Array:
        """Return the row of each id's latest vector strictly before a time.

        Args:
            ids: [n], of the index's type, in normal form.
            times: int64 [n]; None for each id's latest vector.

        Returns:
            int64 [n], UNKNOWN if there is none.
        """
        known = self.index.rows_of(ids)
        if self.offsets is None or self.times is None:
            return known
        found = np.flatnonzero(known != UNKNOWN)
        first, end = self.offsets[known[found]], self.offsets[known[found] + 1]
        if times is not None:
            end = first_at_or_after(self.times, first, end, np.asarray(times)[found])
        rows = np.full(len(ids), UNKNOWN)
        rows[found] = np.where(end > first, end - 1, UNKNOWN)
        return rows

    def gather(self, rows: Int64Array) -> Float16Array:
        """Return the vectors of rows [n], float16 [n, D]; zeros for UNKNOWN.

        Raises:
            UserError: a vector that is not finite.
        """
        known = rows != UNKNOWN
        if known.all():
            vectors = self.vectors[rows]
        else:
            vectors = np.zeros((len(rows), self.vectors.shape[1]), np.float16)
            vectors[known] = self.vectors[rows[known]]
        finite = finite_rows(vectors)
        if not finite.all():
            raise UserError(
                f"{self.directory or 'vectors'}: the vector in row "
                f"{rows[np.argmin(finite)]} is not finite; export the vectors again"
            )
        return vectors


def write_index(
    directory: Path,
    ids: pa.Array,
    offsets: Int64Array | None = None,
    times: Int64Array | None = None,
) -> None:
    """Write a table without its vectors; see `VectorTable` for the arguments.

    Raises:
        UserError: an id occurs twice.
    """
    IdIndex.build(ids, directory.name).write(directory)
    if offsets is not None and times is not None:
        np.save(directory / _OFFSETS_FILE, offsets.astype(np.int64))
        np.save(directory / _TIMES_FILE, times.astype(np.int64))
