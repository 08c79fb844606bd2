"""Raw content in the place of LEARN's vectors."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.sequences import build_sequences
from learn_torchrec.publish import write_artifact
from learn_torchrec.ranker.learn.content import content_vectors


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


def vectors_of(store, events, *actions):
    rows = store.rows_of(events["item_id"])
    return content_vectors(store, build_sequences(events, rows, actions))


def test_users_are_the_mean_of_what_came_before(small):
    vectors = vectors_of(small, LOG, "buy")
    queries = pa.array([7, 7, 7, 5, 5, 6])
    times = np.array([10, 20, 21, 10, 99, 99])
    rows = vectors.users.rows_as_of(queries, times)
    found = vectors.users.gather(rows)
    assert found.dtype == np.float16
    assert found.tolist() == [[0, 0], [1, 0], [4, 1], [0, 0], [8, 1], [0, 0]]
    assert (rows == -1).tolist() == [True, False, False, True, False, True]
    assert vectors.dim == 2


def test_a_user_has_a_row_for_each_moment_and_items_stay_on_disk(small):
    vectors = vectors_of(small, LOG, "buy", "view")
    assert vectors.users.index.ids.to_pylist() == [5, 7]
    assert vectors.users.offsets.tolist() == [0, 2, 5]
    assert vectors.users.times.tolist() == [10, 30, 10, 15, 20]
    assert vectors.items.vectors is small.vectors
    items = vectors.items.gather(np.array([2, -1, 0]))
    assert items.dtype == np.float16
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
    users = vectors_of(store, events, "like").users
    owners, items, times = (events[n].to_numpy() for n in events.column_names[:3])
    content = np.asarray(store.vectors, np.float64)[items - 100]
    ids = np.repeat(users.index.ids.to_numpy(), np.diff(users.offsets))
    for user, time, vector in zip(ids, users.times, users.vectors, strict=True):
        seen = (owners == user) & (times <= time)
        mean = content[seen].mean(axis=0)
        np.testing.assert_allclose(vector, mean, rtol=2**-11, atol=2**-24)
    assert len(users.times) == len({*zip(owners, times, strict=True)})


def test_files_of_different_string_types_join(market, tmp_path):
    """Items of `string`, a dictionary-encoded log, impressions of `large_string`."""
    expected = content_vectors_of(market, tmp_path / "integers", pa.int64())
    kinds = {
        "items": pa.string(),
        "interactions": pa.dictionary(pa.int32(), pa.string()),
        "impressions": pa.large_string(),
    }
    for name, kind in kinds.items():
        path = market / f"{name}.parquet"
        table = pq.read_table(path)
        for column in {"user_id", "item_id"} & set(table.column_names):
            ids = table[column].cast(pa.string())
            encoded = ids.dictionary_encode() if "dict" in str(kind) else ids.cast(kind)
            place = table.column_names.index(column)
            table = table.set_column(place, column, encoded)
        pq.write_table(table, path)
    found = content_vectors_of(market, tmp_path / "strings", pa.string())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.equal(theirs)
    assert found[2].any()


def content_vectors_of(market, directory, kind):
    """Return what the impressions find in raw content."""
    content = np.random.default_rng(0).normal(size=(40, 3))
    with write_artifact(directory, kind=KIND, config={}, inputs={}) as out:
        ids = pa.array(range(100, 140)).cast(kind)
        write_content_store(out, ids, content)
    dataset = open_dataset(f"parquet:{market}")
    store = ContentStore.open(directory)
    vectors = content_vectors(store, dataset.sequences(store, ("like",)))
    columns = ("user_id", "item_id", "timestamp")
    return vectors.lookup(*(dataset.impressions[name] for name in columns))


def test_a_worker_process_maps_the_content(small):
    vectors = vectors_of(small, LOG, "buy")
    again = pickle.loads(pickle.dumps(vectors))
    assert isinstance(again.items.vectors.shards[0].base, np.memmap)
    queries, times = pa.array([7, 5]), np.array([21, 99])
    rows = again.users.rows_as_of(queries, times)
    assert again.users.gather(rows).tolist() == [[4, 1], [8, 1]]
