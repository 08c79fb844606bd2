"""Times in one form: unix seconds, int64 or, where they are finer, timestamps."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.arrays import Column, Int64Array, as_arrow, name_rows
from learn_torchrec.errors import UserError

YEAR_2200 = 7_258_118_400
# Timestamps of these units in a second.
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


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
    if not is_time(array.type) and len(array):
        raise _other_type(name, str(array.type))
    ticks = as_ticks(array)
    seconds: Int64Array = np.asarray(ticks.cast(pa.int64()))
    if pt.is_timestamp(ticks.type):
        seconds = seconds // TICKS[ticks.type.unit]
    if len(seconds):
        refuse_after_2200(int(seconds.max()), name)
    return seconds


def is_time(kind: pa.DataType) -> bool:
    """Whether a column of a type may hold times: integers, timestamps or dates."""
    return pt.is_integer(kind) or pt.is_timestamp(kind) or pt.is_date(kind)


def as_ticks(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return integers as int64 and dates as timestamps; timestamps are unchanged."""
    if pt.is_timestamp(times.type):
        return times
    if pt.is_uint64(times.type):  # past int64 it is implausible, as the last int64 is
        times = pc.min_element_wise(times, pa.scalar(2**63 - 1, times.type))
    return times.cast(pa.timestamp("s") if pt.is_date(times.type) else pa.int64())


def refuse_after_2200(latest: int, name: str) -> None:
    """Refuse a column whose latest time, in unix seconds, is implausible."""
    if latest > YEAR_2200:
        raise UserError(
            f"{name} holds {latest}, in unix seconds a time after 2200; milliseconds? "
            "divide by 1000, or add #time_unit=ms to a csv: or parquet: --data"
        )


def _other_type(name: str, kind: str) -> UserError:
    return UserError(f"{name}: times are {kind}; use int64 unix seconds or datetimes")
