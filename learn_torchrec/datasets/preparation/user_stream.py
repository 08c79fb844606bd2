"""A sorted log's events, one whole user after another.

Letters: U users, N rows.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import BoolArray, Int64Array, joined
from learn_torchrec.ids import as_ids
from learn_torchrec.schema import USER_ID

_USER, _ITEM, _TIME, _ACTION, _TICK = range(5)


class UserStream:
    """Drops repeats and users with few events, and counts them.

    Args:
        batches: columns user, item, time (unix seconds), action and tick (the time in
            full resolution), sorted by user, tick, item and action.
        min_events: users with fewer are dropped.
        drop_repeats: drop exact duplicates of an event.

    Attributes:
        rows: read.
        repeats: dropped rows that are duplicates.
        of_short_users: dropped rows of users with few events.
    """

    def __init__(
        self,
        batches: Iterable[pa.RecordBatch],
        *,
        min_events: int,
        drop_repeats: bool,
    ) -> None:
        self.rows = self.repeats = self.of_short_users = 0
        self._batches = batches
        self._min_events, self._drop_repeats = min_events, drop_repeats
        self._users: list[pa.Table] = []

    def events(self) -> Iterator[pa.RecordBatch]:
        """Yield item, time and action of the remaining events."""
        for table in _whole_users(self._batches):
            self.rows += table.num_rows
            new_user = _changes(table.column(_USER))
            starts = new_user | (not self._drop_repeats)
            if self._drop_repeats:
                for column in (_ITEM, _TICK, _ACTION):
                    starts |= _changes(table.column(column))
            owner = np.cumsum(new_user) - 1
            events = np.bincount(owner[starts])
            keep = events >= self._min_events
            self.repeats += table.num_rows - int(events.sum())
            self.of_short_users += int(events[~keep].sum())
            chosen = np.flatnonzero(starts & keep[owner])
            if len(chosen) < table.num_rows:
                table = table.take(pa.array(chosen))
            self._record_users(table, events[keep])
            yield from table.select([_ITEM, _TIME, _ACTION]).to_batches()

    def users(self) -> pa.Table:
        """Return id and `events` [U] of the remaining users, sorted; after `events`."""
        tables = [t for t in self._users if t.num_rows] or self._users[:1]
        return pa.concat_tables(tables) if tables else pa.table({})

    def _record_users(self, table: pa.Table, events: Int64Array) -> None:
        """Record the users of a table and their numbers of `events`."""
        firsts = pa.array(np.cumsum(events) - events)
        ids = as_ids(table.column(_USER).take(firsts), USER_ID)
        self._users.append(pa.table({USER_ID: ids, "events": events}))


def _whole_users(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the rows in tables that have all events of their users."""
    rest: list[pa.RecordBatch] = []
    for batch in batches:
        changes = np.flatnonzero(_changes(batch.column(_USER)))
        if not batch.num_rows:
            continue
        first, last = batch.column(_USER)[0], int(changes[-1])
        if rest and rest[-1].column(_USER)[-1] != first:
            yield pa.Table.from_batches(rest).combine_chunks()
            rest = []
        if last:
            yield pa.Table.from_batches([*rest, batch.slice(0, last)]).combine_chunks()
            rest = []
        rest.append(batch.slice(last))
    if rest:
        yield pa.Table.from_batches(rest).combine_chunks()


def _changes(column: pa.Array | pa.ChunkedArray) -> BoolArray:
    """Return where a column without nulls differs from the row before, bool [N]."""
    column = joined(column)
    result = np.ones(len(column), bool)
    if len(column) > 1:
        differs = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))
        result[1:] = differs.to_numpy(zero_copy_only=False)
    return result
