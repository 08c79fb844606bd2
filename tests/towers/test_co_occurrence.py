import numpy as np
import pyarrow as pa
import pytest
from random_sequences import make_sequences, sequence_set

from learn_torchrec.towers.co_occurrence import CoOccurrence
from learn_torchrec.towers.holdout import RetrievalTask
from learn_torchrec.towers.retrieval import RetrievalConfig

ITEMS = 40


def naive(train, histories, power, half_life):
    """The same by loops over users and events."""
    met = [set(train.of(user).tolist()) for user in range(len(train))]
    users = [max(1, sum(item in one for one in met)) for item in range(ITEMS)]
    scores = np.zeros((len(histories), ITEMS))
    for row, history in enumerate(histories):
        for age, event in enumerate(history[::-1]):
            for item in range(ITEMS):
                if item == event:
                    continue
                both = sum(event in one and item in one for one in met)
                share = both / users[event] / users[item] ** power
                scores[row, item] += share * 0.5 ** (age / half_life)
    return scores


@pytest.mark.parametrize(("power", "half_life"), [(0.5, 2.0), (0.25, 1e9)])
def test_scores_equal_loops(power, half_life):
    train, tested = make_sequences([5, 9, 3, 12, 7], seed=1), make_sequences([6, 4, 8])
    task = RetrievalTask(sequences=tested, history_lengths=np.array([5, 1, 6]))
    model = CoOccurrence.fit(train, ITEMS)
    score = model.scores(task, power, half_life)
    histories = [tested.of(user)[:n].tolist() for user, n in enumerate((5, 1, 6))]
    expected = naive(train, histories, power, half_life)
    np.testing.assert_allclose(score(0, 3).numpy(), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(score(1, 2).numpy(), expected[1:2], rtol=1e-5, atol=1e-7)


def test_only_the_latest_events_of_a_long_history_count(monkeypatch):
    monkeypatch.setattr("learn_torchrec.towers.co_occurrence._MOST_EVENTS", 2)
    train = make_sequences([6], seed=3)
    pairs = CoOccurrence.fit(train, ITEMS).pairs.to_dense()
    first, second = train.of(0)[-2:]
    assert first != second
    assert pairs.sum() == 2
    assert pairs[first, second] == pairs[second, first] == 1


def test_settings_are_chosen_on_validation():
    # Of the users of item 0, 10 also met item 1, which 10 have, and 20 met item 2,
    # which 60 have: 10 / 10^p against 20 / 60^p.
    train = set_of([[0, 1]] * 10 + [[0, 2]] * 20 + [[2, 3]] * 40)
    rare, frequent = (
        RetrievalTask(
            sequences=set_of([[0, target]]), history_lengths=np.ones(1, np.int64)
        )
        for target in (1, 2)
    )
    model, config = CoOccurrence.fit(train, ITEMS), RetrievalConfig(ks=(1,))
    for task, target in ((rare, 1), (frequent, 2)):
        assert model.tuned(task, frequent, config)(0, 1).argmax().item() == target


def set_of(lists):
    """Return a user for each list of items, an event a second."""
    return sequence_set(
        user_ids=pa.array(range(len(lists))),
        offsets=np.r_[0, np.cumsum([len(one) for one in lists])],
        items=np.concatenate(lists),
        times=np.concatenate([np.arange(len(one)) for one in lists]),
    )


def test_a_sample_of_users_is_evenly_spaced():
    sequences = make_sequences([3] * 10)
    task = RetrievalTask(sequences=sequences, history_lengths=np.arange(10) % 2 + 1)
    assert task.sample(20).sequences.user_ids.to_pylist() == list(range(10))
    some = task.sample(4)
    assert some.sequences.user_ids.to_pylist() == [0, 3, 6, 9]
    assert some.history_lengths.tolist() == [1, 2, 1, 2]
