"""Histories before a moment, beside a naive reference."""

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import offsets_of
from learn_torchrec.ranker.learn import histories
from learn_torchrec.ranker.learn.histories import Histories


def sequences(seed=0, users=12, items=5, events=60):
    random = np.random.default_rng(seed)
    lengths = random.multinomial(events, np.ones(users) / users)
    lengths[0] = 0
    times = [np.sort(random.integers(0, 30, size=n)) for n in lengths]
    return SequenceSet.of_offsets(
        user_ids=pa.array(range(100, 100 + users)),
        offsets=offsets_of(lengths),
        items=random.integers(0, items, size=lengths.sum()),
        times=np.concatenate(times),
        actions=np.zeros(lengths.sum(), np.int16),
        action_names=("buy",),
    )


def naive(known: SequenceSet, user: int, time: int, length: int):
    """Return (item, events, last time) of the last distinct items before a time."""
    found: dict[int, list[int]] = {}
    place = user - 100
    if 0 <= place < len(known):
        for event in range(known.offsets[place], known.offsets[place + 1]):
            if known.times[event] < time:
                item = int(known.items[event])
                events = [*found.pop(item, []), int(known.times[event])]
                found[item] = events  # moves it to the end
    last = list(found.items())[-length:]
    return [(item, len(times), times[-1]) for item, times in last]


@pytest.mark.parametrize("length", [1, 3, 100])
@pytest.mark.parametrize("seed", range(5))
def test_a_history_is_what_a_naive_loop_finds(seed, length):
    known = sequences(seed)
    made = Histories.build(known)
    random = np.random.default_rng(seed)
    users = np.r_[random.integers(98, 114, size=200)]  # some are unknown
    times = random.integers(-1, 32, size=200)
    bounds = made.events.before(pa.array(users), times, "rows")
    found = made.gather(bounds, length)
    assert len(found.offsets) == 201
    for row, (user, time) in enumerate(zip(users, times, strict=True)):
        part = slice(found.offsets[row], found.offsets[row + 1])
        triples = zip(
            found.items[part], found.counts[part], found.times[part], strict=True
        )
        assert list(triples) == naive(known, user, time, length)


def test_a_long_history_costs_no_more_than_its_last_events(monkeypatch):
    known = SequenceSet.of_offsets(
        user_ids=pa.array([7]),
        offsets=np.array([0, 100]),
        items=np.r_[np.zeros(98, np.int64), 1, 0],
        times=np.arange(100),
        actions=np.zeros(100, np.int16),
        action_names=("buy",),
    )
    monkeypatch.setattr(histories, "_MOST_EVENTS", 2)
    made = Histories.build(known)
    found = made.gather(made.events.before(pa.array([7]), np.array([500]), "rows"), 10)
    assert found.items.tolist() == [1, 0]
    assert found.counts.tolist() == [1, 99]  # of all events, those before included


def test_no_rows_and_no_events():
    made = Histories.build(sequences())
    nothing = made.gather(np.empty((0, 2), np.int64), 5)
    assert (nothing.offsets.tolist(), len(nothing.items)) == ([0], 0)
    empty = made.gather(made.events.before(pa.array([100]), np.array([99]), "x"), 5)
    assert empty.offsets.tolist() == [0, 0]


def test_ids_of_another_type_are_refused():
    made = Histories.build(sequences())
    with pytest.raises(UserError, match=r"user_id.*the log"):
        made.events.before(pa.array(["a"]), np.array([5]), "rows")
