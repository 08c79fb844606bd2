import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.activity import ActivityLog, CohortActivity

DAY = 86_400


def test_window_ends_before_the_query_day() -> None:
    # The query is at noon of day 10, the window days 8 and 9.
    times = [8 * DAY - 1, 8 * DAY, 10 * DAY - 1, 10 * DAY, 10 * DAY + 1]
    for ids in ([1] * 5, ["a"] * 5):
        counts = ActivityLog(ids, times).before_day(
            ids[:1], [10 * DAY + DAY // 2], window_days=2
        )
        assert counts.tolist() == [2]
        assert counts.dtype == np.int64


@pytest.mark.parametrize("kind", [int, str])
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_loop(seed: int, kind: type) -> None:
    random = np.random.default_rng(seed)
    event_ids = random.integers(12, size=200).astype(kind)
    event_times = random.integers(-5 * DAY, 40 * DAY, size=200)
    query_ids = random.integers(15, size=80).astype(kind)  # some without events
    query_times = random.integers(-8 * DAY, 60 * DAY, size=80)
    expected = []
    for query_id, query_time in zip(query_ids, query_times, strict=True):
        start_of_day = query_time - query_time % DAY
        expected.append(
            sum(
                event_id == query_id
                and start_of_day - 7 * DAY <= event_time < start_of_day
                for event_id, event_time in zip(event_ids, event_times, strict=True)
            )
        )
    counts = ActivityLog(event_ids, event_times).before_day(query_ids, query_times, 7)
    assert max(expected) > 1
    assert counts.tolist() == expected


def test_no_events_and_no_queries() -> None:
    assert ActivityLog([], []).before_day(["a", "b"], [DAY, DAY], 7).tolist() == [0, 0]
    assert ActivityLog(["a"], [0]).before_day([], [], 7).tolist() == []


def test_unfit_columns_are_refused() -> None:
    with pytest.raises(UserError, match=r"user_id is int64 in the events, .*string"):
        ActivityLog([1], [0], "user_id").before_day(["a"], [DAY], 7)
    with pytest.raises(UserError, match="id of the events: 2 ids against 1 times"):
        ActivityLog([1, 2], [0])
    with pytest.raises(UserError, match="times of id of the rows: float64"):
        ActivityLog([1], [0]).before_day([1], [0.5], 7)


def test_users_count_all_events_and_items_those_of_some_actions() -> None:
    log = pa.table(
        {
            "user_id": ["u", "u", "v"],
            "item_id": [1, 2, 1],
            "timestamp": [0, 0, DAY],
            "action": ["buy", "view", "buy"],
        }
    )
    rows = pa.table(
        {"user_id": ["u", "w"], "item_id": [1, 2], "timestamp": [2 * DAY, 2 * DAY]}
    )

    counted = CohortActivity.of_log(log, ["buy"], window_days=7).add_to(rows)

    assert counted["user_activity"].to_pylist() == [2, 0]
    assert counted["item_activity"].to_pylist() == [2, 0]
