"""Point-in-time counts: of events strictly before each row.

Letters: E events, N rows.
"""

import numpy as np

from learn_torchrec.arrays import Column, Int64Array
from learn_torchrec.ids import IdIndex, as_ids, encode_ids, refuse_other_type


class PastEvents:
    """Events by id and time, sorted once, then counted for any number of rows.

    In memory: 16 bytes for each event, 24 for each id, and the ids themselves.

    Args:
        ids: [E] integers or strings.
        times: int64 [E], unix seconds.
        name: of the ids' column, for messages.
    """

    def __init__(self, ids: Column, times: Int64Array, name: str = "id") -> None:
        codes, distinct = encode_ids(ids, name)
        self._name, self._index = name, IdIndex.build(distinct, name)
        self._times = np.sort(times)
        # With a time replaced by the number of events before it, (id, time) fits one
        # int64 key.
        self._keys = np.sort(codes * self._stride + self.all_before(times))

    def before(self, ids: Column, times: Int64Array) -> Int64Array:
        """Count the events of each row's id strictly before the row's time.

        Args:
            ids: [N], of the events' type; an unknown id has no events.
            times: int64 [N], unix seconds.

        Returns:
            int64 [N].

        Raises:
            UserError: ids of another type than the events'.
        """
        wanted = as_ids(ids, self._name)
        if len(self._keys):
            refuse_other_type(wanted, self._index.type, self._name, "the log")
        # All keys of an unknown id, whose row is -1, lie below the first.
        first = self._index.rows_of(wanted) * self._stride
        end = first + self.all_before(times)
        return np.searchsorted(self._keys, end) - np.searchsorted(self._keys, first)

    def all_before(self, times: Int64Array) -> Int64Array:
        """Count the events of all ids strictly before `times` [N], int64 [N]."""
        return np.searchsorted(self._times, times)

    @property
    def _stride(self) -> int:
        return len(self._times) + 1
