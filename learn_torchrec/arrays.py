"""Types of NumPy arrays, one name each, and messages about their rows."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

AnyArray: TypeAlias = NDArray[Any]
BoolArray: TypeAlias = NDArray[np.bool_]
Int16Array: TypeAlias = NDArray[np.int16]
Int64Array: TypeAlias = NDArray[np.int64]
UInt64Array: TypeAlias = NDArray[np.uint64]
Float16Array: TypeAlias = NDArray[np.float16]
Float32Array: TypeAlias = NDArray[np.float32]
Float64Array: TypeAlias = NDArray[np.float64]

_ROWS_NAMED = 5


def name_rows(is_bad: BoolArray, first_row: int = 0) -> str:
    """Return "row 3" or "rows 3, 8, ... and 2 more" (from 0) for the true entries.

    Args:
        is_bad: bool [N].
        first_row: number of the first entry's row.
    """
    rows = np.flatnonzero(is_bad) + first_row
    named = ", ".join(str(row) for row in rows[:_ROWS_NAMED])
    rest = len(rows) - _ROWS_NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {named}{more} (counted from 0)"
