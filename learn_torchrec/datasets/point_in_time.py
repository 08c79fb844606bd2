"""Point-in-time counts: of events strictly before each row.

Letters: E events, N rows.
"""

import numpy as np

from learn_torchrec.arrays import Column, Int64Array
from learn_torchrec.ids import IdIndex, as_ids, encode_ids, refuse_other_type


class PastEvents:
    """Events by id and time, sorted once, then counted for any number of rows.

    In memory: 16 to 24 bytes for each event, 40 for each id, the id's own bytes.

    Args:
        ids: [E] integers or strings.
        times: int64 [E], unix seconds.
        positives: bool [E], events to count apart; None for none.
        name: of the ids' column, for messages.
    """

    def __init__(
        self,
        ids: Column,
        times: Int64Array,
        positives: Column | None = None,
        name: str = "id",
    ) -> None:
        codes, distinct = encode_ids(ids, name)
        self._name, self._index = name, IdIndex.build(distinct, name)
        # With times replaced by their ranks, (id, time) fits one int64 key.
        self._times, ranks = np.unique(times, return_inverse=True)
        keys = codes * self._stride + ranks
        marked = np.zeros(len(keys), bool) if positives is None else positives
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._positives = _running_sum(np.asarray(marked)[order])
        counts = np.bincount(ranks, minlength=len(self._times))
        of_rank = np.bincount(ranks[marked], minlength=len(self._times))
        self._all = _running_sum(counts), _running_sum(of_rank)

    def before(self, ids: Column, times: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Count the events of each row's id strictly before the row's time.

        Args:
            ids: [N], of the events' type; an unknown id has no events.
            times: int64 [N], unix seconds.

        Returns:
            Events, and positives among them, int64 [N] each.

        Raises:
            UserError: ids of another type than the events'.
        """
        wanted = as_ids(ids, self._name)
        if len(self._keys):
            refuse_other_type(wanted, self._index.type, self._name, "the log")
        # All keys of an unknown id, whose row is -1, lie below the first.
        first = self._index.rows_of(wanted) * self._stride
        end = first + np.searchsorted(self._times, times)
        lo, hi = np.searchsorted(self._keys, first), np.searchsorted(self._keys, end)
        return hi - lo, self._positives[hi] - self._positives[lo]

    def all_before(self, times: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Count all events strictly before `times` [N], and the positives among them.

        Returns:
            int64 [N] each.
        """
        ranks = np.searchsorted(self._times, times)
        events, positives = self._all
        return events[ranks], positives[ranks]

    @property
    def _stride(self) -> int:
        return len(self._times) + 1


def _running_sum(values: Column) -> Int64Array:
    """Return the sums of the first 0, 1, ... values, int64 [n + 1]."""
    return np.r_[0, np.cumsum(values, dtype=np.int64)]
