"""Array types, one name each; conversion of columns; row numbers for messages."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

AnyArray: TypeAlias = NDArray[Any]
BoolArray: TypeAlias = NDArray[np.bool_]
Int16Array: TypeAlias = NDArray[np.int16]
Int32Array: TypeAlias = NDArray[np.int32]
Int64Array: TypeAlias = NDArray[np.int64]
IntArray: TypeAlias = NDArray[np.integer[Any]]
UInt64Array: TypeAlias = NDArray[np.uint64]
Float16Array: TypeAlias = NDArray[np.float16]
Float32Array: TypeAlias = NDArray[np.float32]
Float64Array: TypeAlias = NDArray[np.float64]

# A column in any form: a pyarrow, NumPy, pandas or torch array, a frame of one column,
# a sequence, or a single value.
Column: TypeAlias = Any

_ROWS_NAMED = 5
# Bytes that the offsets of Arrow's `string` reach in one array; `large_string` has no
# such end. 134 million ids of 16 bytes are more.
MOST_TEXT_BYTES = 2**31 - 1


def as_arrow(values: Column) -> pa.Array | pa.ChunkedArray:
    """Return a column as Arrow data of its own type, see `decoded`.

    NaN and NaT become null.

    Raises:
        TypeError, ValueError, NotImplementedError: values of mixed or unknown type.
    """
    if hasattr(values, "cpu"):  # a torch tensor, which this module need not import
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray) and not values.dtype.isnative:  # big-endian
        values = values.astype(values.dtype.newbyteorder("="))
    shape = getattr(values, "shape", None)
    if isinstance(values, np.ndarray) and not shape:
        values = values.reshape(1)
    elif isinstance(values, Iterator):
        values = list(values)
    elif shape is not None and len(shape) == 2:  # a DataFrame of one column, or [n, 1]
        values = np.asarray(values).reshape(shape[0])
    elif not hasattr(values, "__len__") or isinstance(values, str | bytes):
        values = [values]
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        values = pa.array(values, from_pandas=True)
    kind = decoded(values.type)
    if pa.types.is_dictionary(values.type) and _decodes_beyond(values):
        kind = _LARGE.get(kind, kind)
    return values if values.type == kind else values.cast(kind)


def joined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array: text that is too large for one as large_string."""
    if isinstance(column, pa.Array):
        return column
    return _wide(column, column.nbytes).combine_chunks()


def widened(table: pa.Table) -> pa.Table:
    """Return a table whose rows can be taken: too large text as large_string."""
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        wide = _wide(column, column.nbytes)
        if wide is not column:
            table = table.set_column(place, name, wide)
    return table


def taken(table: pa.Table, rows: pa.Array) -> pa.Table:
    """Return the rows of a table with these numbers [n], null for null.

    Unlike `pa.Table.take`, it repeats rows until their text is more than 2 GiB.
    """
    repeats = len(rows) / max(1, table.num_rows)
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        # Frequent rows may be longer than the mean: an eighth of the limit is safe.
        wide = _wide(column, int(column.nbytes * max(1.0, 8 * repeats)))
        table = table.set_column(place, name, wide)
    return table.take(rows)


def as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text of any type as chunks of `string`, each small enough."""
    pieces: list[pa.Array] = []
    for chunk in column.chunks:
        parts = max(1, -(-chunk.nbytes // (MOST_TEXT_BYTES // 2)))
        step = max(1, -(-len(chunk) // parts))
        for start in range(0, len(chunk), step):
            pieces.append(chunk.slice(start, step).cast(pa.string()))
    return pa.chunked_array(pieces, pa.string())


_LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def _wide(column: pa.ChunkedArray, size: int) -> pa.ChunkedArray:
    """Return a column as a type that holds `size` bytes in one array."""
    large = _LARGE.get(column.type)
    return column if large is None or size <= MOST_TEXT_BYTES else column.cast(large)


def _decodes_beyond(values: pa.DictionaryArray | pa.ChunkedArray) -> bool:
    """Whether one array of a dictionary's text may be too large for `string`."""
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    for chunk in chunks:
        known = chunk.dictionary
        if not len(known) or known.type not in _LARGE:
            continue
        longest = pc.max(pc.binary_length(known)).as_py() or 0
        if longest * len(chunk) > MOST_TEXT_BYTES:
            return True
    return False


def decoded(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, without dictionary or view encoding."""
    if pa.types.is_dictionary(kind):
        return decoded(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    return kind


def name_rows(is_bad: BoolArray, first_row: int = 0) -> str:
    """Return "row 3" or "rows 3, 8 and 2 more" (from 0) for the true entries.

    Args:
        is_bad: bool [N].
        first_row: row number of the first entry.
    """
    rows = np.flatnonzero(is_bad) + first_row
    named = ", ".join(str(row) for row in rows[:_ROWS_NAMED])
    rest = len(rows) - _ROWS_NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {named}{more} (counted from 0)"
