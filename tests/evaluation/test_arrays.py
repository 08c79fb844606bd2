import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.arrays import encode_ids, name_rows


@pytest.mark.parametrize(
    "ids",
    [
        np.array([7, 5, 7, 9]),
        np.array([7, 5, 7, 9], dtype=np.int32),
        np.array(["g", "e", "g", "i"]),
        np.array(["g", "e", "g", "i"], dtype=object),
        ["g", "e", "g", "i"],
        pa.array(["g", "e", "g", "i"]),
        pa.array(["g", "e", "g", "i"]).dictionary_encode(),
        pa.chunked_array([[7, 5], [7, 9]]),
    ],
)
def test_codes_follow_the_first_appearance(ids: object) -> None:
    codes, num_ids = encode_ids(ids, "user_id")
    assert codes.tolist() == [0, 1, 0, 2]
    assert codes.dtype == np.int64
    assert num_ids == 3


def test_no_ids() -> None:
    codes, num_ids = encode_ids([], "user_id")
    assert codes.tolist() == []
    assert num_ids == 0


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([1.5, 2.0]), "user_id: ids are double"),
        (pa.array([1, None, 2]), r"user_id: null id in row 1 \(counted from 0\)"),
        (np.array([1, "a"], dtype=object), "user_id: ids of mixed or unknown type"),
        (np.array([2**63], dtype=np.uint64), "does not fit int64"),
    ],
)
def test_unfit_ids_are_refused(ids: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode_ids(ids, "user_id")


def test_long_lists_of_rows_are_cut() -> None:
    is_bad = np.array([True, False, *[True] * 7])
    assert name_rows(is_bad) == "rows 0, 2, 3, 4, 5 and 3 more (counted from 0)"
