import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.artifact import write_artifact
from learn_torchrec.errors import UserError
from learn_torchrec.ranker import vectors


def as_lists(matrix):
    flat = pa.array(np.asarray(matrix, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, len(matrix[0]))


def write(directory, users=None, items=None, cutoff=100):
    users = users or {
        "user_id": ["a", "a", "b"],
        "timestamp": [110, 120, 110],
        "vector": as_lists([[1, 0], [0, 1], [1, 1]]),
    }
    items = items or {"item_id": [7, 8], "vector": as_lists([[1, 2], [3, 4]])}
    with write_artifact(
        directory, kind=vectors.KIND, config={}, inputs={}, cutoff=cutoff
    ) as working:
        pq.write_table(pa.table(users), working / "user_vectors.parquet")
        pq.write_table(pa.table(items), working / "item_vectors.parquet")
    return vectors.load_vectors(directory)


def test_a_user_is_seen_as_of_the_impression(tmp_path):
    learn = write(tmp_path / "v")
    ids = pa.array(["a", "a", "a", "b", "c"])
    times = np.array([110, 111, 121, 500, 500])
    # The vector made at 110 knows the event at 110, so it is not for 110 itself.
    assert learn.users.rows_as_of(ids, times).tolist() == [-1, 0, 1, 2, -1]
    assert learn.items.rows_as_of(pa.array([8, 9, 7]), times[:3]).tolist() == [1, -1, 0]
    assert learn.dim == 2


def test_no_user_has_a_vector(tmp_path):
    nobody = {
        "user_id": pa.array([], pa.string()),
        "timestamp": pa.array([], pa.int64()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array([], pa.float32()), 2),
    }
    learn = write(tmp_path / "v", users=nobody)
    users, items, present = learn.lookup(["a", "b"], [8, 7], [500, 500])
    assert users.tolist() == [[0, 0], [0, 0]]
    assert items.tolist() == [[3, 4], [1, 2]]
    assert present.tolist() == [[0, 1], [0, 1]]


def test_a_planted_leak_is_refused(tmp_path):
    learn = write(tmp_path / "v", cutoff=100)
    learn.refuse_leak(np.array([100, 150]), "train on")
    with pytest.raises(UserError, match=r"leak: .* up to 100, .* start at 99"):
        learn.refuse_leak(np.array([150, 99]), "train on")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item_id": [7]}, "column 'vector' is missing"),
        ({"item_id": [7], "vector": [[1.0]]}, "must be a fixed-size list"),
        (
            {"item_id": [7, 8], "vector": as_lists([[1, 2], [np.nan, 4]])},
            "the vector in row 1 is not finite",
        ),
    ],
)
def test_bad_vectors_are_refused(tmp_path, items, message):
    with pytest.raises(UserError, match=message) as caught:
        write(tmp_path / "v", items=items)
    assert "item_vectors.parquet" in str(caught.value)
