"""Activity of users and items before each impression: the counts behind cohorts.

E events, N rows.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import Column, Int64Array
from learn_torchrec.errors import UserError
from learn_torchrec.ids import IdIndex, as_ids
from learn_torchrec.schema import (
    ACTION,
    ITEM_ACTIVITY,
    ITEM_ID,
    TIMESTAMP,
    USER_ACTIVITY,
    USER_ID,
)

_SECONDS_PER_DAY = 86_400


class DayCounter(Protocol):
    """Counts events by id before a day."""

    def before_day(self, ids: Column, times: Column, window_days: int) -> Int64Array:
        """See `ActivityLog.before_day`."""


class ActivityLog:
    """Events by id and day, sorted once, then counted for any number of rows.

    Args:
        ids: [E] int64 or string.
        times: [E] unix seconds.
        name: of the ids' column, for messages.

    Raises:
        UserError: ids or times of another type, or of different lengths.
    """

    def __init__(self, ids: Column, times: Column, name: str = "id") -> None:
        array, days = _ids_and_days(ids, times, f"{name} of the events")
        encoded = array.dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self._name, self._type = name, array.type
        self._known = IdIndex.build(encoded.dictionary, name)
        # Windows start and end with a day, so only the order of days matters: with
        # days replaced by their rank, (id, day) fits one int64 key.
        self._days, ranks = np.unique(days, return_inverse=True)
        self._keys = np.sort(codes * self._stride + ranks)

    def before_day(self, ids: Column, times: Column, window_days: int) -> Int64Array:
        """Count each row's events in the window that ends before the row's UTC day.

        An event counts when `day_start - window_days <= time < day_start`.

        Args:
            ids: [N], of the events' type.
            times: [N] unix seconds.
            window_days: length of the window.

        Returns:
            int64 [N].

        Raises:
            UserError: see the class; ids of another type than the events'.
        """
        array, days = _ids_and_days(ids, times, f"{self._name} of the rows")
        if not len(self._keys) or not len(array):
            return np.zeros(len(array), np.int64)
        if array.type != self._type:
            raise UserError(
                f"{self._name} is {self._type} in the events, {array.type} in the "
                "rows; use one type for both"
            )
        # An unknown id's keys all lie below the first.
        first = self._known.rows_of(array) * self._stride
        end = first + np.searchsorted(self._days, days)
        first += np.searchsorted(self._days, days - window_days)
        return np.searchsorted(self._keys, end) - np.searchsorted(self._keys, first)

    @property
    def _stride(self) -> int:
        return len(self._days) + 1


class CohortActivity:
    """Counts the activity of each impression's user and item, which decides cohorts.

    All events of a user count, and events of some actions of an item (the paper:
    clicks, impressions and purchases of a user; purchases of an item).

    Args:
        users: counts the events of users.
        items: counts those of items.
        window_days: see `CohortConfig`.
    """

    def __init__(self, users: DayCounter, items: DayCounter, window_days: int) -> None:
        self._users, self._items, self._window_days = users, items, window_days

    @classmethod
    def of_log(
        cls, interactions: pa.Table, item_actions: Sequence[str], window_days: int
    ) -> Self:
        """Sort a behaviour log, in which `item_actions` count for items."""
        counts_for_items = pc.is_in(interactions[ACTION], pa.array(item_actions))
        for_items = interactions.filter(counts_for_items)
        users = ActivityLog(interactions[USER_ID], interactions[TIMESTAMP], USER_ID)
        items = ActivityLog(for_items[ITEM_ID], for_items[TIMESTAMP], ITEM_ID)
        return cls(users, items, window_days)

    def add_to(self, impressions: pa.Table) -> pa.Table:
        """Return the impressions with two more columns of counts.

        Raises:
            UserError: ids of another type than the log's.
        """
        for name, column, log in (
            (USER_ACTIVITY, USER_ID, self._users),
            (ITEM_ACTIVITY, ITEM_ID, self._items),
        ):
            ids, times = impressions[column], impressions[TIMESTAMP]
            counts = log.before_day(ids, times, self._window_days)
            impressions = impressions.append_column(name, pa.array(counts))
        return impressions


def _ids_and_days(ids: Column, times: Column, name: str) -> tuple[pa.Array, Int64Array]:
    """Return normalised ids, and the UTC day of each time."""
    array, values = as_ids(ids, name), np.asarray(times)
    if len(values) and not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"times of {name}: {values.dtype}, must be unix seconds")
    if len(array) != len(values):
        raise UserError(
            f"{name}: {len(array)} ids against {len(values)} times; give each id a time"
        )
    return array, values.astype(np.int64) // _SECONDS_PER_DAY
