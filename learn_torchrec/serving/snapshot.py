"""What a bundle knows of the past: counts, histories and vectors as of its export.

Letters: U users, E events, n rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import Float16Array, Int32Array, Int64Array
from learn_torchrec.datasets.point_in_time import PastEvents, PastTotals
from learn_torchrec.ids import IdIndex
from learn_torchrec.jagged import offsets_of
from learn_torchrec.matrix import ShardedMatrix, blocks, create_shard
from learn_torchrec.ranker.features.past import PastColumn, PastPairs, PastValues
from learn_torchrec.ranker.learn.histories import Histories
from learn_torchrec.vector_table import VectorTable, write_index

Past = PastValues | PastPairs
_EVENTS, _POSITIVES, _USERS, _ITEMS = "events", "positives", "users", "items"
_CODES = "codes.npy"


def write_past(directory: Path, past: Past, as_of: int) -> None:
    """Write the totals of a past count or rate into a new directory."""
    _totals(past.events, as_of).write(directory / _EVENTS)
    if isinstance(past, PastPairs):
        for name, index in ((_USERS, past.users), (_ITEMS, past.items)):
            (directory / name).mkdir()
            index.write(directory / name)
        np.save(directory / _CODES, past.codes)
    elif past.positives is not None:
        _totals(past.positives, as_of).write(directory / _POSITIVES)


def open_past(directory: Path, column: PastColumn) -> Past:
    """Map what `write_past` wrote.

    Raises:
        OSError: a file is missing; ValueError, ArrowInvalid: damaged.
    """
    name = column.id_column
    events = PastTotals.open(directory / _EVENTS, name)
    if column.shared is not None:
        return PastPairs(
            column=column,
            users=IdIndex.open(directory / _USERS),
            items=IdIndex.open(directory / _ITEMS),
            codes=map_array(directory / _CODES),
            events=events,
        )
    positives = None
    if column.label is not None:
        positives = PastTotals.open(directory / _POSITIVES, name)
    return PastValues(column, events, positives)


def _totals(events: PastEvents | PastTotals, as_of: int) -> PastTotals:
    return events if isinstance(events, PastTotals) else events.totals(as_of)


@dataclass(frozen=True, kw_only=True)
class KnownEvents:
    """The events of all users before a bundle's moment.

    Attributes:
        index: of the U users.
        offsets: int64 [U + 1] of the users' events.
        items: int32 [E], rows of the item vectors.
        times: int64 [E], unix seconds, non-decreasing within a user.
    """

    index: IdIndex
    offsets: Int64Array
    items: Int32Array
    times: Int64Array

    @classmethod
    def before(cls, histories: Histories, time: int) -> Self:
        """Return the events strictly before a time."""
        events = histories.events
        kept = np.asarray(events.times) < time
        owners = np.repeat(np.arange(len(events.index)), np.diff(events.offsets))
        lengths = np.bincount(owners[kept], minlength=len(events.index))
        return cls(
            index=events.index,
            offsets=offsets_of(lengths),
            items=histories.items[kept].astype(np.int32),
            times=events.times[kept].astype(np.int64),
        )

    def write(self, directory: Path) -> None:
        """Write the events into a new directory."""
        directory.mkdir(parents=True)
        self.index.write(directory)
        for name in ("offsets", "items", "times"):
            np.save(directory / f"{name}.npy", getattr(self, name))

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Map the files of `write`; raises as `open_past`."""
        found = cls(
            index=IdIndex.open(directory),
            offsets=map_array(directory / "offsets.npy", np.int64, 1),
            items=map_array(directory / "items.npy", np.int32, 1),
            times=map_array(directory / "times.npy", np.int64, 1),
        )
        events = len(found.times)
        if len(found.offsets) != len(found.index) + 1 or len(found.items) != events:
            raise ValueError(f"{directory.name}: users, items and times do not match")
        if found.offsets[0] != 0 or found.offsets[-1] != events:
            raise ValueError(f"{directory.name}: offsets of other events")
        return found

    def of(self, user: int) -> tuple[Int64Array, Int64Array]:
        """Return items and times of the user in a row; none for -1."""
        if user < 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        own = slice(int(self.offsets[user]), int(self.offsets[user + 1]))
        return self.items[own].astype(np.int64), np.asarray(self.times[own])


def write_table(directory: Path, table: VectorTable, as_of: int | None = None) -> None:
    """Write a vector of each id into a new directory.

    With `as_of` it is the latest strictly before that time, of ids that have one.
    """
    directory.mkdir(parents=True)
    ids = table.index.ids
    rows = np.arange(len(ids))
    if as_of is not None:
        rows = table.rows_as_of(ids, np.full(len(ids), as_of))
        ids, rows = ids.filter(pa.array(rows >= 0)), rows[rows >= 0]
    write_matrix(directory, table.vectors, rows)
    write_index(directory, ids)


def write_matrix(
    directory: Path,
    matrix: ShardedMatrix | Float16Array,
    rows: Int64Array | None = None,
) -> None:
    """Write rows [n] of a matrix, all by default, as a directory's only shard."""
    rows = np.arange(len(matrix)) if rows is None else rows
    shape = (len(rows), int(matrix.shape[1]))
    shard = create_shard(directory, 0, shape)
    for part in blocks(shape):
        shard[part] = matrix[rows[part]]
    shard.flush()
