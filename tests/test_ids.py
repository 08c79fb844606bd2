import doctest
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learn_torchrec import ids as ids_module
from learn_torchrec.errors import UserError
from learn_torchrec.ids import IdIndex, as_ids, encode_ids, hash_ids, refuse_other_type

INT64, TEXT = pa.int64(), pa.large_string()
INTEGERS = [3, -1, 7]
STRINGS = ["cup", "", "Pfännchen"]


def test_examples():
    results = doctest.testmod(ids_module, extraglobs={"pa": pa})
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize(
    "values",
    [
        INTEGERS,
        tuple(INTEGERS),
        np.array(INTEGERS, np.int32),
        np.array(INTEGERS, ">i8"),
        np.array(INTEGERS, object),
        torch.tensor(INTEGERS),
        pd.Series(INTEGERS),
        pd.Series(INTEGERS, dtype="Int16"),
        pd.Categorical(INTEGERS),
        pa.array(INTEGERS, pa.int8()),
        pa.chunked_array([[3], [-1, 7]]),
        pa.array(INTEGERS).dictionary_encode(),
    ],
)
def test_integers_of_all_kinds(values):
    assert as_ids(values, "ids").equals(pa.array(INTEGERS, INT64))


@pytest.mark.parametrize(
    "values",
    [
        STRINGS,
        np.array(STRINGS),
        np.array(STRINGS, object),
        pd.Series(STRINGS),
        pd.Series(STRINGS, dtype="string"),
        pd.Series(STRINGS, dtype="category"),
        pa.array(STRINGS, pa.string_view()),
        pa.chunked_array([STRINGS[:1], STRINGS[1:]]),
        pa.array(["x", *STRINGS]).slice(1).dictionary_encode(),
    ],
)
def test_strings_of_all_kinds(values):
    assert as_ids(values, "ids").equals(pa.array(STRINGS, TEXT))


def test_one_id_and_none():
    assert as_ids(5, "ids").to_pylist() == [5]
    assert as_ids("cup", "ids").to_pylist() == ["cup"]
    for one in (np.int32(5), np.array(5), torch.tensor(5)):
        assert as_ids(one, "ids").equals(pa.array([5], INT64))
    assert as_ids(np.array([]), "ids").type == INT64
    assert as_ids([], "ids").equals(pa.array([], INT64))
    assert as_ids(pa.array([], pa.string()), "ids").type == TEXT


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], "users: ids are double; use int64 or string"),
        ([True], "users: ids are bool"),
        ([b"raw"], "users: ids are binary"),
        ([1, "a"], "users: ids of mixed or unknown type"),
        (np.array([2**63], np.uint64), "users: an id does not fit int64"),
        ([1, None, 2, None], r"users: null id in rows 1, 3 \(counted from 0\)"),
        ([None], r"users: null id in row 0"),
    ],
)
def test_other_ids_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        as_ids(values, "users")


def test_nulls_may_be_kept():
    assert as_ids(["a", None], "ids", allow_null=True).to_pylist() == ["a", None]
    assert as_ids([None, None], "ids", allow_null=True).null_count == 2


def test_codes_follow_first_appearance():
    codes, distinct = encode_ids(["b", "a", "b"], "ids")
    assert codes.tolist() == [0, 1, 0]
    assert distinct.equals(pa.array(["b", "a"], TEXT))


def test_hashes_are_fixed():
    """Trained tables and stored indexes depend on them."""
    integers = hash_ids(pa.array([0, 1, -1], INT64)).tolist()
    assert integers == [0, 6238072747940578789, 13029008266876403067]
    assert hash_ids(pa.array(["", "a"], TEXT)).tolist() == [
        _fnv1a_mixed(b""),
        _fnv1a_mixed(b"a"),
    ]
    # A slice hashes like the whole.
    whole = pa.array(["x", "ab", "c"], TEXT)
    assert hash_ids(whole.slice(1)).tolist() == hash_ids(whole).tolist()[1:]


def _fnv1a_mixed(text: bytes) -> int:
    value, mask = 0xCBF29CE484222325, (1 << 64) - 1
    for byte in text:
        value = ((value ^ byte) * 0x100000001B3) & mask
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & mask
    return value ^ value >> 31


@given(
    st.one_of(
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, unique=True),
        st.lists(st.text(max_size=6), min_size=1, unique=True),
    ),
    st.data(),
)
def test_an_index_is_a_dictionary(known, data):
    index = IdIndex.build(known, "ids")
    other = st.integers(-9, 9) if isinstance(known[0], int) else st.text(max_size=2)
    wanted = data.draw(st.lists(st.one_of(st.sampled_from(known), other, st.none())))
    rows = index.rows_of(pa.array(wanted, index.type)).tolist()
    assert rows == [known.index(x) if x in known else -1 for x in wanted]


@pytest.mark.parametrize("known", [[5, 3, 9], ["b", "a", ""]])
def test_written_and_mapped(known, tmp_path):
    IdIndex.build(known, "ids").write(tmp_path)
    index = IdIndex.open(tmp_path)
    assert len(index) == 3
    assert index.ids.to_pylist() == known
    assert index.rows_of(index.ids).tolist() == [0, 1, 2]


def test_strings_that_share_a_hash(monkeypatch, tmp_path):
    whole = ids_module._hash_strings

    def colliding(values, seed):
        hashes = whole(values, seed)
        return hashes % 2 if seed < 2 else hashes

    monkeypatch.setattr(ids_module, "_hash_strings", colliding)
    index = IdIndex.build(["a", "b", "c"], "ids")
    index.write(tmp_path)
    assert IdIndex.open(tmp_path).rows_of(pa.array(["c", "a"], TEXT)).tolist() == [2, 0]


def test_an_unknown_string_with_a_known_key(monkeypatch):
    index = IdIndex.build(["a"], "ids")
    key = ids_module._keys(pa.array(["a"], TEXT), 0)
    monkeypatch.setattr(ids_module, "_keys", lambda ids, seed: np.repeat(key, len(ids)))
    assert index.rows_of(pa.array(["z", "a"], TEXT)).tolist() == [-1, 0]


def test_empty_and_repeated():
    empty = IdIndex.build(pa.array([], pa.string()), "ids")
    assert empty.rows_of(pa.array(["a"], TEXT)).tolist() == [-1]
    with pytest.raises(
        UserError, match=r"items: id 'a' occurs 2 times \(duplicated ids in all: 1\)"
    ):
        IdIndex.build(["a", "b", "a"], "items")


@pytest.mark.parametrize("count", [2, 100_000])
@pytest.mark.parametrize("mapped", [True, False])
def test_small_and_large_indexes_of_strings_of_all_lengths(count, mapped, tmp_path):
    random = np.random.default_rng(0)
    lengths = random.geometric(0.05, count)  # mostly short, the longest over 200
    known = [f"{n:x}" + "é" * int(length) for n, length in enumerate(lengths)]
    index = IdIndex.build(known, "ids")
    if mapped:
        index.write(tmp_path)
        index = IdIndex.open(tmp_path)
    order = random.permutation(count)
    assert np.array_equal(index.rows_of(index.ids.take(pa.array(order))), order)
    unknown = as_ids([f"{text}x" for text in known[:1000]], "ids")
    assert (index.rows_of(unknown) == -1).all()


@pytest.mark.parametrize("known", [[5, 3, 9], ["b", "a", ""]])
def test_a_mapped_index_pickles_as_its_path(known, tmp_path):
    index = IdIndex.build(known, "ids")
    index.write(tmp_path)
    for one in (index, IdIndex.open(tmp_path)):
        again = pickle.loads(pickle.dumps(one))
        assert again.rows_of(one.ids).tolist() == [0, 1, 2]
    assert isinstance(again._keys.base, np.memmap)


def test_types_that_cannot_be_joined():
    refuse_other_type(as_ids([1], "x"), INT64, "log: item_id", "the item table")
    refuse_other_type(as_ids([], "x"), TEXT, "log: item_id", "the item table")
    with pytest.raises(UserError, match="log: item_id: ids are string, but int64 in"):
        refuse_other_type(as_ids(["1"], "x"), INT64, "log: item_id", "the item table")
