"""Sorted events, one whole user after another, however batches are cut."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.datasets.preparation.user_stream import UserStream

# user, item, time, action; sorted, with repeats next to each other.
EVENTS = [
    ("a", 1, 10, 0),
    ("a", 1, 10, 0),  # a repeat
    ("a", 1, 10, 1),
    ("a", 2, 30, 0),
    ("b", 2, 30, 0),  # like the row before, of another user
    ("c", 5, 1, 0),
    ("c", 5, 1, 0),  # a repeat: one event is left, too few
    ("d", 1, 5, 0),
    ("d", 2, 5, 0),
]
NAMES = ("user_id", "item", "event_time", "action", "tick")


def run(cuts: list[int], **options: object) -> tuple[UserStream, list[tuple]]:
    return run_on([(*event, event[2] * 10) for event in EVENTS], cuts, **options)


def run_on(
    events: list[tuple], cuts: list[int], **options: object
) -> tuple[UserStream, list[tuple]]:
    columns = zip(*events, strict=True)
    table = pa.table(dict(zip(NAMES, columns, strict=True)))
    bounds = [0, *cuts, len(events)]
    batches = [
        pa.RecordBatch.from_arrays(
            [c.combine_chunks() for c in table.slice(lo, hi - lo).columns], NAMES
        )
        for lo, hi in itertools.pairwise(bounds)
    ]
    settings = {"min_events": 2, "drop_repeats": True} | options
    stream = UserStream(batches, **settings)
    rows = [tuple(row.values()) for b in stream.events() for row in b.to_pylist()]
    return stream, rows


@pytest.mark.parametrize("seed", range(20))
def test_any_batches_give_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    cuts = sorted(random.integers(0, len(EVENTS) + 1, seed % 9).tolist())
    stream, rows = run(cuts)
    assert rows == [(1, 10, 0), (1, 10, 1), (2, 30, 0), (1, 5, 0), (2, 5, 0)]
    assert (stream.rows, stream.repeats, stream.of_short_users) == (9, 2, 2)
    assert stream.users().to_pydict() == {
        "user_id": ["a", "d"],
        "events": [3, 2],
    }


def test_repeats_may_stay() -> None:
    stream, rows = run([], drop_repeats=False)
    assert len(rows) == 8
    assert (stream.repeats, stream.of_short_users) == (0, 1)
    assert stream.users()["events"].to_pylist() == [4, 2, 2]


def test_nobody_stays() -> None:
    stream, rows = run([3, 6], min_events=9)
    assert rows == []
    assert stream.users().num_rows == 0
    assert stream.of_short_users == 7


def test_the_same_again_within_a_second_is_no_repeat() -> None:
    events = [("a", 1, 10, 0, 101), ("a", 1, 10, 0, 105), ("a", 1, 10, 0, 105)]
    stream, rows = run_on([*events, ("a", 2, 10, 0, 109)], [])
    assert rows == [(1, 10, 0), (1, 10, 0), (2, 10, 0)]
    assert stream.repeats == 1
