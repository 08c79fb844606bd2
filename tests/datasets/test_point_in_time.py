import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.datasets.point_in_time import PastEvents
from learn_torchrec.errors import UserError


def test_counts_by_hand():
    past = PastEvents(ids=np.array([1, 1, 2, 1]), times=np.array([5, 3, 4, 5]))
    # Not the events of the row's own second; id 7 has none.
    events = past.before([1, 1, 1, 2, 7], np.array([3, 5, 6, 99, 99]))
    assert events.tolist() == [0, 1, 3, 1, 0]
    assert past.all_before(np.array([3, 4, 5, 6])).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("kind", [pa.int32(), pa.string()])
def test_counts_equal_a_plain_loop(kind):
    random = np.random.default_rng(1)
    ids, times = random.integers(0, 8, 300), random.integers(0, 30, 300)  # many ties
    past = PastEvents(pa.array(ids).cast(kind), times)
    wanted, moments = random.integers(-2, 10, 200), random.integers(-5, 40, 200)
    events = past.before(pa.array(wanted).cast(kind), moments)
    for row in range(200):
        earlier = times < moments[row]
        assert past.all_before(moments)[row] == earlier.sum()
        assert events[row] == (earlier & (ids == wanted[row])).sum()


def test_a_log_without_events_and_other_ids():
    empty = PastEvents(pa.array([], pa.int64()), np.array([], np.int64))
    assert empty.before(["a"], np.array([5])).tolist() == [0]
    assert empty.all_before(np.array([5])).tolist() == [0]
    past = PastEvents(np.array([1]), np.array([1]), name="user_id")
    with pytest.raises(UserError, match="user_id: ids are string, but int64 in the lo"):
        past.before(["1"], np.array([5]))
