"""Small helpers on columns: ids to codes, and rows named in messages."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_torchrec.errors import UserError

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
# A column: a NumPy array, a pyarrow array or chunked array, or a sequence.
Column = Any

UNKNOWN = -1

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


def as_id_array(ids: Column, name: str) -> pa.Array:
    """Return ids as one pyarrow array of int64 or large_string without nulls.

    Args:
        ids: [N] integers or strings.
        name: the column's name, for messages.

    Raises:
        UserError: ids of another type, or null ids.
    """
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    elif not isinstance(ids, pa.Array):
        ids = np.asarray(ids)
        if ids.size == 0:
            ids = ids.astype(np.int64)
        try:
            ids = pa.array(ids, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            raise UserError(
                f"{name}: ids of mixed or unknown type; use all integers or all strings"
            ) from None
    kind = ids.type.value_type if pa.types.is_dictionary(ids.type) else ids.type
    if pa.types.is_integer(kind):
        target = pa.int64()
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        target = pa.large_string()
    else:
        raise UserError(f"{name}: ids are {kind}; use int64 or string")
    if ids.null_count:
        bad = np.asarray(ids.is_null().to_numpy(zero_copy_only=False), dtype=bool)
        raise UserError(f"{name}: null id in {name_rows(bad)}; remove or fill them")
    try:
        return ids.cast(target)
    except pa.ArrowInvalid:
        raise UserError(f"{name}: an id does not fit int64; use strings") from None


def encode_ids(ids: Column, name: str) -> tuple[Int64Array, int]:
    """Return codes [N] (distinct ids in order of first appearance) and their number.

    Raises:
        UserError: see `as_id_array`.
    """
    encoded = as_id_array(ids, name).dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, len(encoded.dictionary)


class IdCodes:
    """Known ids to their places 0, 1, ...; built once, asked again and again.

    Args:
        ids: int64 or string [K], distinct.
    """

    def __init__(self, ids: pa.Array) -> None:
        self._places: dict[str, int] | None = None
        if pa.types.is_integer(ids.type):
            values = ids.to_numpy()
            self._order = np.argsort(values)
            self._sorted = values[self._order]
        else:
            self._places = {text: i for i, text in enumerate(ids.to_pylist())}

    def of(self, ids: pa.Array) -> Int64Array:
        """Return the place of each id [N], of the known ids' type; else UNKNOWN."""
        if self._places is not None:
            places = self._places
            found = (places.get(text, UNKNOWN) for text in ids.to_pylist())
            return np.fromiter(found, np.int64, len(ids))
        if not len(self._sorted):
            return np.full(len(ids), UNKNOWN)
        values = ids.to_numpy()
        place = np.searchsorted(self._sorted, values)
        place = np.minimum(place, len(self._sorted) - 1)
        known = self._sorted[place] == values
        return np.where(known, self._order[place], UNKNOWN)
