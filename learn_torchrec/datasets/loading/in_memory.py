"""A table in memory as a row source, like a Parquet data set."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER, without_views
from learn_torchrec.datasets.loading.time_range import Interval, seconds


class TableRows:
    """The rows of a table in an interval of time, as one group; see `RowGroups`.

    Args:
        table: all rows.
        interval: of the selected rows; None for all.
        name: of the table, for messages.

    Attributes:
        earliest: the first time in the interval; None without one.
    """

    def __init__(self, table: pa.Table, interval: Interval | None, name: str) -> None:
        self.name = name
        numbers = pa.array(np.arange(table.num_rows))
        # Arrow cannot filter views.
        plain = [f.with_type(without_views(f.type)) for f in table.schema]
        table = table.cast(pa.schema(plain))
        self._table = table.append_column(ROW_NUMBER, numbers)
        self.earliest: int | None = None
        if interval is not None:
            self._table = interval.rows_of(self._table)
            times = seconds(self._table[interval.column], name)
            self.earliest = pc.min(times).as_py()
        self.sizes = np.array([self.num_rows] if self.num_rows else [], np.int64)

    @property
    def num_rows(self) -> int:
        """Selected rows."""
        return int(self._table.num_rows)

    def __len__(self) -> int:
        return len(self.sizes)

    def empty(self) -> pa.Table:
        """Return a table like those of `pieces`, without rows."""
        return self._table.schema.empty_table()

    def pieces(self, group: int, skip: int = 0) -> Iterator[pa.Table]:
        """Yield the selected rows after the first `skip`, with `ROW_NUMBER`."""
        assert group == 0
        yield self._table.slice(skip)
