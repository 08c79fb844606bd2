"""Reading a feature's column: scalars or lists, checked, with errors by row."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.arrays import AnyArray, BoolArray, Int64Array, joined
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER
from learn_torchrec.datasets.loading.tables import row_of
from learn_torchrec.errors import UserError, require_columns
from learn_torchrec.ids import as_ids, type_name
from learn_torchrec.jagged import offsets_of

# What becomes of a null: see `FeaturesConfig`.
Nulls: TypeAlias = Literal["fill", "refuse"]

_LISTS = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list)


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's list types."""
    return any(matches(kind) for matches in _LISTS)


@dataclass(frozen=True, kw_only=True)
class FeatureColumn:
    """The entries of a column: one per row, or those of one list per row.

    Attributes:
        name: of the column.
        source: of the table, for messages.
        values: [V], without nulls.
        lengths: int64 [N], entries of each row.
        row_numbers: int64 [N], the rows' numbers in the data set.
        is_list: whether the rows are lists.
        is_valid: bool, for each entry before nulls were dropped; None without nulls.
        all_lengths: int64 [N], entries of each row before nulls were dropped.
        has_null: bool [N], rows that are null or hold a null; None without nulls.
    """

    name: str
    source: str
    values: pa.Array
    lengths: Int64Array
    row_numbers: Int64Array
    is_list: bool
    is_valid: BoolArray | None
    all_lengths: Int64Array
    has_null: BoolArray | None

    def row_of(self, entry: int | np.integer[Any]) -> int:
        """Return the row number in the data set of an entry."""
        row = np.searchsorted(offsets_of(self.lengths), entry, side="right") - 1
        return int(self.row_numbers[row])

    def ids(self) -> pa.Array:
        """Return the entries in the normal form of ids [V]; booleans are 0 and 1.

        Raises:
            UserError: neither integers nor strings.
        """
        values = self.values
        if pt.is_boolean(values.type):
            values = values.cast(pa.int8())
        return as_ids(values, f"{self.source}: column {self.name!r}")

    def numbers(self, dtype: Any = np.float32) -> AnyArray:
        """Return the entries as floats [V].

        Raises:
            UserError: not a number type, or a value is not finite.
        """
        kind = self.values.type
        if not is_number(kind):
            raise UserError(
                f"{self.source}: column {self.name!r} is {type_name(kind)}, must be a "
                "number; convert it, or list it under ranker.features.sparse"
            )
        values = self.values.cast(pa.from_numpy_dtype(dtype), safe=False)
        numbers: AnyArray = values.to_numpy(zero_copy_only=False)
        is_finite = np.isfinite(numbers)
        if not is_finite.all():
            bad = np.argmin(is_finite)
            raise UserError(
                f"{self.source}: column {self.name!r} is {self.values[bad]} in row "
                f"{self.row_of(bad)}, no finite {np.dtype(dtype)}; replace it"
            )
        return numbers

    def spread(self, values: AnyArray, fill: float) -> AnyArray:
        """Return values [V] at the places of all entries, `fill` where one is null."""
        if self.is_valid is None:
            return values
        spread = np.full(len(self.is_valid), fill, values.dtype)
        spread[self.is_valid] = values
        return spread


def is_number(kind: pa.DataType) -> bool:
    """Whether a type's values can be used as numbers."""
    return any(
        matches(kind)
        for matches in (pt.is_floating, pt.is_integer, pt.is_boolean, pt.is_decimal)
    )


def read_column(
    table: pa.Table, name: str, source: str, nulls: Nulls = "refuse"
) -> FeatureColumn:
    """Return a feature's column; NaN counts as null.

    Raises:
        UserError: it is missing, or has nulls and these are refused.
    """
    known = [column for column in table.column_names if column != ROW_NUMBER]
    require_columns(known, [name], source, "change ranker.features")
    column = joined(table[name])
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    rows = np.arange(table.num_rows)
    if ROW_NUMBER in table.column_names:
        rows = table[ROW_NUMBER].to_numpy()
    lengths = np.ones(len(column), np.int64)
    has_null, lists = np.zeros(len(column), bool), is_list(column.type)
    if lists:
        has_null |= _is_null(column)
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        lengths = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
        column = column.flatten()
    is_null = _is_null(column)
    is_valid, all_lengths = None, lengths
    if is_null.any():
        is_valid = ~is_null
        valid_before = np.r_[0, np.cumsum(is_valid)]
        lengths = np.diff(valid_before[offsets_of(lengths)])
        has_null |= lengths < all_lengths
        column = column.filter(pa.array(is_valid))
    if nulls == "refuse" and has_null.any():
        row = row_of(table, np.argmax(has_null))
        raise UserError(
            f"{source}: feature column {name!r} {'holds a' if lists else 'is'} null in "
            f"row {row}; fill it, or set ranker.features.nulls=fill"
        )
    return FeatureColumn(
        name=name,
        source=source,
        values=column,
        lengths=lengths,
        row_numbers=rows,
        is_list=lists,
        is_valid=is_valid,
        all_lengths=all_lengths,
        has_null=has_null if has_null.any() else None,
    )


def _is_null(column: pa.Array) -> BoolArray:
    """Return where a column is null or NaN, bool [n]."""
    if not column.null_count and not pt.is_floating(column.type):
        return np.zeros(len(column), bool)
    found: BoolArray = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    return found
