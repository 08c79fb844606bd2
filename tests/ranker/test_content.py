"""Raw content in the place of LEARN's vectors."""

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.artifact import write_artifact
from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.content import content_vectors


@pytest.fixture
def small(tmp_path):
    """Items a, b and c with two numbers each."""
    with write_artifact(tmp_path / "content", kind=KIND, config={}, inputs={}) as out:
        ids = pa.array(["a", "b", "c"])
        write_content_store(out, ids, np.array([[1.0, 0], [3, 2], [8, 1]]))
    return ContentStore.open(tmp_path / "content")


def log(*events):
    names = ("user_id", "item_id", "timestamp", "action")
    return pa.table(dict(zip(names, map(list, zip(*events, strict=True)), strict=True)))


LOG = log(
    (7, "b", 20, "buy"),
    (5, "c", 10, "buy"),
    (7, "a", 10, "buy"),
    (7, "c", 20, "buy"),  # at one moment with the first
    (7, "c", 15, "view"),
    (5, "a", 30, "view"),
)


def test_users_are_the_mean_of_what_came_before(small):
    vectors = content_vectors(small, LOG, ("buy",))
    queries = pa.array([7, 7, 7, 5, 5, 6])
    times = np.array([10, 20, 21, 10, 99, 99])
    rows = vectors.users.rows_as_of(queries, times)
    found = vectors.users.gather(rows)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0], [1, 0], [4, 1], [0, 0], [8, 1], [0, 0]]
    assert (rows == -1).tolist() == [True, False, False, True, False, True]
    assert vectors.dim == 2


def test_a_user_has_a_row_for_each_moment_and_items_stay_on_disk(small):
    vectors = content_vectors(small, LOG, ("buy", "view"))
    pairs = zip(vectors.users.ids.to_pylist(), vectors.users.times, strict=True)
    assert list(pairs) == [(5, 10), (5, 30), (7, 10), (7, 15), (7, 20)]
    assert vectors.items.vectors is small.vectors
    items = vectors.items.gather(np.array([2, -1, 0]))
    assert items.dtype == np.float32
    assert items.tolist() == [[8, 1], [0, 0], [1, 0]]


def test_means_are_those_of_float64(store):
    random = np.random.default_rng(0)
    count = 500
    events = pa.table(
        {
            "user_id": random.integers(0, 9, count),
            "item_id": random.integers(100, 140, count),
            "timestamp": random.integers(0, 60, count),
            "action": ["like"] * count,
        }
    )
    users = content_vectors(store, events, ("like",)).users
    owners, items, times = (events[n].to_numpy() for n in events.column_names[:3])
    content = np.asarray(store.vectors, np.float64)[items - 100]
    rows = zip(users.ids.to_pylist(), users.times, users.vectors, strict=True)
    for user, time, vector in rows:
        seen = (owners == user) & (times <= time)
        np.testing.assert_allclose(vector, content[seen].mean(axis=0), rtol=1e-6)
    assert len(users.times) == len({*zip(owners, times, strict=True)})


@pytest.mark.parametrize(
    ("event", "actions", "message"),
    [
        ((7, "d", 9, "buy"), ("buy",), "no content vector of item 'd', which row 6 of"),
        ((7, "a", 9, "buy"), ("like",), "split.actions=like: no interaction has such"),
    ],
)
def test_what_gives_no_vectors_is_refused(small, event, actions, message):
    with pytest.raises(UserError, match=message):
        content_vectors(small, pa.concat_tables([LOG, log(event)]), actions)


def test_ids_of_another_type_are_refused(small):
    with pytest.raises(UserError, match="item ids are string here, but int64 where"):
        content_vectors(small, log((7, 1, 9, "buy")), ("buy",))
