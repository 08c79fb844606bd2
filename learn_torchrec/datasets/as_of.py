"""As-of joins and counts: what was known strictly before a moment.

Every function here answers for many (id, time) queries at once from one sort, and
looks only at events with a timestamp strictly smaller than the query's.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def running_counts(ids: Ints, times: Ints, labels: Ints) -> tuple[Ints, Ints]:
    """Count each row's earlier rows of the same id, and the positive ones of them.

    Args:
        ids: int64 [N].
        times: int64 [N].
        labels: int64 [N] of 0 and 1.

    Returns:
        Events and positives strictly before each row's time, int64 [N] each.
    """
    order = np.lexsort((times, ids))
    sorted_ids, sorted_times = ids[order], times[order]
    position = np.arange(len(ids))
    starts_id = np.r_[True, sorted_ids[1:] != sorted_ids[:-1]]
    starts_tie = starts_id | np.r_[True, sorted_times[1:] != sorted_times[:-1]]
    first_of_id = np.maximum.accumulate(np.where(starts_id, position, 0))
    first_of_tie = np.maximum.accumulate(np.where(starts_tie, position, 0))
    positives_before = np.r_[0, np.cumsum(labels[order])]
    events = np.empty(len(ids), np.int64)
    positives = np.empty(len(ids), np.int64)
    events[order] = first_of_tie - first_of_id
    positives[order] = positives_before[first_of_tie] - positives_before[first_of_id]
    return events, positives


def latest_before(ids: Ints, times: Ints, query_ids: Ints, query_times: Ints) -> Ints:
    """Return, for each query, the row of the latest event strictly before it.

    Args:
        ids: int64 [N] of the events, in any order.
        times: int64 [N].
        query_ids: int64 [Q].
        query_times: int64 [Q].

    Returns:
        int64 [Q], -1 where the id has no earlier event. Among events of equal
        time the one that comes last in the input is taken.
    """
    count = len(ids)
    all_ids = np.r_[ids, query_ids]
    all_times = np.r_[times, query_times]
    is_event = np.arange(len(all_ids)) < count
    # At equal time the query sorts first, so it never sees that event.
    order = np.lexsort((is_event, all_times, all_ids))
    sorted_ids = all_ids[order]
    position = np.arange(len(order))
    latest = np.maximum.accumulate(np.where(is_event[order], position, -1))
    valid = (latest >= 0) & (sorted_ids[latest] == sorted_ids)
    row = np.where(valid, order[latest], -1)
    result = np.empty(len(order), np.int64)
    result[order] = row
    return result[count:]
