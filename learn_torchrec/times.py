"""Times in one form: unix seconds."""

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from learn_torchrec.arrays import Column, Int64Array, as_arrow, name_rows
from learn_torchrec.errors import UserError

_YEAR_2200 = 7_258_118_400


def as_seconds(values: Column, name: str) -> Int64Array:
    """Return times as unix seconds, int64 [n].

    Fractions are floored (which stays point-in-time). Times without a zone are UTC.

    Args:
        values: [n] integers (unix seconds) or dates and times of any library.
        name: of the column or argument, for messages.

    Raises:
        UserError: times of another type, null times, or integers beyond the year 2200,
            which must be milliseconds.
    """
    try:
        array = as_arrow(values)
    except (TypeError, ValueError, NotImplementedError):
        raise _other_type(name, "of mixed or unknown type") from None
    if array.null_count:
        is_null = array.is_null().to_numpy(zero_copy_only=False)
        raise UserError(f"{name}: null time in {name_rows(is_null)}; remove or fill it")
    if pt.is_timestamp(array.type) or pt.is_date(array.type):
        array = array.cast(pa.timestamp("s"), safe=False)
    elif not pt.is_integer(array.type) and len(array):
        raise _other_type(name, str(array.type))
    seconds: Int64Array = np.asarray(array.cast(pa.int64()))
    if len(seconds) and seconds.max() > _YEAR_2200:
        raise UserError(
            f"{name} holds {seconds.max()}, in unix seconds a time after 2200; "
            "milliseconds? divide by 1000"
        )
    return seconds


def _other_type(name: str, kind: str) -> UserError:
    return UserError(f"{name}: times are {kind}; use int64 unix seconds or datetimes")
