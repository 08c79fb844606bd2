"""After a day towers learn from the users with new events, and vectors follow them."""

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.towers.export import ExportConfig
from learn_torchrec.towers.holdout import (
    RetrievalTask,
    TowersSplit,
    recently_active,
)
from learn_torchrec.towers.snapshots import snapshot_events

LENGTHS = np.array([3, 2, 2, 1])
TIMES = np.array([1, 5, 9, 2, 3, 8, 12, 4])


@pytest.fixture
def users():
    return SequenceSet.of_offsets(
        user_ids=pa.array([1, 2, 3, 4]),
        offsets=np.r_[0, LENGTHS.cumsum()],
        items=np.arange(8),
        times=TIMES,
        actions=np.zeros(8, np.int16),
        action_names=("like",),
    )


@pytest.mark.parametrize(
    ("since", "replay", "least", "wanted"),
    [
        (8, 0.0, 1, [1, 3]),
        (12, 0.0, 1, [3]),
        (12, 1.0, 1, [1, 2, 3, 4]),
        (12, 0.0, 3, [1, 3, 4]),  # a batch needs three: the latest come next
        (99, 0.0, 9, [1, 2, 3, 4]),
    ],
)
def test_users_with_new_events_are_learned_from(users, since, replay, least, wanted):
    task = RetrievalTask(
        sequences=users.select_users(LENGTHS > 1), history_lengths=np.array([2, 1, 1])
    )
    data = TowersSplit(
        train=users,
        cuts=np.array([1, 2, 3, 4]),
        validation=task,
        test=task,
        known_until=99,
    )
    found = recently_active(data, since, replay, least)
    assert found.train.user_ids.to_pylist() == wanted
    assert found.cuts.tolist() == wanted
    # How well known an item is does not depend on who was active.
    assert found.counted is data.train


@pytest.mark.parametrize(
    ("since", "wanted"),
    [(None, range(8)), (5, [0, 1, 2, 4, 5, 6, 7]), (6, [1, 2, 4, 5, 6, 7])],
)
def test_old_vectors_that_nobody_looks_up_are_not_made(users, since, wanted):
    times = SplitTimes(towers_until=5, test_from=9)
    found = snapshot_events(users, ExportConfig(), times, since)
    assert found.tolist() == list(wanted)
