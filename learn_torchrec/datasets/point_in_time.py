"""Counts as of a moment: what was known strictly before it."""

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
