import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.ranker.hashing import hash_ids, raw_keys


def splitmix_finaliser(key):
    mask = 2**64 - 1
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & mask
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & mask
    return key ^ (key >> 31)


def test_integers_equal_the_plain_formula():
    ids = [0, 1, 2, 12345678901234, 2**63 - 1]
    rows = hash_ids(pa.array(ids), 1009, "user_id")
    assert rows.tolist() == [splitmix_finaliser(key) % 1009 for key in ids]


def test_rows_are_in_range_and_spread():
    rows = hash_ids(pa.array(range(100_000)), 1000, "user_id")
    counts = np.bincount(rows, minlength=1000)
    assert len(counts) == 1000
    assert counts.min() > 50
    assert counts.max() < 170


def test_strings_do_not_depend_on_their_company():
    both = hash_ids(pa.array(["b", "a", "b"]), 10_000, "user_id")
    alone = hash_ids(pa.array(["a"]), 10_000, "user_id")
    assert both[1] == alone[0]
    assert both[0] == both[2] != both[1]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_strings_of_all_types_share_their_rows(kind):
    ids = pa.array(["b", "a", "b"])
    rows = hash_ids(ids, 10_000, "user_id").tolist()
    assert hash_ids(ids.cast(kind), 10_000, "user_id").tolist() == rows
    assert hash_ids(ids.dictionary_encode(), 10_000, "user_id").tolist() == rows


def test_integers_of_64_bits_without_a_sign():
    ids = pa.array([5, 2**64 - 1], pa.uint64())
    rows = hash_ids(ids, 1009, "user_id")
    assert rows.tolist() == [splitmix_finaliser(key) % 1009 for key in ids.to_pylist()]
    keys = raw_keys(ids, "user_id")
    assert keys.tolist() == [splitmix_finaliser(key) >> 1 for key in ids.to_pylist()]


def test_other_types_are_refused():
    with pytest.raises(UserError, match="column 'price': ids are double"):
        hash_ids(pa.array([1.5]), 10, "price")
