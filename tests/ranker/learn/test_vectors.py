import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vectors_artefact import write_side, write_vectors

from learn_torchrec.artifact import Manifest
from learn_torchrec.errors import UserError
from learn_torchrec.matrix import finite_rows
from learn_torchrec.ranker.learn.paper import LearnFeatures
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.vector_table import VectorTable

TEXT = pa.large_string()
USERS = (["a", "b", "never"], [0, 2, 3, 3], [110, 120, 110], [[1, 0], [0, 1], [1, 1]])
ITEMS = ([7, 8], [[1, 2], [3, 4]])


def test_a_user_is_seen_as_of_the_impression(tmp_path):
    learn = write_vectors(tmp_path / "v", USERS, ITEMS)
    ids = pa.array(["a", "a", "a", "b", "c", "never"], TEXT)
    times = np.array([110, 111, 121, 500, 500, 500])
    # The vector made at 110 knows the event at 110, so it is not for 110 itself.
    assert learn.users.rows_as_of(ids, times).tolist() == [-1, 0, 1, 2, -1, -1]
    assert learn.users.rows_as_of(ids, None).tolist() == [1, 1, 1, 2, -1, -1]
    assert learn.items.rows_as_of(pa.array([8, 9, 7]), times[:3]).tolist() == [1, -1, 0]
    assert learn.dim == 2


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11)), min_size=1),
)
def test_rows_equal_a_scan_of_the_log(events, queries):
    """Of the vectors strictly before a moment the last, of equal moments the later."""
    users, times = np.array([*zip(*events, strict=True)] or [[], []], np.int64)
    # Each vector holds its event's number and its time.
    vectors = np.stack([np.arange(len(events)), times], axis=1)
    table = VectorTable.build(ids=users, times=times, vectors=vectors)
    asked, moments = (np.array(column) for column in zip(*queries, strict=True))
    rows = table.rows_as_of(pa.array(asked), moments)
    found = table.gather(rows)
    for user, moment, row, vector in zip(asked, moments, rows, found, strict=True):
        before = [
            (time, number)
            for number, (owner, time) in enumerate(events)
            if owner == user and time < moment
        ]
        if not before:
            assert row == -1
            assert vector.tolist() == [0, 0]
        else:
            time, number = max(before)
            assert vector.tolist() == [number, time]


def test_missing_vectors_are_zeros_with_a_mask(tmp_path):
    learn = write_vectors(tmp_path / "v", USERS, ITEMS)
    users, items, present = learn.lookup(["b", "c"], [9, 7], [500, 500])
    assert users.dtype == items.dtype == torch.float16
    assert present.dtype == torch.bool
    assert users.tolist() == [[1, 1], [0, 0]]
    assert items.tolist() == [[0, 0], [1, 2]]
    assert present.tolist() == [[True, False], [False, True]]


def test_no_user_has_a_vector(tmp_path):
    nobody = pa.array([], pa.string()), [0], [], np.empty((0, 2))
    learn = write_vectors(tmp_path / "v", nobody, ITEMS)
    users, items, present = learn.lookup(["a", "b"], [8, 7], [500, 500])
    assert users.tolist() == [[0, 0], [0, 0]]
    assert items.tolist() == [[3, 4], [1, 2]]
    assert present.tolist() == [[0, 1], [0, 1]]


def test_ids_of_all_forms_find_the_same(tmp_path):
    learn = write_vectors(tmp_path / "v", USERS, ITEMS)
    times = np.array([500, 500])
    expected = [[1, 2], [1, -1]]
    for users in (
        pa.array(["a", "b"]),
        pa.array(["a", "b"], TEXT),
        pa.array(["a", "b"], pa.string_view()),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.chunked_array([["a"], ["b"]]),
    ):
        for items in (pa.array([8, 9]), pa.array([8, 9], pa.int16())):
            rows = learn.rows(users, items, times, "x")
            assert [row.tolist() for row in rows] == expected
    with pytest.raises(UserError, match="x: column 'item_id': ids are string, but int"):
        learn.rows(["a"], ["8"], None, "x")
    with pytest.raises(UserError, match="2 users, 1 items and 2 times; give the"):
        learn.lookup(["a", "b"], [8])


def test_three_ranks_write_what_one_does(tmp_path):
    random = np.random.default_rng(0)
    counts = random.integers(0, 9, 50)
    offsets = np.r_[0, counts.cumsum()]
    times = np.concatenate([np.sort(random.integers(0, 99, n)) for n in counts])
    users = (
        [f"u{n}" for n in range(50)],
        offsets,
        times,
        random.normal(size=(offsets[-1], 8)),
    )
    items = np.arange(20), random.normal(size=(20, 8))
    one, three = (
        write_vectors(tmp_path / f"v{ranks}", users, items, cutoff=0, ranks=ranks)
        for ranks in (1, 3)
    )
    assert len(three.users.vectors.shards) == 3
    asked = random.choice(users[0], 300), random.integers(0, 25, 300)
    moments = random.integers(0, 120, 300)
    for ours, theirs in zip(
        one.lookup(*asked, moments), three.lookup(*asked, moments), strict=True
    ):
        assert torch.equal(ours, theirs)
    # A rank without rows leaves an empty shard.
    few = write_vectors(tmp_path / "few", USERS, ITEMS, ranks=5)
    assert few.lookup("b", 8)[0].tolist() == [[1, 1]]


def test_what_the_towers_know_is_refused(tmp_path):
    made = write_vectors(tmp_path / "v", USERS, ITEMS, cutoff=110)
    features = LearnFeatures(made.dim, vectors=made)
    item = ITEMS[0][0]
    features.of_ids(["a", "b"], [item, item], [110, 111])
    with pytest.raises(UserError, match=r"leak: .* up to 110, but .* 109 .* in row 1"):
        features.of_ids(["a", "b"], [item, item], [110, 109])


def test_damaged_vectors_are_not_loaded(tmp_path):
    write_vectors(tmp_path / "v", USERS, ITEMS)
    LearnFeatures.load(tmp_path / "v")
    path = tmp_path / "v" / "users" / "vectors-00000.npy"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(UserError, match=r"vectors-00000\.npy: damaged"):
        LearnFeatures.load(tmp_path / "v")


def test_a_worker_process_maps_the_same_files(tmp_path):
    matrix = np.ones((5000, 8))
    users = np.arange(5000), np.arange(5001), np.zeros(5000), matrix
    learn = write_vectors(tmp_path / "v", users, (np.arange(5000), matrix), ranks=2)
    sent = pickle.dumps(learn)
    assert len(sent) < 3000
    again = pickle.loads(sent)
    for table in (again.users, again.items):
        assert all(isinstance(part.base, np.memmap) for part in table.vectors.shards)
    assert again.lookup(4999, 7)[2].tolist() == [[True, True]]


def test_a_table_in_memory_pickles_whole():
    table = VectorTable.build(ids=["a", "a"], times=[2, 1], vectors=[[2.0], [1.0]])
    again = pickle.loads(pickle.dumps(table))
    rows = again.rows_as_of(pa.array(["a", "a"], TEXT), np.array([2, 3]))
    assert again.gather(rows).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    "name", ["items/vectors-00000.npy", "users/offsets.npy", "users/ids.arrow"]
)
def test_damaged_files_are_refused(tmp_path, name):
    directory = tmp_path / "v"
    write_vectors(directory, USERS, ITEMS)
    whole = (directory / name).read_bytes()
    for damaged, message in (
        (whole[: len(whole) // 2], f"{name}: damaged .* its manifest says"),
        (b"PK\x03\x04".ljust(len(whole), b"?"), "v: damaged"),
        (None, f"{name}: missing"),
    ):
        (directory / name).unlink()
        if damaged is not None:
            (directory / name).write_bytes(damaged)
        with pytest.raises(UserError, match=message) as caught:
            LearnVectors.open(directory)
        assert str(caught.value).endswith("; export the vectors again")
        assert "\n" not in str(caught.value)
        (directory / name).write_bytes(b"")


def test_files_that_do_not_fit_are_refused(tmp_path):
    short = [0, 2, 2, 2]
    with pytest.raises(UserError, match="ids, times and vectors do not match"):
        write_vectors(tmp_path / "v", (USERS[0], short, *USERS[2:]), ITEMS)
    with pytest.raises(UserError, match="ids, times and vectors do not match"):
        write_vectors(tmp_path / "v", USERS, ([7, 8, 9], ITEMS[1]))


def test_vectors_that_are_not_finite_are_refused(tmp_path):
    learn = write_vectors(tmp_path / "v", USERS, (ITEMS[0], [[1, 2], [np.nan, 4]]))
    learn.lookup(["a"], [7])
    with pytest.raises(UserError, match=r"v/items: the vector in row 1 is not finite"):
        learn.lookup(["a", "a"], [7, 8])


def test_every_half_precision_number_that_is_finite():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)[:, None]
    np.testing.assert_array_equal(finite_rows(halves), np.isfinite(halves[:, 0]))


def test_a_large_artefact_opens_at_once(tmp_path):
    """2 million vectors of 64 dims: 256 MB in a sparse file."""
    count, dim = 2_000_000, 64
    code = (
        "import resource, sys, time; from pathlib import Path\n"
        "import numpy as np, pyarrow as pa\n"
        "from learn_torchrec.vector_table import VectorTable\n"
        "grown = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before, start = grown(), time.perf_counter()\n"
        "table = VectorTable.open(Path(sys.argv[1]))\n"
        "rows = table.rows_as_of(pa.array([7, 1_999_999]), np.array([5, 3_000_000]))\n"
        "vectors = table.gather(rows)\n"
        "print(*rows, *vectors.shape, time.perf_counter() - start, grown() - before)\n"
    )
    ids = np.arange(count)
    write_side(
        tmp_path / "users",
        ids,
        np.empty((0, dim)),
        offsets=np.arange(count + 1),
        times=ids,
    )
    shard = np.lib.format.open_memmap(
        tmp_path / "users" / "vectors-00000.npy",
        mode="w+",
        dtype=np.float16,
        shape=(count, dim),
    )
    del shard
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "users")],
        **{"check": True, "capture_output": True, "text": True},
    )
    *found, seconds, megabytes = map(float, done.stdout.split())
    assert found == [-1, count - 1, 2, dim]
    assert seconds < 2
    assert megabytes < 200


def test_in_memory_tables_check_their_ids():
    with pytest.raises(UserError, match="id 3 occurs 2 times"):
        VectorTable.build(ids=[3, 3], vectors=np.ones((2, 1)))
    manifest = Manifest(kind="vectors", recipe="", config={}, inputs={})
    items = VectorTable.build(ids=[3], vectors=np.ones((1, 2)))
    assert LearnVectors(users=items, items=items, manifest=manifest).dim == 2
