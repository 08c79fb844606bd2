"""The rows of an interval of time, counted without reading them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pyarrow.types as pt

from learn_torchrec.arrays import BoolArray
from learn_torchrec.errors import UserError
from learn_torchrec.page_checksums import VERIFIED
from learn_torchrec.times import as_seconds, is_time, refuse_after_2200

# Rows that lack a value, by column: how many, and the place of the first. A row that
# lacks several counts for the first column alone.
Lacking: TypeAlias = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Interval:
    """Rows whose time is in [first, end), unix seconds, and that lack no value.

    `column` holds the times: integers (unix seconds), Arrow timestamps or dates. Rows
    without a time, and rows inside that have a null in a column of `required`, are left
    out.
    """

    column: str
    first: int
    end: int
    required: tuple[str, ...] = ()

    def rows_of(self, table: pa.Table) -> pa.Table:
        """Return the rows of a table that are inside."""
        keep, _ = self.select(table)
        return table if keep.all() else table.filter(pa.array(keep))

    def select(
        self, table: pa.Table, name: str | None = None
    ) -> tuple[BoolArray, Lacking]:
        """Return whether each row is inside, bool [N], and which ones lack a value.

        `name` is the column of the times, for messages.
        """
        keep, lacking = lacking_rows(table, (self.column,))
        times = np.full(table.num_rows, self.first - 1)
        known = table[self.column].drop_null()
        times[keep] = as_seconds(known, name or f"column {self.column!r}")
        keep &= (times >= self.first) & (times < self.end)
        required = [name for name in self.required if name != self.column]
        return keep, lacking | lacking_rows(table, required, keep)[1]

    def count(
        self, fragment: ds.ParquetFileFragment, group: int
    ) -> tuple[int, int | None, Lacking]:
        """Return how many rows of a row group are inside, and their earliest time.

        The columns are read only if the footer's statistics do not decide. The third
        value is the rows that lack a value.

        Raises:
            UserError: a time that is not a number, or after the year 2200.
        """
        known = _bounds(fragment, group, self.column)
        if known is not None:
            low, high, rows = known
            refuse_after_2200(high, f"{fragment.path}: column {self.column!r}")
            if high < self.first or self.end <= low:
                return 0, None, {}
            is_inside = self.first <= low and high < self.end
            if is_inside and _has_no_nulls(fragment, group, self.required):
                return rows, low, {}
        table = _read(fragment, group, dict.fromkeys((self.column, *self.required)))
        kind = table[self.column].type
        if not is_time(kind):
            raise UserError(
                f"{fragment.path}: column {self.column!r} is {kind}, must be "
                "int64 (unix seconds); convert it"
            )
        name = f"{fragment.path}: column {self.column!r}"
        keep, lacking = self.select(table, name)
        inside = seconds(table[self.column].filter(pa.array(keep)), name)
        return len(inside), pc.min(inside).as_py(), lacking


def lacking_rows(
    table: pa.Table, columns: Iterable[str], among: BoolArray | None = None
) -> tuple[BoolArray, Lacking]:
    """Return the rows that have a value in all columns, bool [N], and which lack one.

    Columns that the table does not have are skipped.

    Args:
        table: N rows.
        columns: that need a value.
        among: bool [N], the rows to look at, changed in place; None for all.
    """
    keep = np.ones(table.num_rows, bool) if among is None else among
    lacking: Lacking = {}
    for name in columns:
        if name in table.column_names and table[name].null_count:
            is_null = _mask(table[name].is_null()) & keep
            if is_null.any():
                lacking[name] = int(is_null.sum()), int(np.argmax(is_null))
                keep &= ~is_null
    return keep, lacking


def _mask(values: pa.ChunkedArray) -> BoolArray:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), bool)


def _read(
    fragment: ds.ParquetFileFragment, group: int, names: Iterable[str]
) -> pa.Table:
    """Read columns of a row group; one that the file lacks is its key, or null."""
    keys = ds.get_partition_keys(fragment.partition_expression)
    with fragment.open() as source, pq.ParquetFile(source, **VERIFIED) as file:
        here = [name for name in names if name in file.schema_arrow.names]
        table = file.read_row_group(group, here)
        rows = file.metadata.row_group(group).num_rows
    columns = {name: table[name] for name in here}
    for name in names:
        if name not in here:
            columns[name] = pa.chunked_array(
                [pa.repeat(pa.scalar(keys.get(name)), rows)]
            )
    return pa.table(columns)


def _has_no_nulls(
    fragment: ds.ParquetFileFragment, group: int, names: Sequence[str]
) -> bool:
    """Whether the footer says that columns of a row group have no null."""
    part = fragment.metadata.row_group(group)
    chunks = (part.column(place) for place in range(part.num_columns))
    whole = {
        chunk.path_in_schema
        for chunk in chunks
        if (facts := chunk.statistics) and facts.has_null_count and not facts.null_count
    }
    return whole.issuperset(names)


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
