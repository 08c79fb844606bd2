import itertools

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.datasets.sequences import SequenceSet, build_sequences
from learn_torchrec.datasets.split import SplitConfig, resolve_times, user_draws
from learn_torchrec.errors import UserError

LOG = pa.table(
    {
        "user_id": ["b", "a", "b", "a", "c", "b"],
        "item_id": [10, 11, 12, 13, 10, 11],
        "timestamp": [30, 20, 10, 20, 40, 20],
        "action": ["like", "like", "like", "like", "skip", "like"],
    }
)


def test_sequences_are_sorted_by_user_and_time():
    sequences = build_sequences(LOG, np.array([0, 1, 2, 3, 0, 1]), ["like"])
    assert sequences.user_ids.to_pylist() == ["a", "b"]
    assert sequences.offsets.tolist() == [0, 2, 5]
    assert sequences.of(0).tolist() == [1, 3]  # same time: the log's order
    assert sequences.of(1).tolist() == [2, 1, 0]
    assert sequences.times.tolist() == [20, 20, 10, 20, 30]


def test_before_and_select_users():
    sequences = build_sequences(LOG, np.array([0, 1, 2, 3, 0, 1]), ["like", "skip"])
    assert sequences.action_names == ("like", "skip")
    assert sequences.actions.tolist() == [0, 0, 0, 0, 0, 1]
    early = sequences.before(20)
    assert early.user_ids.to_pylist() == ["b"]
    assert early.of(0).tolist() == [2]
    late = sequences.select_users(np.array([True, False, True]))
    assert late.user_ids.to_pylist() == ["a", "c"]
    assert late.of(1).tolist() == [0]
    assert late.packed().actions.tolist() == [0, 0, 1]
    assert sequences.first_times().tolist() == [20, 10, 40]


def test_before_copes_with_empty_users_at_the_end():
    sequences = build_sequences(LOG, np.arange(6), ["like", "skip"])
    assert sequences.before(5).user_ids.to_pylist() == []
    assert sequences.before(25).before(15).user_ids.to_pylist() == ["b"]


def test_unknown_actions_and_items_are_refused():
    with pytest.raises(UserError, match=r"no interaction has such an action.*like"):
        build_sequences(LOG, np.arange(6), ["buy"])


def test_moments():
    log = pa.table({"timestamp": np.arange(0, 101) * 86_400})
    config = SplitConfig(towers_until="50%", test_from="1970-03-22")
    times = resolve_times(config, log)
    assert times.towers_until == 50 * 86_400
    assert times.test_from == 80 * 86_400
    for bad in ("tomorrow", "x%"):
        with pytest.raises(UserError, match=f"split.towers_until={bad}"):
            resolve_times(SplitConfig(towers_until=bad), log)
    with pytest.raises(UserError, match="must be in this order"):
        resolve_times(SplitConfig(towers_until="90%"), log)


def test_a_users_draw_depends_on_the_id_alone():
    ids = pa.array(range(10_000))
    draws = user_draws(ids)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert 900 < (draws < 0.1).sum() < 1100
    assert (user_draws(ids[5000:]) == draws[5000:]).all()


def test_without_last():
    sequences = SequenceSet.of_offsets(
        user_ids=pa.array(["a", "b"]),
        offsets=np.array([0, 3, 5]),
        items=np.arange(5),
        times=np.arange(5) * 10,
        actions=np.array([0, 1, 0, 1, 0], np.int16),
        action_names=("like", "buy"),
    )
    shorter = sequences.without_last(1).packed()
    assert shorter.actions.tolist() == [0, 1, 1]
    assert shorter.offsets.tolist() == [0, 2, 3]
    assert shorter.items.tolist() == [0, 1, 3]
    assert shorter.times.tolist() == [0, 10, 30]


def test_actions_get_the_codes_of_other_names():
    sequences = SequenceSet.of_offsets(
        user_ids=pa.array(["a"]),
        offsets=np.array([0, 4]),
        items=np.arange(4),
        times=np.arange(4),
        actions=np.array([0, 1, 2, -1], np.int16),
        action_names=("like", "buy", "skip"),
    )
    assert sequences.with_action_names(["like", "buy", "skip"]) is sequences
    other = sequences.with_action_names(["buy", "view", "like"])
    assert other.actions.tolist() == [2, 0, -1, -1]
    assert other.action_names == ("buy", "view", "like")
    assert other.items.tolist() == sequences.items.tolist()


def random_set(random, kind):
    """Return users with 0 to 6 events of times with ties, and the users as lists."""
    lengths = random.integers(0, 7, 30)
    items, times = (random.integers(0, 20, lengths.sum()) for _ in range(2))
    offsets = np.r_[0, np.cumsum(lengths)]
    for start, end in itertools.pairwise(offsets):
        times[start:end].sort()
    made = SequenceSet.of_offsets(
        offsets,
        user_ids=pa.array(range(30)),
        items=items.astype(kind),
        times=times.astype(kind),
        actions=np.arange(len(items)).astype(np.int16),
        action_names=("like",),
    )
    return made, as_lists(made)


def as_lists(sequences):
    """Return (user, [(item, time, action), ...]) of every user."""
    return [
        (
            user,
            [
                (sequences.items[e], sequences.times[e], sequences.actions[e])
                for e in range(start, start + length)
            ],
        )
        for user, start, length in zip(
            sequences.user_ids.to_pylist(),
            sequences.starts,
            sequences.lengths,
            strict=True,
        )
    ]


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("seed", range(5))
def test_ranges_equal_lists_and_copy_no_event(seed, kind):
    random = np.random.default_rng(seed)
    whole, users = random_set(random, kind)
    keep = random.random(30) < 0.7
    some = whole.select_users(keep)
    users = [one for one, kept in zip(users, keep, strict=True) if kept]
    assert as_lists(some) == users
    early = some.before(10)
    expected = [(user, [e for e in events if e[1] < 10]) for user, events in users]
    expected = [(user, events) for user, events in expected if events]
    assert as_lists(early) == expected
    long = early.select_users(early.lengths > 1)
    shorter = long.without_last(1)
    expected = [(user, events[:-1]) for user, events in expected if len(events) > 1]
    assert as_lists(shorter) == expected
    for made in (some, early, shorter):
        assert made.items is whole.items
        assert made.num_events == sum(len(events) for _, events in as_lists(made))
        items = [e[0] for _, events in as_lists(made) for e in events]
        counts = np.bincount(items, minlength=20)
        assert made.item_counts(20).tolist() == counts.tolist()
        packed = made.packed()
        assert as_lists(packed) == as_lists(made)
        assert len(packed.items) == made.num_events
        assert packed.packed() is packed
        owners = np.repeat(np.arange(len(made)), made.lengths)
        assert made.owners(made.events()).tolist() == owners.tolist()
        if made.num_events < len(whole.items):
            with pytest.raises(ValueError, match="packed"):
                made.offsets  # noqa: B018


def test_counts_are_added_up_block_by_block(monkeypatch):
    whole, _ = random_set(np.random.default_rng(0), np.int32)
    expected = np.bincount(whole.items, minlength=20).tolist()
    for size in (1, 7, 1000):
        monkeypatch.setattr("learn_torchrec.datasets.sequences._EVENTS_IN_BLOCK", size)
        assert whole.item_counts(20).tolist() == expected
    nobody = whole.select_users(np.zeros(30, bool))
    assert nobody.item_counts(20).tolist() == [0] * 20
