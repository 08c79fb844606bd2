"""Vectors from an interrupted run or an earlier store, to be reused.

They are found by the hash of their text, so that a killed run resumes at any number of
ranks, and only new or changed items are encoded. An interrupted run's vectors are in
blocks of two checked files each (see `array_files`); the hashes are written last, so
that a block counts whole or not at all. A damaged block is encoded again.

Letters: n texts, C content dim.
"""

import hashlib
import logging
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learn_torchrec.array_files import (
    is_intact,
    map_array,
    read_array,
    read_checked,
    write_checked,
)
from learn_torchrec.arrays import BoolArray, Float16Array, Int64Array, UInt64Array
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.matrix import Shard, ShardedMatrix, finite_rows

ENCODER_FACT = "encoder"
_VECTORS, _HASHES = ".vectors.npy", ".hashes.npy"  # of a block

logger = logging.getLogger(__name__)


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
        self._earlier = 0
        if earlier is not None:
            self._hashes.append(earlier.text_hashes())
            self._shards.extend(earlier.vectors.shards)
            self._earlier = len(earlier)
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

    def is_earlier(self, hashes: UInt64Array) -> BoolArray:
        """Return which texts' vectors are in the earlier store, bool [n]."""
        positions = self.find(hashes)
        is_earlier: BoolArray = (positions >= 0) & (positions < self._earlier)
        return is_earlier

    def gather(self, positions: Int64Array) -> Float16Array:
        """Return the vectors [n, C] at positions of `find`, none of them -1."""
        return self._vectors[positions]

    def write_block(self, hashes: UInt64Array, vectors: Float16Array) -> None:
        """Write vectors [n, C] so that they survive a kill."""
        self.directory.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex[:12]
        write_checked(self.directory / f"{name}{_VECTORS}", vectors)
        write_checked(self.directory / f"{name}{_HASHES}", hashes)

    def reload(self) -> None:
        """Add the blocks that were written since the last call.

        Raises:
            UserError: one is damaged, or has vectors of another length.
        """
        for path in sorted(self.directory.glob(f"*{_HASHES}")):
            if path.name not in self._blocks:
                try:
                    hashes, shard = read_checked(path), _UnmappedShard(_vectors(path))
                except (OSError, ValueError) as error:
                    raise UserError(
                        f"{path}: damaged ({error}); run the same command again, which "
                        "encodes its texts again"
                    ) from None
                if shard.shape[1] != (self.dim or shard.shape[1]):
                    raise UserError(
                        f"{path}: vectors of length {shard.shape[1]}, others have "
                        f"{self.dim}; remove {self.directory}"
                    )
                self._blocks.add(path.name)
                self._hashes.append(hashes)
                self._shards.append(shard)
        self._all_hashes = np.concatenate(self._hashes)
        self._order = np.argsort(self._all_hashes[:, 0], kind="stable")
        self._sorted = self._all_hashes[self._order, 0]
        if self._shards:
            self._vectors = ShardedMatrix(self._shards)

    def remove(self) -> None:
        """Delete the blocks, once their store is complete."""
        shutil.rmtree(self.directory, ignore_errors=True)


def remove_damaged_blocks(directory: Path) -> None:
    """Remove the damaged blocks of an interrupted run, whose texts then count as new.

    One rank calls it, before any opens the `VectorCache`. Every byte is read.
    """
    for path in sorted(directory.glob(f"*{_HASHES}")):
        if (count := _intact_rows(path)) is None:
            for part in (path, _vectors(path)):
                part.unlink(missing_ok=True)
            logger.warning("%s: damaged; its texts are encoded again", path)
        else:
            logger.info("%s: %d vectors of an interrupted run", path, count)


def _intact_rows(path: Path) -> int | None:
    """Return how many vectors a block has; None if it is damaged."""
    if not (is_intact(path) and is_intact(_vectors(path))):
        return None
    try:
        hashes, vectors = map_array(path), read_array(_vectors(path))
    except ValueError:
        return None
    fits = hashes.ndim == vectors.ndim == 2 and len(hashes) == len(vectors) > 0
    fits = fits and hashes.dtype == np.uint64 and vectors.dtype == np.float16
    fits = fits and hashes.shape[1] == 2 and vectors.shape[1] > 0
    return len(hashes) if fits and finite_rows(vectors).all() else None


def _vectors(path: Path) -> Path:
    """Return the vectors' file of a block, given that of the hashes."""
    return path.with_name(path.name.removesuffix(_HASHES) + _VECTORS)


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
