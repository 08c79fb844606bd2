"""A table in memory, read as a Parquet data set is."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER
from learn_torchrec.datasets.loading.time_range import Interval, seconds


class TableRows:
    """The rows of a table that lie in an interval, as one group; see `RowGroups`.

    Args:
        table: all rows.
        interval: the rows that are wanted.
        name: of the table, for messages.
    """

    def __init__(self, table: pa.Table, interval: Interval, name: str) -> None:
        self.name = name
        numbers = pa.array(np.arange(table.num_rows))
        self._table = interval.rows_of(table.append_column(ROW_NUMBER, numbers))
        self.sizes = np.array([self.num_rows] if self.num_rows else [], np.int64)
        times = seconds(self._table[interval.column])
        self.earliest: int | None = pc.min(times).as_py()

    @property
    def num_rows(self) -> int:
        """Wanted rows."""
        return int(self._table.num_rows)

    def __len__(self) -> int:
        return len(self.sizes)

    def empty(self) -> pa.Table:
        """Return what `pieces` yields, without rows."""
        return self._table.schema.empty_table()

    def pieces(self, group: int, skip: int = 0) -> Iterator[pa.Table]:
        """Yield the wanted rows after the first `skip`, and `ROW_NUMBER`."""
        assert group == 0
        yield self._table.slice(skip)

    def fingerprint(self) -> str:
        """Return a digest of the rows."""
        digest = hashlib.sha256(self._table.schema.serialize())
        for batch in self._table.to_batches():
            digest.update(batch.serialize())
        return digest.hexdigest()
