import numpy as np
import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.cohorts import (
    CohortConfig,
    activity_before_day,
    assign_cohorts,
)

DAY = 86_400


def test_bounds_of_the_paper() -> None:
    config = CohortConfig()
    users = assign_cohorts(
        [0, 1, 35, 36, 500], config.user_long_tail_from, config.user_others_from
    )
    assert users["cold"].tolist() == [True, False, False, False, False]
    assert users["long_tail"].tolist() == [False, True, True, False, False]
    assert users["others"].tolist() == [False, False, False, True, True]
    items = assign_cohorts(
        [0, 29, 30], config.item_long_tail_from, config.item_others_from
    )
    assert items["long_tail"].tolist() == [False, True, False]
    assert items["others"].tolist() == [False, False, True]


def test_negative_counts_are_refused() -> None:
    with pytest.raises(UserError, match="negative count in row 1"):
        assign_cohorts([0, -1], 1, 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_others_from", 0),
        ("item_long_tail_from", 31),
        ("user_long_tail_from", -1),
        ("window_days", 0),
    ],
)
def test_bounds_out_of_order_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        CohortConfig(**{field: value})


def test_window_ends_before_the_query_day() -> None:
    # The query is at noon of day 10, the window days 8 and 9.
    times = [8 * DAY - 1, 8 * DAY, 10 * DAY - 1, 10 * DAY, 10 * DAY + 1]
    for ids in ([1] * 5, ["a"] * 5):
        counts = activity_before_day(
            ids, times, ids[:1], [10 * DAY + DAY // 2], window_days=2
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
    counts = activity_before_day(event_ids, event_times, query_ids, query_times, 7)
    assert max(expected) > 1
    assert counts.tolist() == expected


def test_no_events_and_no_queries() -> None:
    assert activity_before_day([], [], ["a", "b"], [DAY, DAY], 7).tolist() == [0, 0]
    assert activity_before_day(["a"], [0], [], [], 7).tolist() == []


def test_unfit_columns_are_refused() -> None:
    with pytest.raises(UserError, match="use one type for both"):
        activity_before_day([1], [0], ["a"], [DAY], 7)
    with pytest.raises(UserError, match="event ids and times: 2 against 1 rows"):
        activity_before_day([1, 2], [0], [1], [DAY], 7)
    with pytest.raises(UserError, match="unix seconds"):
        activity_before_day([1], [0.5], [1], [DAY], 7)
