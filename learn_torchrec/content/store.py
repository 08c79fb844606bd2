"""Content vectors on disk: written once, memory-mapped by every later stage.

A content store is an artefact (kind "content"): `vectors-*.npy`, shards of a half
precision matrix [N, C]; the ids and their index (see `ids.IdIndex`);
`text_hashes-*.npy`, what each row's text was, where the vectors were made from texts;
and `statistics.npz`, the mean and standard deviation of every dimension. Frozen
language models put all items into a narrow cone, so that the towers standardise by
these statistics before they read.

Letters: N items, C content dim, n ids or rows looked up.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

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
    """Write ids, vectors, the index and the statistics of an artefact: one shard.

    Args:
        working_dir: what `artifact.write_artifact` yields.
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
        working_dir: of the artefact; other ranks write other shards into it.
        number: of the shard; shards follow each other in this order.
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
        item_ids: what `checked_ids` returned.
        moments: of all rows.

    Returns:
        One hash of all the texts, in the rows' order.

    Raises:
        UserError: an id occurs twice.
    """
    moments.write(working_dir)
    IdIndex.build(item_ids, f"content store: {ITEM_ID}").write(working_dir)
    digest = hashlib.sha256()
    for path in sorted(working_dir.glob(f"{_HASHES}-*.npy")):
        digest.update(np.load(path).tobytes())
    return digest.hexdigest()


def checked_ids(item_ids: Column) -> pa.Array:
    """Return the ids of a catalogue in normal form.

    Raises:
        UserError: no items, a null id, or ids of another type. Duplicates are found
            when the index is built.
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
    with np.errstate(over="ignore"):  # checked just below, by item
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


class ContentStore:
    """The content vectors of a catalogue, read from disk as they are needed.

    Attributes:
        directory: where the artefact is.
        manifest: what made it.
        index: ids to rows.
        vectors: float16 [N, C], memory-mapped and read-only.
        mean: float64 [C], over the catalogue.
        std: float64 [C], over the catalogue; 1 where a dimension is constant up to
            the rounding of half precision, so that standardising makes it about 0.

    Example:
        >>> store = ContentStore.open(directory)
        >>> rows = store.rows_of(pa.array([7, 3, 999]))
        >>> rows.tolist()
        [1, 0, -1]
        >>> vectors = (store.gather(rows[:2]) - store.mean) / store.std
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        index: IdIndex,
        vectors: ShardedMatrix,
        statistics: tuple[Float64Array, Float64Array],
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.index = index
        self.vectors = vectors
        self.mean, self.std = statistics

    @classmethod
    def open(cls, directory: Path) -> "ContentStore":
        """Open the store in `directory` without reading its matrix or its ids.

        Raises:
            UserError: no content store there, or a damaged one.
        """
        manifest = read_manifest(directory, KIND)
        shards = _shards(manifest, SHARDS)
        if not shards:
            raise UserError(
                f"{directory}: its manifest names no {SHARDS}-*.npy; {_AGAIN}"
            )
        names = (*shards, *INDEX_FILES, STATISTICS_FILE)
        with reading(directory, manifest, names, _AGAIN):
            statistics = read_statistics(directory)
            index = IdIndex.open(directory)
            vectors = ShardedMatrix.open([directory / name for name in shards])
        shapes = {vectors.shape, (len(index), len(statistics[0]))}
        if len(shapes) > 1 or len(statistics[0]) != len(statistics[1]):
            raise UserError(
                f"{directory}: {len(index)} ids, a matrix of shape {vectors.shape} "
                f"and {len(statistics[0])} statistics do not match; {_AGAIN}"
            )
        return cls(directory, manifest, index, vectors, statistics)

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
        # Otherwise every worker process would be sent the whole matrix.
        return ContentStore.open, (self.directory,)

    def rows_of(self, ids: Column) -> Int64Array:
        """Return the row of every id, int64 [n]; -1 for null ids and unknown ones.

        Raises:
            UserError: the ids are not of the store's type.
        """
        wanted = as_ids(ids, ITEM_ID, allow_null=True)
        refuse_other_type(wanted, self.index.type, ITEM_ID, str(self.directory))
        return self.index.rows_of(wanted)

    def gather(self, rows: Int64Array) -> Float16Array:
        """Return the vectors of `rows` ([n], any order), float16 [n, C].

        Raises:
            UserError: a row is -1: an item without content.
        """
        unknown = int(np.count_nonzero(rows < 0))
        if unknown:
            raise UserError(
                f"{self.directory}: {unknown} of {rows.size} items have no content "
                "vector; encode them, or leave their rows out"
            )
        return self.vectors[rows]

    @property
    def knows_texts(self) -> bool:
        """Whether the store keeps the hashes of the texts it was made from."""
        return bool(_shards(self.manifest, _HASHES))

    def text_hashes(self) -> UInt64Array:
        """Return the hashes of the rows' texts, uint64 [N, 2]; see `knows_texts`."""
        names = _shards(self.manifest, _HASHES)
        with reading(self.directory, self.manifest, names, _AGAIN):
            return np.concatenate([np.load(self.directory / name) for name in names])


def _shards(manifest: Manifest, kind: str) -> list[str]:
    return sorted(name for name in manifest.files if name.startswith(f"{kind}-"))
