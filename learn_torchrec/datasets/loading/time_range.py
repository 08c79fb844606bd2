"""The rows of an interval of time, counted without reading them."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pyarrow.types as pt

from learn_torchrec.errors import UserError
from learn_torchrec.times import as_seconds, is_time, refuse_after_2200


@dataclass(frozen=True)
class Interval:
    """Rows whose time is in [first, end), unix seconds.

    `column` holds the times: integers (unix seconds), Arrow timestamps or dates.
    """

    column: str
    first: int
    end: int

    def rows_of(self, table: pa.Table) -> pa.Table:
        """Return the rows of a table that are inside."""
        times = seconds(table[self.column], f"column {self.column!r}")
        bounds = pc.min_max(times).as_py()
        if len(times) and self.first <= bounds["min"] and bounds["max"] < self.end:
            return table
        return table.filter(self._inside(times))

    def count(
        self, fragment: ds.ParquetFileFragment, group: int
    ) -> tuple[int, int | None]:
        """Return how many rows of a row group are inside, and their earliest time.

        The times are read only if the footer's statistics do not decide.

        Raises:
            UserError: a time that is null, not a number, or after the year 2200.
        """
        known = _bounds(fragment, group, self.column)
        if known is not None:
            low, high, rows = known
            refuse_after_2200(high, f"{fragment.path}: column {self.column!r}")
            if self.first <= low and high < self.end:
                return rows, low
            if high < self.first or self.end <= low:
                return 0, None
        with fragment.open() as source, pq.ParquetFile(source) as file:
            column = file.read_row_group(group, [self.column])[self.column]
        times = self._checked(column, fragment, group)
        inside = times.filter(self._inside(times))
        return len(inside), pc.min(inside).as_py()

    def _inside(self, times: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.and_(pc.greater_equal(times, self.first), pc.less(times, self.end))

    def _checked(
        self, column: pa.ChunkedArray, fragment: ds.ParquetFileFragment, group: int
    ) -> pa.ChunkedArray:
        """Return the column as seconds; refuse nulls, which no comparison matches."""
        if column.null_count:
            row = pc.index(column.is_null(), pa.scalar(True)).as_py()
            before = (fragment.metadata.row_group(g).num_rows for g in range(group))
            raise UserError(
                f"{fragment.path}: column {self.column!r} has nulls, the first in row "
                f"{sum(before) + row}; drop or fill those rows"
            )
        if not is_time(column.type):
            raise UserError(
                f"{fragment.path}: column {self.column!r} is {column.type}, must be "
                "int64 (unix seconds); convert it"
            )
        return seconds(column, f"{fragment.path}: column {self.column!r}")


def seconds(times: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return times as unix seconds; `name` is their column, for messages."""
    return pa.chunked_array([as_seconds(times, name)])


def _bounds(
    fragment: ds.ParquetFileFragment, group: int, column: str
) -> tuple[int, int, int] | None:
    """Return minimum, maximum and rows if there are statistics of integers."""
    part = fragment.metadata.row_group(group)
    for place in range(part.num_columns):
        chunk = part.column(place)
        if chunk.path_in_schema == column:
            facts = chunk.statistics
            plain = pt.is_integer(fragment.physical_schema.field(column).type)
            if plain and facts and facts.has_min_max and facts.null_count == 0:
                return int(facts.min), int(facts.max), part.num_rows
    return None
