"""Times in one form: unix seconds, int64 or, where they are finer, timestamps."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.arrays import Column, Int64Array, as_arrow, name_rows
from learn_torchrec.errors import UserError, first_line
from learn_torchrec.ids import is_text

YEAR_2200 = 7_258_118_400
# Timestamps of these units in a second.
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# ISO 8601, without backslashes, which SQL engines read differently.
ISO = (
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}(:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?)?"
    "( ?UTC|Z|[+-][0-9]{2}:?[0-9]{2})?)?$"
)
_ZONE = "(Z|[0-9][+-][0-9]{2}:?[0-9]{2})$"
_MOST_MICROS = 9.2e18  # of int64


def as_seconds(values: Column, name: str) -> Int64Array:
    """Return times as unix seconds, int64 [n].

    Fractions are floored (which stays point-in-time). Times without a zone are UTC.

    Args:
        values: [n] unix seconds, as integers, doubles or decimals; dates and times of
            any library; or ISO 8601 texts.
        name: of the column or argument, for messages.

    Raises:
        UserError: times of another type, null times, texts in another notation, or
            times after the year 2200, which must be milliseconds.
    """
    try:
        array = as_arrow(values)
    except (TypeError, ValueError, NotImplementedError):
        raise _other_type(name, "of mixed or unknown type") from None
    if not (is_time(array.type) or pt.is_null(array.type)):
        raise _other_type(name, str(array.type))
    ticks = as_ticks(array, name)
    if ticks.null_count:
        is_null = ticks.is_null().to_numpy(zero_copy_only=False)
        raise UserError(f"{name}: null time in {name_rows(is_null)}; remove or fill it")
    seconds: Int64Array = np.asarray(ticks.cast(pa.int64()))
    if pt.is_timestamp(ticks.type):
        seconds = seconds // TICKS[ticks.type.unit]
    if len(seconds):
        refuse_after_2200(int(seconds.max()), name)
    return seconds


def is_time(kind: pa.DataType) -> bool:
    """Whether a column of a type may hold times, see `as_seconds`.

    Not float32, which is wrong by a minute.
    """
    return (
        pt.is_integer(kind)
        or pt.is_timestamp(kind)
        or pt.is_date(kind)
        or pt.is_float64(kind)
        or pt.is_decimal(kind)
        or is_text(kind)
    )


def as_ticks(times: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return integers as int64 and all others as timestamps; these are unchanged.

    NaN becomes null.

    Args:
        times: of a type that `is_time`.
        name: of the column, for messages.

    Raises:
        UserError: a text that is not ISO 8601.
    """
    kind = times.type
    if pt.is_timestamp(kind):
        return times
    if pt.is_date(kind):
        return times.cast(pa.timestamp("s"))
    if is_text(kind):
        return _from_texts(times, name)
    if pt.is_floating(kind) or pt.is_decimal(kind):
        return from_numbers(times, "s")
    if pt.is_uint64(kind):  # past int64 it is implausible, as the last int64 is
        last = pa.scalar(2**63 - 1, kind)
        times = pc.min_element_wise(times, last, skip_nulls=False)
    return times.cast(pa.int64())


def from_numbers(times: pa.ChunkedArray, unit: str) -> pa.ChunkedArray:
    """Return doubles or decimals in a unit as timestamps, floored to microseconds."""
    numbers = times.cast(pa.float64())
    numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
    micros = pc.floor(pc.multiply(numbers, 1e6 / TICKS[unit]))
    for limit, bound in (
        (pc.min_element_wise, _MOST_MICROS),
        (pc.max_element_wise, -_MOST_MICROS),
    ):
        micros = limit(micros, bound, skip_nulls=False)
    return micros.cast(pa.int64()).cast(pa.timestamp("us"))


def from_iso(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ISO 8601 texts as timestamps; those without a zone are UTC.

    Raises:
        pa.ArrowInvalid: another notation, or a day that does not exist.
    """
    times = pc.replace_substring_regex(times, " ?UTC$", "Z")
    has_zone = pc.match_substring_regex(times, _ZONE)
    if not pc.any(has_zone).as_py():
        return times.cast(pa.timestamp("ns"))
    zoned = pc.if_else(has_zone, times, pc.binary_join_element_wise(times, "Z", ""))
    return zoned.cast(pa.timestamp("ns", "UTC"))


def not_iso(name: str, example: str) -> UserError:
    """Return the error for a column with a text that is not a time."""
    return UserError(
        f"{name} holds {example!r}; write times as unix seconds or as ISO 8601, e.g. "
        "2026-01-31T12:00:00Z"
    )


def _from_texts(times: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    other = times.filter(pc.invert(pc.match_substring_regex(times, ISO)))
    if len(other):
        raise not_iso(name, other[0].as_py())
    try:
        return from_iso(times)
    except pa.ArrowInvalid as error:
        raise UserError(f"{name}: {first_line(error)}; correct the time") from None


def refuse_after_2200(latest: int, name: str) -> None:
    """Refuse a column whose latest time, in unix seconds, is implausible."""
    if latest > YEAR_2200:
        raise UserError(
            f"{name} holds {latest}, in unix seconds a time after 2200; milliseconds? "
            "divide by 1000, or add #time_unit=ms to a csv: or parquet: --data"
        )


def _other_type(name: str, kind: str) -> UserError:
    return UserError(f"{name}: times are {kind}; use int64 unix seconds or datetimes")
