"""How active users and items were before each impression: the counts behind cohorts.

Letters: E events, N rows.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import Int64Array
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.rows import Column
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


class ActivityLog:
    """Events of ids by day, sorted once and then counted for any number of rows.

    Args:
        ids: [E] int64 or string.
        times: [E] unix seconds.
        name: of the ids' column, for messages.

    Raises:
        UserError: ids or times of another type, or of different lengths.
    """

    def __init__(self, ids: Column, times: Column, name: str = "id") -> None:
        array, days = _checked(ids, times, f"{name} of the events")
        encoded = array.dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self._name, self._type = name, array.type
        self._known = IdIndex.build(encoded.dictionary, name)
        # Both ends of a window are day starts, so only the order of days matters;
        # with days replaced by their rank, (id, day) fits one int64 key.
        self._days, ranks = np.unique(days, return_inverse=True)
        self._keys = np.sort(codes * self._stride + ranks)

    def before_day(self, ids: Column, times: Column, window_days: int) -> Int64Array:
        """Count each row's events before its day, within the window.

        An event counts when `day_start - window_days <= time < day_start`, where
        day_start is the start of the row's UTC day: the day itself never leaks in.

        Args:
            ids: [N], the type of the events'.
            times: [N] unix seconds.
            window_days: length of the window.

        Returns:
            int64 [N].

        Raises:
            UserError: see the class; ids of another type than the events'.
        """
        array, days = _checked(ids, times, f"{self._name} of the rows")
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
    """What decides an impression's cohorts: its user's and its item's activity.

    A user's activity is all their events, an item's those of some actions (the paper:
    clicks, impressions and purchases of a user; purchases of an item).

    Args:
        interactions: the behaviour log.
        item_actions: that count for items.
        window_days: see `CohortConfig`.
    """

    def __init__(
        self, interactions: pa.Table, item_actions: Sequence[str], window_days: int
    ) -> None:
        wanted = pc.is_in(interactions[ACTION], value_set=pa.array(item_actions))
        for_items = interactions.filter(wanted)
        self._window_days = window_days
        self._users = ActivityLog(
            interactions[USER_ID], interactions[TIMESTAMP], USER_ID
        )
        self._items = ActivityLog(for_items[ITEM_ID], for_items[TIMESTAMP], ITEM_ID)

    def added_to(self, impressions: pa.Table) -> pa.Table:
        """Return the impressions with the counts of each row.

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


def _checked(ids: Column, times: Column, name: str) -> tuple[pa.Array, Int64Array]:
    """Return the ids, and the day of each."""
    array, values = as_ids(ids, name), np.asarray(times)
    if len(values) and not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"times of {name}: {values.dtype}, must be unix seconds")
    if len(array) != len(values):
        raise UserError(
            f"{name}: {len(array)} ids against {len(values)} times; pass one time per "
            "id"
        )
    return array, values.astype(np.int64) // _SECONDS_PER_DAY
