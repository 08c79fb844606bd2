"""Activity cohorts of users and items (paper, the A/B test's table).

The paper counts a user's clicks, impressions and purchases, and an item's
purchases, over the previous six months; it leaves an item with exactly 30
purchases in no cohort, we count it among the others.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.arrays import (
    BoolArray,
    Column,
    Int64Array,
    as_id_array,
    name_rows,
)

SECONDS_PER_DAY = 86_400
COLD = "cold"
LONG_TAIL = "long_tail"
OTHERS = "others"


@dataclass(frozen=True, kw_only=True)
class CohortConfig:
    """Bounds of the cohorts, in events within the window; the paper's by default.

    Attributes:
        user_long_tail_from: fewest events of a long-tail user; fewer is cold.
        user_others_from: fewest events of a user among the others.
        item_long_tail_from: fewest events of a long-tail item; fewer is cold.
        item_others_from: fewest events of an item among the others.
        window_days: days before the impression's UTC day whose events count.
    """

    user_long_tail_from: int = 1
    user_others_from: int = 36
    item_long_tail_from: int = 1
    item_others_from: int = 30
    window_days: int = 180

    def __post_init__(self) -> None:
        for side in ("user", "item"):
            long_tail_from = getattr(self, f"{side}_long_tail_from")
            others_from = getattr(self, f"{side}_others_from")
            if not 0 <= long_tail_from <= others_from:
                raise ValueError(
                    f"{side}_long_tail_from={long_tail_from} and "
                    f"{side}_others_from={others_from}: must be 0 or more, in order"
                )
        if self.window_days < 1:
            raise ValueError(f"window_days={self.window_days}: must be 1 or more")


def assign_cohorts(
    counts: Column, long_tail_from: int, others_from: int
) -> dict[str, BoolArray]:
    """Split rows by activity; every row is in exactly one cohort.

    Args:
        counts: int64 [N] events of the row's user or item.
        long_tail_from: fewest events of the long tail.
        others_from: fewest events of the others.

    Returns:
        Masks bool [N] named "cold", "long_tail" and "others".

    Raises:
        UserError: negative counts.
    """
    values = np.asarray(counts)
    if (values < 0).any():
        raise UserError(
            f"activity: negative count in {name_rows(values < 0)}; counts start at 0"
        )
    return {
        COLD: values < long_tail_from,
        LONG_TAIL: (values >= long_tail_from) & (values < others_from),
        OTHERS: values >= others_from,
    }


def activity_before_day(
    event_ids: Column,
    event_times: Column,
    query_ids: Column,
    query_times: Column,
    window_days: int,
) -> Int64Array:
    """Count each query id's events before the query's day, within the window.

    An event counts when `day_start - window_days <= time < day_start`, where
    day_start is the start of the query's UTC day: the day itself never leaks in.

    Args:
        event_ids: [E] int64 or string.
        event_times: [E] unix seconds.
        query_ids: [Q], the same type as `event_ids`.
        query_times: [Q] unix seconds.
        window_days: length of the window.

    Returns:
        int64 [Q].

    Raises:
        UserError: ids of two types, or ids and times of different lengths.
    """
    event_days = _days(event_times)
    query_days = _days(query_times)
    event_codes, query_codes = _encode_together(event_ids, query_ids)
    for name, codes, days in (
        ("event", event_codes, event_days),
        ("query", query_codes, query_days),
    ):
        if codes.shape != days.shape:
            raise UserError(
                f"{name} ids and times: {len(codes)} against {len(days)} rows; "
                "pass one time per id"
            )
    # Both ends of the window are day starts, so only the order of days matters;
    # with days replaced by their rank, (id, day) fits one int64 key.
    known_days, day_ranks = np.unique(event_days, return_inverse=True)
    stride = len(known_days) + 1
    keys = np.sort(event_codes * stride + day_ranks)
    first = np.searchsorted(known_days, query_days - window_days)
    end = np.searchsorted(known_days, query_days)
    counts = np.searchsorted(keys, query_codes * stride + end) - np.searchsorted(
        keys, query_codes * stride + first
    )
    return counts.astype(np.int64)


def _days(times: Column) -> Int64Array:
    values = np.asarray(times)
    if len(values) and not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"times: {values.dtype}, unix seconds (int64) are needed")
    return values.astype(np.int64) // SECONDS_PER_DAY


def _encode_together(
    event_ids: Column, query_ids: Column
) -> tuple[Int64Array, Int64Array]:
    events = as_id_array(event_ids, "event ids")
    queries = as_id_array(query_ids, "query ids")
    if len(events) and len(queries) and events.type != queries.type:
        raise UserError(
            f"event ids are {events.type}, query ids {queries.type}; "
            "use one type for both"
        )
    if not len(events):
        return np.zeros(0, np.int64), np.zeros(len(queries), np.int64)
    if not len(queries):
        return np.zeros(len(events), np.int64), np.zeros(0, np.int64)
    codes = pa.concat_arrays([events, queries]).dictionary_encode().indices
    values = codes.to_numpy(zero_copy_only=False).astype(np.int64)
    return values[: len(events)], values[len(events) :]
