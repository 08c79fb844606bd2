"""Content vectors on disk: written once, memory-mapped by every later stage.

A content store is an artefact (kind "content"): `vectors-*.npy`, shards of a half
precision matrix [N, C]; the id map (see `content.ids`); `text_hashes-*.npy`, what each
row's text was, where the vectors were made from texts; and `statistics.npz`, the mean
and standard deviation of every dimension. Frozen language models put all items into a
narrow cone, so that the towers standardise by these statistics before they read.

Letters: N items, C content dim, n ids or rows looked up.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.artifact import Manifest, read_manifest
from learn_torchrec.content.ids import (
    IDS_FILE,
    KEYS_FILE,
    ROWS_FILE,
    IdIndex,
    as_ids,
    write_index,
)
from learn_torchrec.content.matrix import Moments, ShardedMatrix, blocks
from learn_torchrec.errors import UserError
from learn_torchrec.schema import ITEM_ID

KIND = "content"
STATISTICS_FILE = "statistics.npz"
_VECTORS, _HASHES = "vectors", "text_hashes"

Missing = Literal["error", "zeros"]


def shard_path(directory: Path, number: int) -> Path:
    """Return the file of a shard of the matrix."""
    return directory / f"{_VECTORS}-{number:05d}.npy"


def write_content_store(
    working_dir: Path, item_ids: pa.Array, vectors: npt.NDArray[Any]
) -> None:
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
    stored = np.lib.format.open_memmap(
        shard_path(working_dir, 0), mode="w+", dtype=np.float16, shape=vectors.shape
    )
    for block in blocks(vectors):
        stored[block] = to_half(vectors[block], ids[block])
    stored.flush()
    finish_content_store(working_dir, ids, Moments.of(stored))


def write_shard(
    working_dir: Path,
    number: int,
    pieces: Callable[[slice], npt.NDArray[np.float16]],
    hashes: npt.NDArray[np.uint64],
    dim: int,
) -> Moments:
    """Write one shard of the matrix, a block of rows at a time.

    Args:
        working_dir: of the artefact; other ranks write other shards into it.
        number: of the shard; shards follow each other in this order.
        pieces: returns the vectors of a slice of the shard's rows.
        hashes: uint64 [n, 2], of the rows' texts.
        dim: C.

    Returns:
        The shard's part of the statistics.
    """
    shape = (len(hashes), dim)
    if len(hashes) == 0:  # an empty file cannot be mapped
        return Moments.of(np.empty(shape, np.float16))
    path = shard_path(working_dir, number)
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    for block in blocks(stored):
        stored[block] = pieces(block)
    stored.flush()
    np.save(working_dir / f"{_HASHES}-{number:05d}.npy", hashes)
    return Moments.of(stored)


def finish_content_store(
    working_dir: Path, item_ids: pa.Array, moments: Moments
) -> str:
    """Write what all shards share: the id map and the statistics.

    Args:
        working_dir: of the artefact, with all shards.
        item_ids: what `checked_ids` returned.
        moments: of all rows.

    Returns:
        One hash of all the texts, in the rows' order.
    """
    with (working_dir / STATISTICS_FILE).open("wb") as stream:
        np.savez(stream, mean=moments.mean, std=moments.spread())
    write_index(working_dir, item_ids)
    digest = hashlib.sha256()
    for path in sorted(working_dir.glob(f"{_HASHES}-*.npy")):
        digest.update(np.load(path).tobytes())
    return digest.hexdigest()


def checked_ids(item_ids: Any) -> pa.Array:
    """Return the ids of a catalogue as int64 or string.

    Raises:
        UserError: no items, a null id, or ids of another type. Duplicates are found
            when the index is written.
    """
    ids = as_ids(item_ids, "content store")
    if len(ids) == 0:
        raise UserError("content store: no items; check the item table")
    if ids.null_count:
        row = pc.index(ids.is_null(), True).as_py()
        raise UserError(
            f"content store: {ids.null_count} items have a null {ITEM_ID}, the first "
            f"in row {row}; give every item an id"
        )
    return ids


def to_half(vectors: npt.NDArray[Any], ids: pa.Array) -> npt.NDArray[np.float16]:
    """Return vectors [n, C] in half precision.

    Raises:
        UserError: a vector that is not finite or too large; names the item.
    """
    with np.errstate(over="ignore"):  # checked just below, by item
        stored = vectors.astype(np.float16)
    rows = np.flatnonzero(~np.isfinite(stored).all(axis=1))
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


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of what is asked for has content.

    Attributes:
        events: ids asked for, repeats included.
        covered_events: of them, those that have a vector.
        items: distinct ids asked for.
        covered_items: of them, those that have a vector.
        examples: up to five ids without one, the most frequent first.
    """

    events: int
    covered_events: int
    items: int
    covered_items: int
    examples: tuple[Any, ...]

    def __str__(self) -> str:
        text = (
            f"{self.covered_items:,} of {self.items:,} items and "
            f"{self.covered_events:,} of {self.events:,} events have content"
        )
        if self.examples:
            text += f"; without: {', '.join(map(repr, self.examples))}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return the report for a JSON file."""
        return asdict(self)


class ContentStore:
    """The content vectors of a catalogue, read from disk as they are needed.

    Attributes:
        directory: where the artefact is.
        manifest: what made it.
        item_ids: int64 or string, [N], in the rows' order, memory-mapped.
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
        >>> store.gather(rows, missing="zeros")[2].tolist()
        [0.0, 0.0]
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        index: IdIndex,
        vectors: ShardedMatrix,
        statistics: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.vectors = vectors
        self.mean, self.std = statistics
        self._index = index

    @classmethod
    def open(cls, directory: Path) -> "ContentStore":
        """Open the store in `directory` without reading its matrix or its ids.

        Raises:
            UserError: no content store there, or a damaged one.
        """
        manifest = read_manifest(directory, KIND)
        shards = sorted(n for n in manifest.files if n.startswith(f"{_VECTORS}-"))
        if not shards:
            raise UserError(
                f"{directory}: no {_VECTORS}-*.npy in its manifest (an earlier "
                "version's layout?); make the content store again"
            )
        for name in (*shards, IDS_FILE, KEYS_FILE, ROWS_FILE, STATISTICS_FILE):
            _refuse_changed(directory / name, manifest)
        statistics = _read(directory / STATISTICS_FILE, _read_statistics)
        index = _read(directory, IdIndex)
        vectors = _read(
            directory / shards[0],
            lambda _: ShardedMatrix.open([directory / name for name in shards]),
        )
        shapes = {vectors.shape, (len(index), len(statistics[0]))}
        if len(shapes) > 1 or len(statistics[0]) != len(statistics[1]):
            raise UserError(
                f"{directory}: {len(index)} ids, a matrix of shape {vectors.shape} "
                f"and {len(statistics[0])} statistics do not match; make the content "
                "store again"
            )
        return cls(directory, manifest, index, vectors, statistics)

    @property
    def item_ids(self) -> pa.Array:
        """The ids in the rows' order."""
        return self._index.ids

    @property
    def id_type(self) -> pa.DataType:
        """int64 or string."""
        return self._index.type

    @property
    def dim(self) -> int:
        """C, the length of a vector."""
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(self) -> tuple[Callable[[Path], "ContentStore"], tuple[Path]]:
        # Otherwise every worker process would be sent the whole matrix.
        return ContentStore.open, (self.directory,)

    def rows_of(self, ids: pa.Array | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the row of every id, int64 [n]; -1 for an id not in the store.

        Raises:
            UserError: the ids are not of the store's type.
        """
        wanted = as_ids(ids, "item ids")
        if wanted.null_count == len(wanted):
            return np.full(len(wanted), -1, np.int64)
        if wanted.type != self.id_type:
            raise UserError(
                f"{self.directory}: item ids are {self.id_type} here, but "
                f"{wanted.type} where they are looked up; use one type in all files"
            )
        return self._index.rows_of(wanted)

    def gather(
        self, rows: npt.NDArray[np.int64], missing: Missing = "error"
    ) -> npt.NDArray[np.float16]:
        """Return the vectors of `rows` ([n], any order), float16 [n, C].

        Args:
            rows: of the store, -1 for an item without content.
            missing: what such a row gets: an "error", or "zeros" (`rows >= 0` is
                the mask that goes with them).

        Raises:
            UserError: a row is -1 and `missing` is "error".
        """
        known = rows >= 0
        unknown = rows.size - int(np.count_nonzero(known))
        if unknown == 0:
            return self.vectors[rows]
        if missing == "error":
            raise UserError(
                f"{self.directory}: {unknown} of {rows.size} items have no content "
                "vector; encode them, or leave their rows out"
            )
        gathered = np.zeros((len(rows), self.dim), np.float16)
        gathered[known] = self.vectors[rows[known]]
        return gathered

    @property
    def knows_texts(self) -> bool:
        """Whether the store keeps the hashes of the texts it was made from."""
        return any(name.startswith(f"{_HASHES}-") for name in self.manifest.files)

    def text_hashes(self) -> npt.NDArray[np.uint64]:
        """Return the hashes of the rows' texts, uint64 [N, 2]; see `knows_texts`."""
        files = sorted(n for n in self.manifest.files if n.startswith(f"{_HASHES}-"))
        return np.concatenate([_read(self.directory / n, np.load) for n in files])

    def coverage(self, ids: pa.Array | npt.NDArray[Any]) -> Coverage:
        """Return how many of `ids`, and of the distinct ones, have a vector."""
        counted = pc.value_counts(as_ids(ids, "item ids"))
        distinct, counts = counted.field("values"), counted.field("counts").to_numpy()
        found = self.rows_of(distinct) >= 0
        absent = np.flatnonzero(~found)
        examples = absent[np.argsort(-counts[absent], kind="stable")[:5]]
        return Coverage(
            events=int(counts.sum()),
            covered_events=int(counts[found].sum()),
            items=len(distinct),
            covered_items=int(np.count_nonzero(found)),
            examples=tuple(distinct.take(pa.array(examples)).to_pylist()),
        )


def _refuse_changed(path: Path, manifest: Manifest) -> None:
    """Compare a file's size with the manifest's: cheap, and finds what was cut off."""
    recorded = manifest.files.get(path.name, {}).get("bytes")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: missing; make the content store again") from None
    if size != recorded:
        raise UserError(
            f"{path}: damaged ({size} bytes, its manifest says {recorded}); make the "
            "content store again"
        )


def _read_statistics(
    path: Path,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    with np.load(path, allow_pickle=False) as statistics:
        return statistics["mean"], statistics["std"]


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError:
        reason = "missing"
    except (OSError, ValueError, EOFError, BadZipFile, pa.ArrowException) as error:
        reason = f"damaged ({str(error).splitlines()[0]})"
    raise UserError(f"{path}: {reason}; make the content store again")
