import numpy as np
import pyarrow as pa
import pytest
from random_sequences import make_sequences, sequence_set

from learn_torchrec.datasets.split import SplitConfig, SplitTimes
from learn_torchrec.errors import UserError
from learn_torchrec.towers.baselines import baseline_scores
from learn_torchrec.towers.holdout import (
    RetrievalTask,
    TowersSplit,
    split_towers,
    with_share_of_users,
)
from learn_torchrec.towers.retrieval import (
    RetrievalConfig,
    evaluate_groups,
    target_groups,
)


def split_at(time):
    return SplitTimes(towers_until=time, test_from=time)


def test_new_users_are_held_out_by_arrival():
    sequences = sequence_set(
        user_ids=pa.array(range(200)),
        offsets=np.arange(201) * 4,
        items=np.zeros(800, np.int64),
        times=np.concatenate(
            [np.arange(4) + (0 if user < 150 else 100) for user in range(200)]
        ),
    )
    split = SplitConfig(min_events=3, validation_users=0.2)
    held = split_towers(sequences, split_at(3), split)
    validation, test = held.validation.sequences, held.test.sequences
    assert test.user_ids.to_pylist() == list(range(150, 200))
    known = [*held.train.user_ids.to_pylist(), *validation.user_ids.to_pylist()]
    assert sorted(known) == list(range(150))
    assert 10 < len(validation) < 50
    # Nothing at or after the cut-off reaches training or validation.
    assert held.train.packed().times.max() == validation.packed().times.max() == 2
    assert held.known_until == 3
    # Without new users there is no test, and training does not need one.
    later = split_towers(sequences, split_at(1000), SplitConfig(min_events=3))
    assert len(later.test.sequences) == 0
    assert len(later.train) + len(later.validation.sequences) == 200


def test_a_share_of_the_events_is_history():
    lengths = np.array([2, 3, 4, 5, 10, 20])
    sequences = make_sequences([*lengths, 0, 0, *lengths])  # all arrive at time 0
    split = SplitConfig(min_events=2, history_share=0.9, validation_users=0.5)
    held = split_towers(sequences, split_at(1000), split)
    known = held.validation
    assert len(held.train) + len(known.sequences) == 2 * len(lengths)
    history = dict(zip(known.sequences.lengths, known.history.lengths, strict=True))
    by_hand = {2: 1, 3: 2, 4: 3, 5: 4, 10: 9, 20: 18}
    assert history.items() <= by_hand.items()
    assert len(history) > 1


def test_a_moment_parts_history_from_targets():
    lengths = np.random.default_rng(0).integers(2, 12, 400)
    sequences = make_sequences(lengths)  # times 0, 10, 20, ...
    split = SplitConfig(
        holdout="time", min_events=4, validation_users=0.2, test_users=0.3
    )
    held = split_towers(sequences, split_at(35), split)
    groups = [
        set(users.user_ids.to_pylist())
        for users in (held.train, held.validation.sequences, held.test.sequences)
    ]
    assert not groups[0] & groups[1]
    assert not groups[1] & groups[2]
    assert not groups[0] & groups[2]
    assert all(lengths[user] >= 4 for user in groups[0])
    assert all(lengths[user] >= 5 for user in groups[1] | groups[2])
    for task in (held.validation, held.test):
        assert (np.diff(task.history.offsets) == 4).all()  # times 0 to 30
        assert (task.sequences.times[task.last_history] == 30).all()
        assert (
            np.diff(task.targets.offsets).tolist()
            == (task.sequences.lengths - 4).tolist()
        )
    assert held.cuts.tolist() == [4] * len(held.train)
    assert held.known_until == sequences.times.max() + 1
    with pytest.raises(UserError, match=r"no validation user .* move split\.towers"):
        split_towers(sequences, split_at(10_000), split)


def test_leave_one_out():
    sequences = make_sequences([5, 3, 6])
    split = SplitConfig(holdout="leave_one_out", min_events=2)
    held = split_towers(sequences, split_at(0), split)
    assert held.train.user_ids.to_pylist() == [0, 2]  # 3 events are too few
    first, last = sequences.of(0), sequences.of(2)
    assert held.train.of(0).tolist() == first[:3].tolist()
    assert held.train.of(1).tolist() == last[:4].tolist()
    assert held.validation.targets.values.tolist() == [first[3], last[4]]
    assert held.validation.history.values.tolist() == [*first[:3], *last[:4]]
    assert held.test.targets.values.tolist() == [first[4], last[5]]
    assert held.test.history.values.tolist() == [*first[:4], *last[:5]]
    ends = held.test.sequences.items[held.test.last_history]
    assert ends.tolist() == [first[3], last[4]]


def split_of(train, task):
    return TowersSplit(
        train=train, cuts=None, validation=task, test=task, known_until=99
    )


def test_retrieval_task_and_baselines(store):
    sequences = make_sequences([5, 2])
    task = RetrievalTask(sequences=sequences, history_lengths=np.array([4, 1]))
    assert task.last_history.tolist() == [3, 5]
    assert task.history.offsets.tolist() == [0, 4, 5]
    assert task.targets.values.tolist() == [sequences.items[4], sequences.items[6]]
    everything = RetrievalConfig(ks=(40,), filter_history=False)
    scores = baseline_scores(split_of(sequences, task), store, task, everything)
    groups = evaluate_groups(scores, sequences, len(store), task, everything)
    for metrics in groups["all"].values():
        assert metrics["r@40"] == 1.0
    filtered = RetrievalConfig(ks=(40,), filter_history=True)
    rows = evaluate_groups(scores, sequences, len(store), task, filtered)["all"]
    expected = np.mean(
        [
            sequences.items[4] not in sequences.items[:4],
            sequences.items[6] != sequences.items[5],
        ]
    )
    for metrics in rows.values():
        assert metrics["r@40"] == expected


def test_groups_of_targets_by_hand(store):
    # Training: item 0 four times, item 1 twice, item 2 once.
    train = sequence_set(
        user_ids=pa.array([0]),
        offsets=np.array([0, 7]),
        items=np.array([0, 0, 1, 0, 2, 1, 0]),
        times=np.arange(7),
    )
    tested = sequence_set(
        user_ids=pa.array([7, 8]),
        offsets=np.array([0, 5, 7]),
        items=np.array([3, 4, 4, 4, 1, 5, 2]),  # 3 4 4 | 4 1 and 5 | 2
        times=np.arange(7),
    )
    task = RetrievalTask(sequences=tested, history_lengths=np.array([3, 1]))
    config = RetrievalConfig(ks=(3,), tail_events=1)
    rows = baseline_scores(split_of(train, task), store, task, config)
    first, second = rows["already_bought"](0, 2)
    # Bought twice, bought once, then by popularity.
    assert first.argsort(descending=True, stable=True)[:5].tolist() == [4, 3, 0, 1, 2]
    assert second.argsort(descending=True, stable=True)[:4].tolist() == [5, 0, 1, 2]
    groups = evaluate_groups(rows, train, len(store), task, config)
    # All: user 7 finds 4 of {4, 1}, user 8 nothing of {2} in the first three.
    assert groups["all"]["already_bought"]["r@3"] == (1 / 2 + 0) / 2
    assert groups["all"]["popularity"]["r@3"] == (1 / 2 + 1) / 2
    # New: 1 for user 7 and 2 for user 8, whose histories left the ranking.
    assert groups["new"]["already_bought"]["targets"] == 2
    assert groups["new"]["already_bought"]["r@3"] == 1.0
    # Repeated: 4, which user 7 bought before and already_bought puts first.
    assert groups["repeated"]["already_bought"]["targets"] == 1
    assert groups["repeated"]["already_bought"]["mrr"] == 1.0
    # Tail: items with at most one training event are 4 (none) and 2 (one).
    assert groups["tail"]["already_bought"]["h@3"] == 1 / 2
    masks = target_groups(train, len(store), task, tail_events=1)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "all": [True] * 3,
        "new": [False, True, True],
        "repeated": [True, False, False],
        "tail": [True, False, True],
        "unseen": [True, False, False],
    }


def test_a_share_of_the_users_grows_by_users():
    sequences = make_sequences([12] * 200)
    split = SplitConfig(actions=("like",), holdout="leave_one_out", min_events=4)
    data = split_towers(sequences, split_at(0), split)
    parts = [with_share_of_users(data, share) for share in (0.01, 0.1, 0.5, 1.0)]
    known = [set(part.train.user_ids.to_pylist()) for part in parts]
    assert [len(users) for users in known] == [2, 20, 100, 200]
    assert known[0] < known[1] < known[2] < known[3]
    assert len(parts[1].test.sequences) == len(data.test.sequences)
    assert parts[1].train.lengths.tolist() == [10] * 20
