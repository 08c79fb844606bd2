"""Vectors of an earlier export, taken over where they would be the same.

A user's vector follows from the towers, the content of items and the user's events up
to a moment. Each is checked, not believed: the towers by their fingerprint, the content
by the items' vectors, which are encoded anew, and a user's events by a digest beside
each vector. What a log gains in a day is then encoded alone.

Letters: E events, n of them, V earlier vectors, D dims.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import Int64Array, UInt64Array
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.ids import UNKNOWN, mixed
from learn_torchrec.vector_table import ITEMS, USERS, VectorTable

KNOWN_FILE = "known.npy"  # of the users: uint64 [V], digests of the events known
_ROUNDING = 2e-3  # of a unit vector's numbers in half precision, and a little more
_ROWS, _USERS = 131_072, 16_384  # vectors copied, and users looked at, at a time


@dataclass(frozen=True)
class EarlierVectors:
    """An earlier export by the same towers.

    Attributes:
        items: its items' vectors.
        users: its users' vectors.
        known: uint64 [V].
    """

    items: VectorTable
    users: VectorTable
    known: UInt64Array

    @classmethod
    def open(cls, directory: Path, files: Iterable[Path]) -> Self | None:
        """Map an export's files; None if it has no digests.

        Raises:
            OSError: a file is missing; ValueError, ArrowInvalid: damaged.
        """
        files = list(files)
        if directory / USERS / KNOWN_FILE not in files:
            return None
        return cls(
            VectorTable.open(directory / ITEMS, files),
            VectorTable.open(directory / USERS, files),
            map_array(directory / USERS / KNOWN_FILE, np.uint64, 1),
        )

    def has_items(self, ids: pa.Array, rows: Int64Array, vectors: Tensor) -> bool:
        """Whether items have the rows and the vectors that they had.

        Args:
            ids: [n], of the items.
            rows: int64 [n], of them in today's store; later rows may be new.
            vectors: float32 [n, D], as they are encoded today.
        """
        old = rows < len(self.items.index)
        if not np.array_equal(
            self.items.index.rows_of(ids.filter(pa.array(old))), rows[old]
        ):
            return False
        before = self.items.vectors[rows[old]].astype(np.float32)
        return np.allclose(before, vectors.numpy()[old], rtol=0, atol=_ROUNDING)

    def rows_of(self, sequences: SequenceSet, events: Int64Array) -> Int64Array:
        """Return the row of the vector after each event, int64 [n]; UNKNOWN for none.

        `events` are ascending, of packed `sequences`.
        """
        ids = sequences.user_ids.take(pa.array(sequences.owners(events)))
        times = sequences.times[events].astype(np.int64)
        rows = self.users.rows_as_of(ids, times + 1)
        found = np.flatnonzero(rows != UNKNOWN)
        same = self.known[rows[found]] == known_events(sequences, events[found])
        rows[found[~same]] = UNKNOWN
        return rows


def known_events(sequences: SequenceSet, events: Int64Array) -> UInt64Array:
    """Return a digest of what each user knows up to an event, uint64 [n].

    `events` are ascending, of packed `sequences`; only their users' are read.
    """
    parts = (events[at : at + _USERS] for at in range(0, len(events), _USERS))
    found = [_digests(sequences, part) for part in parts]
    return np.concatenate([np.empty(0, np.uint64), *found])


def _digests(sequences: SequenceSet, events: Int64Array) -> UInt64Array:
    starts = sequences.starts[sequences.owners(events)]
    first, end = int(starts[0]), int(events[-1]) + 1
    read = np.arange(first, end)
    places = read - sequences.starts[sequences.owners(read)] + 1
    digest = places.view(np.uint64)
    for column in (sequences.items, sequences.times, sequences.actions):
        digest = mixed(digest) ^ column[first:end].astype(np.int64).view(np.uint64)
    totals = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed(digest))])
    return totals[events + 1 - first] - totals[starts - first]


def taken_over(
    encoded: Iterable[Tensor], rows: Int64Array, users: VectorTable
) -> Iterator[Tensor]:
    """Yield the vectors of n events in their order, float32 [., D].

    Args:
        encoded: those of the events whose row is UNKNOWN, float32 [., D].
        rows: int64 [n], of earlier vectors.
        users: the earlier vectors.
    """
    waiting = torch.empty(0, users.vectors.shape[1])
    source = iter(encoded)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        is_new = torch.from_numpy(part == UNKNOWN)
        vectors = torch.from_numpy(users.gather(part).astype(np.float32))
        parts, count = [waiting], int(is_new.sum())
        while sum(map(len, parts)) < count:
            parts.append(next(source))
        waiting = torch.cat(parts)
        vectors[is_new], waiting = waiting[:count], waiting[count:]
        yield vectors
