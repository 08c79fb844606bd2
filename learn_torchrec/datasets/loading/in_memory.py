"""A table in memory as a row source, like a Parquet data set."""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.datasets.loading.row_groups import (
    PIECE_ROWS,
    ROW_NUMBER,
    without_views,
)
from learn_torchrec.datasets.loading.tables import row_of
from learn_torchrec.datasets.loading.time_range import Interval, Lacking, seconds


class TableRows:
    """The rows of a table in an interval of time, as one group; see `RowGroups`.

    Args:
        table: all rows.
        interval: of the selected rows; None for all.
        name: of the table, for messages.

    Attributes:
        earliest: the first time in the interval; None without one.
        lacking: rows that are left out, by the column in which they lack a value.
    """

    def __init__(self, table: pa.Table, interval: Interval | None, name: str) -> None:
        self.name = name
        # Arrow cannot filter views.
        plain = [f.with_type(without_views(f.type)) for f in table.schema]
        table = table.cast(pa.schema(plain))
        if ROW_NUMBER not in table.column_names:
            numbers = pa.array(np.arange(table.num_rows))
            table = table.append_column(ROW_NUMBER, numbers)
        self._table = table
        self.earliest: int | None = None
        self.lacking: Lacking = {}
        if interval is not None:
            keep, lacking = interval.select(table)
            self.lacking = {
                name: (count, row_of(table, row))
                for name, (count, row) in lacking.items()
            }
            self._table = table if keep.all() else table.filter(pa.array(keep))
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

    def only(self, columns: Sequence[str]) -> "TableRows":
        """Return the same rows with some of their columns."""
        narrow = copy.copy(self)
        narrow._table = self._table.select([*columns, ROW_NUMBER])
        return narrow

    def pieces(
        self, group: int, skip: int = 0, most: int = PIECE_ROWS
    ) -> Iterator[pa.Table]:
        """Yield the selected rows after the first `skip`, with `ROW_NUMBER`.

        They are one piece, of which nothing is decoded.
        """
        assert group == 0
        yield self._table.slice(skip)
