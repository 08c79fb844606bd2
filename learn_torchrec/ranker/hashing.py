"""Raw ids to table rows: one stable hash for int64 and string ids."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from learn_torchrec.errors import UserError


def hash_ids(values: pa.Array, num_rows: int, column: str) -> NDArray[np.int64]:
    """Map ids to rows 0 to num_rows - 1, the same in every process and version.

    Args:
        values: integer or string [N], no nulls.
        num_rows: rows of the table.
        column: name, for the message.

    Raises:
        UserError: ids of another type.
    """
    keys = _mix(_keys(values, column))
    return (keys % np.uint64(num_rows)).astype(np.int64)


def raw_keys(values: pa.Array, column: str) -> NDArray[np.int64]:
    """Return one non-negative 63-bit key for each id; arguments of `hash_ids`."""
    return (_mix(_keys(values, column)) >> np.uint64(1)).astype(np.int64)


def as_integers(values: pa.Array, column: str) -> NDArray[np.int64]:
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


def _keys(values: pa.Array, column: str) -> NDArray[np.uint64]:
    if pt.is_string(values.type) or pt.is_large_string(values.type):
        encoded = values.dictionary_encode()
        return np.array(
            [_string_key(text) for text in encoded.dictionary.to_pylist()], np.uint64
        )[encoded.indices.to_numpy()]
    if pt.is_integer(values.type):
        if not pt.is_uint64(values.type):
            values = values.cast(pa.int64())
        return values.to_numpy().view(np.uint64)
    raise UserError(
        f"column {column!r} is {values.type}; an ID feature must be an integer or a "
        "string, or a list of them"
    )


def _string_key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _mix(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread neighbouring integers over all 64 bits (the splitmix64 finaliser)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
