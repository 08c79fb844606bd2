"""Content vectors on disk: written once, memory-mapped by every later stage.

A content store is an artefact (kind "content"): `vectors-*.npy`, shards of a half
precision matrix [N, C]; the ids and their index (see `ids.IdIndex`);
`text_hashes-*.npy`, the hash of each row's text, if vectors were made from texts; and
`statistics.npz`, the mean and standard deviation of every dimension. Frozen language
models map all items into a narrow cone, so the towers standardize their inputs with
these statistics.

Letters: N items, C content dim, n ids or rows looked up.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from learn_torchrec.array_files import read_array
from learn_torchrec.arrays import (
    AnyArray,
    Column,
    Float16Array,
    Float64Array,
    Int64Array,
    UInt64Array,
)
from learn_torchrec.artifact import Manifest, read_manifest, reading
from learn_torchrec.content.statistics import STATISTICS_FILE, Moments, read_statistics
from learn_torchrec.errors import UserError
from learn_torchrec.ids import INDEX_FILES, IdIndex, as_ids, refuse_other_type
from learn_torchrec.matrix import (
    SHARDS,
    ShardedMatrix,
    blocks,
    create_shard,
    finite_rows,
)
from learn_torchrec.schema import ITEM_ID

KIND = "content"
_HASHES = "text_hashes"
_AGAIN = "make the content store again"


def write_content_store(working_dir: Path, item_ids: Column, vectors: AnyArray) -> None:
    """Write a whole content store with one shard.

    Args:
        working_dir: from `publish.write_artifact`.
        item_ids: N distinct ids, integers or strings.
        vectors: floating point [N, C]; stored in half precision.

    Raises:
        UserError: null or duplicate ids, no items, or a vector that is not finite
            or too large for half precision.
    """
    ids = checked_ids(item_ids)
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise ValueError(f"{len(ids)} ids, vectors of shape {vectors.shape}")
    halves = (to_half(vectors[part], ids[part]) for part in blocks(vectors.shape))
    moments = _fill_shard(working_dir, 0, vectors.shape, halves)
    finish_content_store(working_dir, ids, moments)


def write_shard(
    working_dir: Path,
    number: int,
    rows: Callable[[slice], Float16Array],
    hashes: UInt64Array,
    dim: int,
) -> Moments:
    """Write one shard of the matrix, a block of rows at a time.

    Args:
        working_dir: of the artefact; other ranks write their shards into it.
        number: of the shard; rows follow in this order.
        rows: returns the vectors of a slice of the shard's rows.
        hashes: uint64 [n, 2], of the rows' texts.
        dim: C.

    Returns:
        The shard's part of the statistics.
    """
    np.save(working_dir / f"{_HASHES}-{number:05d}.npy", hashes)
    shape = (len(hashes), dim)
    return _fill_shard(working_dir, number, shape, map(rows, blocks(shape)))


def _fill_shard(
    directory: Path, number: int, shape: tuple[int, int], parts: Iterable[Float16Array]
) -> Moments:
    stored = create_shard(directory, number, shape)
    for block, part in zip(blocks(shape), parts, strict=True):
        stored[block] = part
    stored.flush()
    return Moments.of(stored)


def finish_content_store(
    working_dir: Path, item_ids: pa.Array, moments: Moments
) -> str:
    """Write what all shards share: the ids' index and the statistics.

    Args:
        working_dir: of the artefact, with all shards.
        item_ids: from `checked_ids`.
        moments: of all rows.

    Returns:
        One hash of all texts in row order.

    Raises:
        UserError: an id occurs twice.
    """
    moments.write(working_dir)
    IdIndex.build(item_ids, f"content store: {ITEM_ID}").write(working_dir)
    digest = hashlib.sha256()
    for path in sorted(working_dir.glob(f"{_HASHES}-*.npy")):
        digest.update(read_array(path).tobytes())
    return digest.hexdigest()


def checked_ids(item_ids: Column) -> pa.Array:
    """Return a catalogue's ids in normal form; building the index finds duplicates.

    Raises:
        UserError: no items, a null id, or ids of another type.
    """
    ids = as_ids(item_ids, f"content store: {ITEM_ID}")
    if len(ids) == 0:
        raise UserError("content store: no items; check the item table")
    return ids


def to_half(vectors: AnyArray, ids: pa.Array) -> Float16Array:
    """Return vectors [n, C] in half precision.

    Raises:
        UserError: a vector that is not finite or too large; names the item.
    """
    with np.errstate(over="ignore"):  # checked below, by item
        stored = vectors.astype(np.float16)
    rows = np.flatnonzero(~finite_rows(stored))
    if not rows.size:
        return stored
    row = int(rows[0])
    item = f"content store: the vector of {ITEM_ID} {ids[row].as_py()!r}"
    if np.isfinite(vectors[row]).all():
        raise UserError(
            f"{item} holds {np.abs(vectors[row]).max():.6g}, too large for half "
            "precision; set l2_normalize=true"
        )
    raise UserError(f"{item} is not finite; encode it again with dtype=float32")


@dataclass(frozen=True, eq=False)
class ContentStore:
    """The content vectors of a catalogue, read from disk on demand.

    Attributes:
        directory: of the artefact.
        manifest: of the artefact.
        index: ids to rows.
        vectors: float16 [N, C], memory-mapped and read-only.
        mean: float64 [C], over the catalogue.
        std: float64 [C], over the catalogue; 1 where a dimension is constant up to
            half-precision rounding, so that standardizing makes it about 0.

    Example:
        >>> store = ContentStore.open(directory)
        >>> rows = store.rows_of(pa.array([7, 3, 999]))
        >>> rows.tolist()
        [1, 0, -1]
        >>> vectors = (store.gather(rows[:2]) - store.mean) / store.std
    """

    directory: Path
    manifest: Manifest
    index: IdIndex
    vectors: ShardedMatrix
    mean: Float64Array
    std: Float64Array

    @classmethod
    def open(cls, directory: Path) -> "ContentStore":
        """Open a store without reading its matrix or ids.

        Raises:
            UserError: no content store, or a damaged one.
        """
        manifest = read_manifest(directory, KIND)
        shards = _shards(manifest, SHARDS)
        if not shards:
            raise UserError(
                f"{directory}: its manifest names no {SHARDS}-*.npy; {_AGAIN}"
            )
        names = (*shards, *INDEX_FILES, STATISTICS_FILE)
        with reading(directory, manifest, names, _AGAIN):
            mean, std = read_statistics(directory)
            index = IdIndex.open(directory)
            vectors = ShardedMatrix.open([directory / name for name in shards])
        if vectors.shape != (len(index), len(mean)) or len(mean) != len(std):
            raise UserError(
                f"{directory}: {len(index)} ids, a matrix of shape {vectors.shape} "
                f"and {len(mean)} statistics do not match; {_AGAIN}"
            )
        return cls(directory, manifest, index, vectors, mean, std)

    @property
    def item_ids(self) -> pa.Array:
        """The ids in the rows' order."""
        return self.index.ids

    @property
    def dim(self) -> int:
        """C, the length of a vector."""
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[Callable[[Path], "ContentStore"], tuple[Path]]:
        # Otherwise the whole matrix would be sent to every worker process.
        return ContentStore.open, (self.directory,)

    def rows_of(self, ids: Column) -> Int64Array:
        """Return the row of every id, int64 [n]; -1 for null and unknown ids.

        Raises:
            UserError: ids of another type than the store's.
        """
        wanted = as_ids(ids, ITEM_ID, allow_null=True)
        refuse_other_type(wanted, self.index.type, ITEM_ID, str(self.directory))
        return self.index.rows_of(wanted)

    def gather(self, rows: Int64Array) -> Float16Array:
        """Return the vectors of `rows` ([n], any order), float16 [n, C].

        Raises:
            UserError: a row is -1 (an item without content).
        """
        unknown = int(np.count_nonzero(rows < 0))
        if unknown:
            raise UserError(
                f"{self.directory}: {unknown} of {rows.size} items have no content "
                "vector; encode them, or drop their rows"
            )
        return self.vectors[rows]

    @property
    def has_text_hashes(self) -> bool:
        """Whether the store has the hashes of its texts."""
        return bool(_shards(self.manifest, _HASHES))

    def text_hashes(self) -> UInt64Array:
        """Return the hashes of the rows' texts, uint64 [N, 2]."""
        names = _shards(self.manifest, _HASHES)
        with reading(self.directory, self.manifest, names, _AGAIN):
            return np.concatenate([read_array(self.directory / name) for name in names])


def _shards(manifest: Manifest, kind: str) -> list[str]:
    return sorted(name for name in manifest.files if name.startswith(f"{kind}-"))
