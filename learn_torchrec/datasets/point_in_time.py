"""Point-in-time counts: of events strictly before each row.

Letters: E events, N rows.
"""

from pathlib import Path
from typing import Self

import numpy as np

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import Column, Int64Array
from learn_torchrec.ids import UNKNOWN, IdIndex, as_ids, encode_ids, refuse_other_type

_COUNTS_FILE, _TOTAL_FILE = "counts.npy", "total.npy"


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

    def totals(self, time: int) -> "PastTotals":
        """Return the counts of all ids strictly before a time, for serving."""
        ids = self._index.ids
        counts = self.before(ids, np.full(len(ids), time))
        total = int(self.all_before(np.array([time]))[0])
        return PastTotals(self._index, counts, total, self._name)

    @property
    def _stride(self) -> int:
        return len(self._times) + 1


class PastTotals:
    """What `PastEvents` counts, at one moment: in its place where that is the present.

    Args:
        index: of the K ids.
        counts: int64 [K], events of each.
        total: events of all ids.
        name: of the ids' column, for messages.
    """

    def __init__(
        self, index: IdIndex, counts: Int64Array, total: int, name: str = "id"
    ) -> None:
        self._index, self._counts, self._total = index, counts, total
        self._name = name

    def before(self, ids: Column, times: Int64Array) -> Int64Array:
        """Return the events of each id [N], whatever the `times`, int64 [N].

        Raises:
            UserError: ids of another type than the events'.
        """
        wanted = as_ids(ids, self._name)
        if not len(self._counts):
            return np.zeros(len(wanted), np.int64)
        refuse_other_type(wanted, self._index.type, self._name, "the log")
        rows = self._index.rows_of(wanted)
        return np.where(rows == UNKNOWN, 0, self._counts[rows])

    def all_before(self, times: Int64Array) -> Int64Array:
        """Return the events of all ids, whatever the `times` [N], int64 [N]."""
        return np.full(len(times), self._total)

    def write(self, directory: Path) -> None:
        """Write the counts into a new directory."""
        directory.mkdir(parents=True)
        self._index.write(directory)
        np.save(directory / _COUNTS_FILE, self._counts)
        np.save(directory / _TOTAL_FILE, np.array(self._total))

    @classmethod
    def open(cls, directory: Path, name: str) -> Self:
        """Map the files of `write`.

        Raises:
            OSError: a file is missing; ValueError, ArrowInvalid: damaged.
        """
        index = IdIndex.open(directory)
        counts = map_array(directory / _COUNTS_FILE, np.int64, 1)
        if len(counts) != len(index):
            raise ValueError(f"{_COUNTS_FILE}: of other ids")
        return cls(index, counts, int(map_array(directory / _TOTAL_FILE)), name)
