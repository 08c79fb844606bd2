"""Events of users and items by day, counted from the files of a prepared log.

A user's are the log's own, which are sorted by user and time. For items, `prepare`
writes `item_days.npy`, the UTC day of every event by item, action and day, int32 [E];
`item_keys.npy`, item x A + action of the pairs that occur, ascending, int64 [P]; and
`item_offsets.npy`, of each pair's days, int64 [P + 1]. All stay memory-mapped: a row
costs some bisections.

Letters: E events, A actions, P pairs of an item and an action, n rows.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import Column, Int16Array, Int64Array, IntArray
from learn_torchrec.datasets.moments import Moments
from learn_torchrec.ids import IdIndex, as_ids, refuse_other_type
from learn_torchrec.jagged import first_at_or_after, offsets_of
from learn_torchrec.schema import ITEM_ID, USER_ID

_DAY = 86_400
_SORTED = 1 << 25  # events, sorted at a time
_SCANNED = 1 << 22  # events, looked through at a time
_DAYS, _KEYS, _OFFSETS = "item_days.npy", "item_keys.npy", "item_offsets.npy"


@dataclass(frozen=True, kw_only=True)
class UserDays:
    """The days of all users' events.

    Attributes:
        index: of the users.
        offsets: int64 [U + 1], of their events.
        times: integers [E], unix seconds, ascending within a user.
    """

    index: IdIndex
    offsets: Int64Array
    times: IntArray

    def before_day(self, ids: Column, times: Column, window_days: int) -> Int64Array:
        """Count each user's events in the window that ends before the row's UTC day.

        See `evaluation.activity.ActivityLog.before_day`.
        """
        users, ends = _rows(ids, self.index, USER_ID), _days(times) * _DAY
        # An unknown user, whose row is -1, has a run from the last event to the first.
        bounds = self.offsets[users], self.offsets[users + 1]
        return _between(self.times, *bounds, ends - window_days * _DAY, ends)


@dataclass(frozen=True, kw_only=True)
class ItemDays:
    """The days of all items' events, by action.

    Attributes:
        index: of the items.
        actions: codes of those that count.
        num_actions: A.
        keys: int64 [P].
        offsets: int64 [P + 1].
        days: int32 [E].
    """

    index: IdIndex
    actions: Sequence[int]
    num_actions: int
    keys: Int64Array
    offsets: Int64Array
    days: IntArray

    def before_day(self, ids: Column, times: Column, window_days: int) -> Int64Array:
        """Count each item's events, as `UserDays.before_day` does."""
        items, days = _rows(ids, self.index, ITEM_ID), _days(times)
        counts = np.zeros(len(items), np.int64)
        for action in self.actions:
            wanted = items * self.num_actions + action  # of an unknown item below 0
            pairs = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
            there = self.keys[pairs] == wanted
            pairs, ends = pairs[there], days[there]
            bounds = self.offsets[pairs], self.offsets[pairs + 1]
            counts[there] += _between(self.days, *bounds, ends - window_days, ends)
        return counts


@dataclass(frozen=True)
class DayCounts:
    """What counts the events of users and of items before a day."""

    users: UserDays
    items: ItemDays


def open_item_days(
    directory: Path, index: IdIndex, actions: Sequence[int], num_actions: int
) -> ItemDays:
    """Map the files of `write_item_days`.

    Raises:
        OSError: a file is missing; ValueError: damaged.
    """
    return ItemDays(
        index=index,
        actions=actions,
        num_actions=num_actions,
        keys=map_array(directory / _KEYS, np.int64, 1),
        offsets=map_array(directory / _OFFSETS, np.int64, 1),
        days=map_array(directory / _DAYS, np.int32, 1),
    )


def write_item_days(
    directory: Path,
    items: IntArray,
    days: "EventDays",
    actions: Int16Array,
    item_events: Int64Array,
    num_actions: int,
) -> None:
    """Write the days of all events by item and action into a new directory.

    The events of some items at a time are sorted in memory, 32 million or those of one.

    Args:
        directory: to make.
        items: [E] rows of the item table.
        days: of the events.
        actions: int16 [E], 0 to `num_actions` - 1.
        item_events: int64 [I], events of each item.
        num_actions: A.
    """
    directory.mkdir()
    keys, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    with (directory / _DAYS).open("wb") as stream:
        header = np.lib.format.header_data_from_array_1_0(np.empty(0, np.int32))
        np.lib.format.write_array_header_1_0(stream, header | {"shape": (len(items),)})
        for low, high in _item_ranges(item_events):
            parts = []
            for start in range(0, len(items), _SCANNED):
                scanned = slice(start, start + _SCANNED)
                mine = np.flatnonzero((items[scanned] >= low) & (items[scanned] < high))
                pair = items[scanned][mine].astype(np.int64) * num_actions
                pair += actions[scanned][mine]
                parts.append(pair * days.count + days.of(scanned)[mine])
            pairs, day = np.divmod(np.sort(np.concatenate(parts)), days.count)
            stream.write((day + days.first).astype(np.int32).data)
            found, counts = np.unique(pairs, return_counts=True)
            keys.append(found)
            lengths.append(counts)
    np.save(directory / _KEYS, np.concatenate(keys))
    np.save(directory / _OFFSETS, offsets_of(np.concatenate(lengths)))


@dataclass(frozen=True)
class EventDays:
    """The UTC days of events, counted from the first one's.

    Attributes:
        times: integers [E], unix seconds.
        moments: the same, counted.
    """

    times: IntArray
    moments: Moments

    @property
    def first(self) -> int:
        """Days from 1970 to the first event's."""
        return self.moments.first // _DAY

    @property
    def count(self) -> int:
        """Days from the first event's to the last one's, both included."""
        return self.moments.last // _DAY - self.first + 1

    def of(self, events: slice) -> Int64Array:
        """Return the days of some events, int64."""
        return self.times[events].astype(np.int64) // _DAY - self.first


def _item_ranges(item_events: Int64Array) -> Iterator[tuple[int, int]]:
    """Yield ranges of items that have about as many events as are sorted at a time."""
    parts = (np.cumsum(item_events) - 1) // _SORTED
    bounds = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(item_events)]
    yield from itertools.pairwise(bounds)


def _rows(ids: Column, index: IdIndex, name: str) -> Int64Array:
    wanted = as_ids(ids, name)
    refuse_other_type(wanted, index.type, name, "the log")
    return index.rows_of(wanted)


def _days(times: Column) -> Int64Array:
    return np.asarray(times).astype(np.int64) // _DAY


def _between(
    values: IntArray,
    low: Int64Array,
    high: Int64Array,
    first: Int64Array,
    end: Int64Array,
) -> Int64Array:
    """Count the values in [first, end) of each ascending run values[low:high]."""
    return first_at_or_after(values, low, high, end) - first_at_or_after(
        values, low, high, first
    )
