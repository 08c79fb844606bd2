"""Array types, one name each; conversion of columns; row numbers for messages."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
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
    return values if values.type == kind else values.cast(kind)


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
