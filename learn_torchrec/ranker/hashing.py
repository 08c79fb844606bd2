"""Raw ids to rows of an embedding table."""

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from learn_torchrec import ids
from learn_torchrec.arrays import Int64Array, UInt64Array
from learn_torchrec.errors import UserError


def hash_ids(values: pa.Array, num_rows: int, column: str) -> Int64Array:
    """Map ids to rows 0 to num_rows - 1, the same in every process and version.

    Args:
        values: integer or string [N], no nulls.
        num_rows: rows of the table.
        column: name, for the message.

    Raises:
        UserError: ids of another type.
    """
    return (_hashes(values, column) % num_rows).astype(np.int64)


def raw_keys(values: pa.Array, column: str) -> Int64Array:
    """Return one non-negative 63-bit key for each id; arguments of `hash_ids`."""
    return (_hashes(values, column) >> 1).astype(np.int64)


def as_integers(values: pa.Array, column: str) -> Int64Array:
    """Return ids that are rows of a table already.

    Raises:
        UserError: ids that are no integers.
    """
    if not pt.is_integer(values.type) or pt.is_uint64(values.type):
        raise UserError(
            f"column {column!r} is {values.type}; ids of the kind 'index' must be "
            "int64: cast it, or use the kind 'hash'"
        )
    return values.cast(pa.int64()).to_numpy()


def _hashes(values: pa.Array, column: str) -> UInt64Array:
    if pt.is_uint64(values.type):  # often a hash already: its bits, whatever the sign
        values = values.view(pa.int64())
    return ids.hash_ids(ids.as_ids(values, f"feature column {column!r}"))
