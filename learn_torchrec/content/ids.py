"""The id map of a content store: a sorted index on disk, searched where it lies.

Two arrays, sorted by key: `id_keys.npy` (int64 [N]) and `id_rows.npy` (int64 [N]). The
key of an integer id is the id; the key of a string is a 64-bit hash of its bytes, with
a seed under which no two ids of the catalogue share one. A look-up is a binary search
in the memory-mapped keys: opening reads nothing, and no call hashes the catalogue.

Letters: N items, n ids looked up.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.errors import UserError
from learn_torchrec.schema import ITEM_ID

IDS_FILE = "item_ids.arrow"
KEYS_FILE = "id_keys.npy"
ROWS_FILE = "id_rows.npy"

_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_SEED = b"seed"

Ints = npt.NDArray[np.int64]


class IdIndex:
    """Ids to rows and back, memory-mapped.

    Args:
        directory: where `write_index` wrote.

    Raises:
        OSError: a file is missing; ValueError, ArrowInvalid: damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._ids_path = directory / IDS_FILE
        self._keys = np.asarray(np.load(directory / KEYS_FILE, mmap_mode="r"))
        self._rows = np.asarray(np.load(directory / ROWS_FILE, mmap_mode="r"))
        with pa.memory_map(str(self._ids_path)) as source:
            field = pa.ipc.open_file(source).schema.field(ITEM_ID)
        self.type: pa.DataType = field.type
        self._seed = int((field.metadata or {}).get(_SEED, b"0"))
        if self._keys.shape != self._rows.shape or self._keys.ndim != 1:
            raise ValueError("keys and rows do not match")

    def __len__(self) -> int:
        return len(self._keys)

    @functools.cached_property
    def ids(self) -> pa.Array:
        """The ids in the rows' order, memory-mapped."""
        table = pa.ipc.open_file(pa.memory_map(str(self._ids_path))).read_all()
        return table[ITEM_ID].combine_chunks()

    def rows_of(self, wanted: pa.Array) -> Ints:
        """Return the row of every id, int64 [n]; -1 for null and unknown ids.

        Args:
            wanted: of the index's type.
        """
        present = wanted.drop_null()
        keys = _keys(present, self._seed)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._keys[place] == keys
        rows = np.where(found, self._rows[place], -1)
        if pa.types.is_string(self.type) and found.any():
            # An id that is not in the catalogue may share the key of one that is.
            hits = np.flatnonzero(found)
            stored = self.ids.take(pa.array(rows[hits]))
            same = pc.equal(stored, present.take(pa.array(hits)))
            rows[hits[~same.to_numpy(zero_copy_only=False)]] = -1
        if wanted.null_count == 0:
            return rows
        result = np.full(len(wanted), -1, np.int64)
        result[wanted.is_valid().to_numpy(zero_copy_only=False)] = rows
        return result


def write_index(directory: Path, ids: pa.Array) -> None:
    """Write the ids and their index.

    Args:
        directory: of the store.
        ids: N distinct ids without nulls, int64 or string.

    Raises:
        UserError: an id occurs twice.
    """
    seed = 0
    order, keys = _sorted_keys(ids, seed)
    while (repeated := np.flatnonzero(keys[1:] == keys[:-1])).size:
        _refuse_duplicates(ids)
        if not pa.types.is_string(ids.type):
            raise AssertionError(f"distinct integers share key {keys[repeated[0]]}")
        seed += 1  # two strings share a hash: once in a million large catalogues
        order, keys = _sorted_keys(ids, seed)
    np.save(directory / KEYS_FILE, keys)
    np.save(directory / ROWS_FILE, order)
    field = pa.field(ITEM_ID, ids.type, metadata={_SEED: str(seed)})
    table = pa.table([ids], schema=pa.schema([field]))
    with pa.ipc.new_file(str(directory / IDS_FILE), table.schema) as sink:
        sink.write_table(table)


def as_ids(ids: Any, what: str) -> pa.Array:
    """Return ids as one int64 or string array.

    Raises:
        UserError: ids of another type, or out of range.
    """
    array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_integer(kind):
        target = pa.int64()
    elif (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    ):
        target = pa.string()
    elif len(array) == array.null_count:
        target = pa.int64()
    else:
        raise UserError(f"{what}: ids of type {kind}; use integers or strings")
    try:
        return array.cast(target)
    except pa.ArrowInvalid as error:
        raise UserError(f"{what}: an id is out of range ({error})") from None


def hash_strings(values: pa.Array, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash of every string's bytes (FNV-1a, mixed), uint64 [n]."""
    values = values.cast(pa.large_string())
    _, offset_buffer, data_buffer = values.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[values.offset :][: len(values) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)
    lengths = np.diff(offsets)
    hashes = np.full(len(values), _FNV_OFFSET ^ np.uint64(seed))
    # The longest first, so that the strings that still have a byte are a prefix.
    order = np.argsort(-lengths, kind="stable")
    starts, reach = offsets[:-1][order], lengths[order]
    running = hashes[order]
    alive = len(order)
    for position in range(int(reach[0]) if len(reach) else 0):
        alive = int(np.searchsorted(-reach[:alive], -position, side="left"))
        bytes_here = data[starts[:alive] + position].astype(np.uint64)
        running[:alive] = (running[:alive] ^ bytes_here) * _FNV_PRIME
    hashes[order] = running
    return mix(hashes)


def mix(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread neighbouring numbers over all 64 bits (the splitmix64 finaliser)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _keys(ids: pa.Array, seed: int) -> Ints:
    if pa.types.is_string(ids.type):
        return hash_strings(ids, seed).view(np.int64)
    keys: Ints = ids.to_numpy()
    return keys


def _sorted_keys(ids: pa.Array, seed: int) -> tuple[Ints, Ints]:
    keys = _keys(ids, seed)
    order = np.argsort(keys, kind="stable")
    return order, keys[order]


def _refuse_duplicates(ids: pa.Array) -> None:
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        first = repeated[0].as_py()
        raise UserError(
            f"content store: {ITEM_ID} {first['values']!r} occurs {first['counts']} "
            f"times ({len(repeated)} ids do); keep one row per item"
        )
