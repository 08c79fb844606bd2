"""Vectors from an interrupted run or an earlier store, to be reused.

They are found by the hash of their text, so that a killed run resumes at any number of
ranks, and only new or changed items are encoded. An interrupted run's vectors are in
blocks of two files each; the hashes are written last, so that a block counts whole or
not at all.

Letters: n texts, C content dim.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learn_torchrec.arrays import AnyArray, Float16Array, Int64Array, UInt64Array
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.matrix import Shard, ShardedMatrix, map_array

ENCODER_FACT = "encoder"


class VectorCache:
    """Finished vectors by the hash of their text.

    Args:
        directory: of the blocks of an interrupted run and of this one; created with
            the first block.
        earlier: a store of the same encoder's vectors.
    """

    def __init__(self, directory: Path, earlier: ContentStore | None = None) -> None:
        self.directory = directory
        self._hashes = [np.empty((0, 2), np.uint64)]
        self._shards: list[Shard] = []
        self._blocks: set[str] = set()
        if earlier is not None:
            self._hashes.append(earlier.text_hashes())
            self._shards.extend(earlier.vectors.shards)
        self.reload()

    @property
    def dim(self) -> int | None:
        """C; None if there are no vectors."""
        return self._shards[0].shape[1] if self._shards else None

    def find(self, hashes: UInt64Array) -> Int64Array:
        """Return every text's position for `gather`, int64 [n]; -1 if unknown."""
        if not len(self._sorted):
            return np.full(len(hashes), -1, np.int64)
        place = np.searchsorted(self._sorted, hashes[:, 0])
        place = np.minimum(place, len(self._sorted) - 1)
        position = self._order[place]
        same = (self._all_hashes[position] == hashes).all(axis=1)
        return np.where(same, position, -1)

    def gather(self, positions: Int64Array) -> Float16Array:
        """Return the vectors [n, C] at positions of `find`, none of them -1."""
        return self._vectors[positions]

    def write_block(self, hashes: UInt64Array, vectors: Float16Array) -> None:
        """Write vectors [n, C] so that they survive a kill."""
        self.directory.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex[:12]
        _write_aside(self.directory / f"{name}.vectors.npy", vectors)
        _write_aside(self.directory / f"{name}.hashes.npy", hashes)

    def reload(self) -> None:
        """Add the blocks that were written since the last call."""
        for path in sorted(self.directory.glob("*.hashes.npy")):
            if path.name not in self._blocks:
                self._blocks.add(path.name)
                self._hashes.append(np.load(path))
                vectors = path.with_name(path.name.replace(".hashes.", ".vectors."))
                self._shards.append(_UnmappedShard(vectors))
        self._all_hashes = np.concatenate(self._hashes)
        self._order = np.argsort(self._all_hashes[:, 0], kind="stable")
        self._sorted = self._all_hashes[self._order, 0]
        if self._shards:
            self._vectors = ShardedMatrix(self._shards)

    def remove(self) -> None:
        """Delete the blocks, once their store is complete."""
        shutil.rmtree(self.directory, ignore_errors=True)


def hash_texts(texts: Sequence[str]) -> UInt64Array:
    """Return a 128-bit hash of every text, uint64 [n, 2]."""
    digests = b"".join(
        hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts
    )
    return np.frombuffer(digests, np.uint64).reshape(len(texts), 2)


def earlier_store(directory: Path, encoder: str) -> ContentStore:
    """Open a store to reuse its vectors.

    Args:
        directory: of the store.
        encoder: see `extract.encoder_identity`.

    Raises:
        UserError: another encoder made it, or it does not have its texts' hashes.
    """
    store = ContentStore.open(directory)
    same = store.manifest.facts.get(ENCODER_FACT) == encoder
    if not (same and store.has_text_hashes):
        raise UserError(
            f"--reuse {directory}: its vectors are from another model or other "
            "encoder settings; leave --reuse out, or use the settings of that store"
        )
    return store


class _UnmappedShard:
    """A block's vectors, mapped only while they are read.

    A long run leaves thousands of blocks, more than a process may open files.
    """

    def __init__(self, path: Path) -> None:
        self._path, vectors = path, map_array(path)
        self.shape, self.dtype = vectors.shape, vectors.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Float16Array:
        return np.array(map_array(self._path)[rows])


def _write_aside(path: Path, array: AnyArray) -> None:
    working = path.with_suffix(".tmp")
    with working.open("wb") as stream:
        np.save(stream, array)
        stream.flush()
        os.fsync(stream.fileno())
    working.replace(path)
