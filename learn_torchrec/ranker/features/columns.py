"""Reading a feature's column: scalars or lists, checked, with errors by row."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.arrays import AnyArray, Int64Array
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER
from learn_torchrec.datasets.loading.tables import row_of
from learn_torchrec.errors import UserError
from learn_torchrec.ids import type_name
from learn_torchrec.jagged import offsets_of

_LISTS = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list)


@dataclass(frozen=True)
class FeatureColumn:
    """The entries of a column: one per row, or those of one list per row.

    Attributes:
        name: of the column.
        source: of the table, for messages.
        values: [V], without nulls.
        lengths: int64 [N], entries of each row.
        row_numbers: int64 [N], the rows' numbers in the data set.
        is_list: whether the rows are lists.
    """

    name: str
    source: str
    values: pa.Array
    lengths: Int64Array
    row_numbers: Int64Array
    is_list: bool

    def row_of(self, entry: int | np.integer[Any]) -> int:
        """Return the row number in the data set of an entry."""
        row = np.searchsorted(offsets_of(self.lengths), entry, side="right") - 1
        return int(self.row_numbers[row])

    def numbers(self, dtype: Any = np.float32) -> AnyArray:
        """Return the entries as floats [V].

        Raises:
            UserError: not a number type, or a value is not finite.
        """
        kind = self.values.type
        if not (pt.is_floating(kind) or pt.is_integer(kind) or pt.is_boolean(kind)):
            raise UserError(
                f"{self.source}: column {self.name!r} is {type_name(kind)}, must be a "
                "number; cast it, or list it under ranker.features.sparse"
            )
        values = self.values.cast(pa.from_numpy_dtype(dtype), safe=False)
        numbers: AnyArray = values.to_numpy(zero_copy_only=False)
        is_finite = np.isfinite(numbers)
        if not is_finite.all():
            bad = np.argmin(is_finite)
            raise UserError(
                f"{self.source}: column {self.name!r} is {numbers[bad]} in row "
                f"{self.row_of(bad)}; replace it by a finite number"
            )
        return numbers


def read_column(table: pa.Table, name: str, source: str) -> FeatureColumn:
    """Return a feature's column.

    Raises:
        UserError: it is missing or has nulls.
    """
    if name not in table.column_names:
        known = (column for column in table.column_names if column != ROW_NUMBER)
        raise UserError(
            f"{source}: feature column {name!r} is missing; it has: "
            f"{', '.join(known)}; add it, or change ranker.features"
        )
    column = table[name].combine_chunks()
    if column.null_count:
        row = row_of(table, pc.index(column.is_null(), pa.scalar(True)).as_py())
        raise UserError(
            f"{source}: feature column {name!r} is null in row {row}; fill it"
        )
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    rows = np.arange(table.num_rows)
    if ROW_NUMBER in table.column_names:
        rows = table[ROW_NUMBER].to_numpy()
    if not any(matches(column.type) for matches in _LISTS):
        ones = np.ones(len(column), np.int64)
        return FeatureColumn(name, source, column, ones, rows, is_list=False)
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    entries = FeatureColumn(name, source, column.flatten(), lengths, rows, is_list=True)
    if entries.values.null_count:
        null = pc.index(entries.values.is_null(), pa.scalar(True)).as_py()
        raise UserError(
            f"{source}: the list in column {name!r} holds a null in row "
            f"{entries.row_of(null)}; drop it"
        )
    return entries
