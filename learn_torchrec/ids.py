"""Ids of users and items: one normal form, one hash, one index.

Ids in normal form are a `pyarrow.Array` of int64 or large_string. Any other form
(NumPy, pandas, torch, lists, dictionaries, chunks, narrow integers) is converted once,
on entry, and every stage joins on the normal form. Strings are `large_string` because
the offsets of `string` end at 2 GiB: 134 million ids of 16 bytes.

Letters: K ids of an index, n ids looked up.
"""

import functools
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import Column, Int64Array, UInt64Array, as_arrow, name_rows
from learn_torchrec.errors import UserError

UNKNOWN = -1  # the row of an id that is not in the index

IDS_FILE = "ids.arrow"
KEYS_FILE = "id_keys.npy"
ROWS_FILE = "id_rows.npy"
INDEX_FILES = (IDS_FILE, KEYS_FILE, ROWS_FILE)

_COLUMN = "id"
_SEED = b"seed"
_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


def as_ids(values: Column, name: str, *, allow_null: bool = False) -> pa.Array:
    """Return ids in normal form, int64 or large_string.

    Args:
        values: [n] integers or strings, in any form (see `arrays.Column`).
        name: of the column, file or argument, for messages.
        allow_null: keep nulls instead of refusing them.

    Raises:
        UserError: ids of another type, integers beyond int64, mixed types, or nulls.
    """
    try:
        array = as_arrow(values)
    except (TypeError, ValueError, NotImplementedError):
        raise UserError(
            f"{name}: ids of mixed or unknown type; use all integers or all strings"
        ) from None
    if not len(array) and not isinstance(values, pa.Array | pa.ChunkedArray):
        array = pa.array([], pa.int64())  # empty arrays of NumPy and pandas are float
    target = normal_type(array.type, name)
    if array.null_count and not allow_null:
        is_null = array.is_null().to_numpy(zero_copy_only=False)
        raise UserError(f"{name}: null id in {name_rows(is_null)}; remove or fill them")
    try:
        array = array.cast(target)
    except pa.ArrowInvalid:
        raise UserError(f"{name}: an id does not fit int64; use strings") from None
    # After the cast: chunks of `string` may not fit one array of it.
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def normal_type(kind: pa.DataType, name: str) -> pa.DataType:
    """Return the normal form's type for ids of a type (dictionaries decoded).

    Raises:
        UserError: neither integers nor strings.
    """
    if is_text(kind):
        return pa.large_string()
    if pa.types.is_integer(kind) or kind == pa.null():
        return pa.int64()
    fix = ' (in pandas: .astype("Int64"))' if pa.types.is_floating(kind) else ""
    raise UserError(f"{name}: ids are {kind}; use int64 or string{fix}")


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's string types."""
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def type_name(kind: pa.DataType) -> str:
    """Return the name of an id type for messages: "int64" or "string"."""
    return "string" if is_text(kind) else str(kind)


def refuse_other_type(ids: pa.Array, known: pa.DataType, name: str, where: str) -> None:
    """Refuse ids that cannot be joined to other ids; nulls join to any type.

    Args:
        ids: in normal form.
        known: the other ids' type, in normal form.
        name: of the column of `ids`, for the message.
        where: the other ids are, for the message.

    Raises:
        UserError: the types differ.
    """
    if ids.null_count < len(ids):
        refuse_other_types(ids.type, known, name, where)


def refuse_other_types(
    kind: pa.DataType, known: pa.DataType, name: str, where: str
) -> None:
    """Refuse a type of ids that cannot be joined; see `refuse_other_type`."""
    if kind != known:
        raise UserError(
            f"{name}: ids are {type_name(kind)}, but {type_name(known)} in {where}; "
            "use one type for ids"
        )


def encode_ids(values: Column, name: str) -> tuple[Int64Array, pa.Array]:
    """Return codes [n] and the distinct ids, in order of first appearance.

    Raises:
        UserError: see `as_ids`.
    """
    encoded = as_ids(values, name).dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, encoded.dictionary


def hash_ids(ids: pa.Array) -> UInt64Array:
    """Return a 64-bit hash of every id, the same in every process and version.

    Args:
        ids: [n], in normal form without nulls.

    Returns:
        uint64 [n]: splitmix64's finalizer of an integer, or of the FNV-1a hash of a
        string's UTF-8 bytes.
    """
    if is_text(ids.type):
        return _hash_strings(ids, seed=0)
    return mixed(ids.to_numpy().view(np.uint64))


class IdIndex:
    """Maps distinct ids to rows 0, 1, ... and back, in memory or memory-mapped.

    Keys are sorted beside their rows: an integer id is its key, a string's key is a
    64-bit hash with a seed that avoids collisions. A look-up is a binary search;
    opening reads nothing, and the index's ids are never hashed again.

    Attributes:
        type: int64 or large_string.

    Example:
        >>> index = IdIndex.build(pa.array(["cup", "pan"]), "items")
        >>> index.rows_of(pa.array(["pan", "jug"], pa.large_string())).tolist()
        [1, -1]
    """

    def __init__(
        self,
        ids: pa.Array | Path,
        kind: pa.DataType,
        keys: Int64Array,
        rows: Int64Array,
        seed: int,
    ) -> None:
        self.type = kind
        self._source, self._keys, self._rows, self._seed = ids, keys, rows, seed
        if keys.shape != rows.shape or keys.ndim != 1:
            raise ValueError("keys and rows do not match")

    @classmethod
    def build(cls, ids: Column, name: str) -> Self:
        """Index ids in memory; the n-th id has row n.

        Args:
            ids: K distinct ids without nulls.
            name: of their column or file, for messages.

        Raises:
            UserError: ids of another type, or a duplicate.
        """
        known = as_ids(ids, name)
        seed = 0
        order, keys = _sorted_keys(known, seed)
        while (keys[1:] == keys[:-1]).any():
            refuse_duplicates(known, name)
            seed += 1  # a hash collision: once in a million large catalogues
            order, keys = _sorted_keys(known, seed)
        return cls(known, known.type, keys, order, seed)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Map the files of `write`.

        Raises:
            OSError: a file is missing; ValueError, ArrowInvalid: damaged.
        """
        path = directory / IDS_FILE
        with pa.memory_map(str(path)) as source:
            field = pa.ipc.open_file(source).schema.field(_COLUMN)
        return cls(
            path,
            field.type,
            map_array(directory / KEYS_FILE, np.int64, 1),
            map_array(directory / ROWS_FILE, np.int64, 1),
            int((field.metadata or {}).get(_SEED, b"0")),
        )

    def write(self, directory: Path) -> None:
        """Write the ids and their index into a directory."""
        np.save(directory / KEYS_FILE, self._keys)
        np.save(directory / ROWS_FILE, self._rows)
        field = pa.field(_COLUMN, self.type, metadata={_SEED: str(self._seed)})
        table = pa.table([self.ids], schema=pa.schema([field]))
        with pa.ipc.new_file(str(directory / IDS_FILE), table.schema) as sink:
            sink.write_table(table)

    def __len__(self) -> int:
        return len(self._keys)

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        if isinstance(self._source, Path):  # another process maps the same files
            return type(self).open, (self._source.parent,)
        return super().__reduce_ex__(protocol)

    @functools.cached_property
    def ids(self) -> pa.Array:
        """The ids in row order; memory-mapped if the index is."""
        if isinstance(self._source, Path):
            table = pa.ipc.open_file(pa.memory_map(str(self._source))).read_all()
            return table[_COLUMN].combine_chunks()
        return self._source

    def rows_of(self, wanted: pa.Array) -> Int64Array:
        """Return the row of every id, int64 [n]; UNKNOWN for null and unknown ids.

        Args:
            wanted: [n], of the index's type, in normal form.
        """
        if not len(self):
            return np.full(len(wanted), UNKNOWN)
        present = wanted.drop_null()
        keys = _keys(present, self._seed)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._keys[place] == keys
        rows = np.where(found, self._rows[place], UNKNOWN)
        if is_text(self.type) and found.any():
            # An unknown id may have the key of a known one.
            hits = np.flatnonzero(found)
            stored = self.ids.take(pa.array(rows[hits]))
            same = pc.equal(stored, present.take(pa.array(hits)))
            rows[hits[~same.to_numpy(zero_copy_only=False)]] = UNKNOWN
        if wanted.null_count == 0:
            return rows
        result = np.full(len(wanted), UNKNOWN)
        result[wanted.is_valid().to_numpy(zero_copy_only=False)] = rows
        return result


def _hash_strings(values: pa.Array, seed: int) -> UInt64Array:
    """Return FNV-1a of every string's bytes, mixed, uint64 [n]."""
    if not len(values):
        return np.empty(0, np.uint64)
    _, offset_buffer, data_buffer = values.cast(pa.large_string()).buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[values.offset :][: len(values) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)
    lengths = np.diff(offsets)
    hashes = np.full(len(values), _FNV_OFFSET ^ np.uint64(seed))
    # Longest first: strings that still have a byte are a prefix.
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = offsets[:-1][order], lengths[order]
    running = hashes[order]
    active = len(order)
    for position in range(int(lengths[0])):
        active = int(np.searchsorted(-lengths[:active], -position, side="left"))
        column = data[starts[:active] + position].astype(np.uint64)
        running[:active] = (running[:active] ^ column) * _FNV_PRIME
    hashes[order] = running
    return mixed(hashes)


def mixed(keys: UInt64Array) -> UInt64Array:
    """Spread neighbouring numbers over all 64 bits (splitmix64's finalizer); 0 is 0."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _keys(ids: pa.Array, seed: int) -> Int64Array:
    if is_text(ids.type):
        return _hash_strings(ids, seed).view(np.int64)
    keys: Int64Array = ids.to_numpy()
    return keys


def _sorted_keys(ids: pa.Array, seed: int) -> tuple[Int64Array, Int64Array]:
    keys = _keys(ids, seed)
    order = np.argsort(keys, kind="stable")
    return order, keys[order]


def refuse_duplicates(ids: pa.Array | pa.ChunkedArray, name: str) -> None:
    """Refuse duplicate ids; `name` is their column or file, for the message."""
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        first = repeated[0].as_py()
        raise UserError(
            f"{name}: id {first['values']!r} occurs {first['counts']} times "
            f"(duplicated ids in all: {len(repeated)}); keep one row per id"
        )
