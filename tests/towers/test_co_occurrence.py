import numpy as np
import pytest
from random_sequences import make_sequences

from learn_torchrec.towers.co_occurrence import CoOccurrence
from learn_torchrec.towers.holdout import RetrievalTask

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
