"""Point-in-time counts, of events strictly before each row."""

import numpy as np

from learn_torchrec.arrays import Int64Array


def running_counts(
    ids: Int64Array, times: Int64Array, labels: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """Count each row's earlier rows of the same id, and those that are positive.

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
