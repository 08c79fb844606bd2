import numpy as np

from learn_torchrec.datasets import point_in_time


def random_log(seed: int, count: int = 200):
    random = np.random.default_rng(seed)
    return (
        random.integers(0, 8, count),
        random.integers(0, 30, count),  # many ties
        random.integers(0, 2, count),
    )


def test_running_counts_by_hand():
    ids = np.array([1, 1, 2, 1, 1])
    times = np.array([5, 3, 4, 5, 9])
    labels = np.array([1, 1, 1, 0, 0])
    events, positives = point_in_time.running_counts(ids, times, labels)
    # Rows 0 and 3 have the same time: neither counts for the other.
    assert events.tolist() == [1, 0, 0, 1, 3]
    assert positives.tolist() == [1, 0, 0, 1, 2]


def test_running_counts_equal_a_plain_loop():
    ids, times, labels = random_log(1)
    events, positives = point_in_time.running_counts(ids, times, labels)
    for row in range(len(ids)):
        earlier = (ids == ids[row]) & (times < times[row])
        assert events[row] == earlier.sum()
        assert positives[row] == labels[earlier].sum()
