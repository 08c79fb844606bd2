"""Content vectors on disk: written once, memory-mapped by every later stage.

A content store is an artefact (kind "content") of three files: `vectors.npy`, half
precision [N, C]; `item_ids.parquet`, one column; and `statistics.npz`, the mean and
standard deviation of every dimension. Frozen language models put all items into a
narrow cone, so that the towers standardise by these statistics before they read.

Letters: N items, C content dim.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from learn_torchrec.artifact import Manifest, read_manifest
from learn_torchrec.errors import UserError
from learn_torchrec.schema import ITEM_ID

KIND = "content"
VECTORS_FILE = "vectors.npy"
ITEM_IDS_FILE = "item_ids.parquet"
STATISTICS_FILE = "statistics.npz"

_BLOCK_BYTES = 64 << 20
# A spread below half precision's own rounding is noise, not content.
_RELATIVE_RESOLUTION = 2.0**-11
_ABSOLUTE_RESOLUTION = 2.0**-24


def write_content_store(
    working_dir: Path, item_ids: pa.Array, vectors: npt.NDArray[Any]
) -> None:
    """Write vectors, ids and statistics into the directory of an artefact.

    Args:
        working_dir: what `artifact.write_artifact` yields.
        item_ids: N distinct ids, integers or strings.
        vectors: floating point [N, C]; stored in half precision.

    Raises:
        UserError: null or duplicate ids, no items, or a vector that is not finite
            or too large for half precision.
    """
    ids = _as_ids(item_ids, "content store")
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise ValueError(f"{len(ids)} ids, vectors of shape {vectors.shape}")
    if vectors.size == 0:
        raise UserError("content store: no items; check the item table")
    _refuse_bad_ids(ids)
    stored = np.lib.format.open_memmap(
        working_dir / VECTORS_FILE, mode="w+", dtype=np.float16, shape=vectors.shape
    )
    for block in _blocks(vectors):
        with np.errstate(over="ignore"):  # checked just below, by item
            stored[block] = vectors[block]
        _refuse_non_finite(stored[block], vectors[block], ids[block])
    stored.flush()
    mean, std = _statistics(stored)
    with (working_dir / STATISTICS_FILE).open("wb") as stream:
        np.savez(stream, mean=mean, std=std)
    pq.write_table(pa.table({ITEM_ID: ids}), working_dir / ITEM_IDS_FILE)


@dataclass(frozen=True, eq=False)
class ContentStore:
    """The content vectors of a catalogue, read from disk as they are needed.

    Attributes:
        directory: where the artefact is.
        manifest: what made it.
        item_ids: int64 or string, [N], in the rows' order.
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

    directory: Path
    manifest: Manifest
    item_ids: pa.Array
    vectors: npt.NDArray[np.float16]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]

    @classmethod
    def open(cls, directory: Path) -> "ContentStore":
        """Open the store in `directory` without reading its matrix.

        Raises:
            UserError: no content store there, or a damaged one.
        """
        manifest = read_manifest(directory, KIND)
        ids = _read(directory / ITEM_IDS_FILE, pq.read_table)[ITEM_ID].combine_chunks()
        # A plain view: slices of a memmap would carry its subclass everywhere.
        vectors = np.asarray(
            _read(directory / VECTORS_FILE, lambda path: np.load(path, mmap_mode="r"))
        )
        mean, std = _read(directory / STATISTICS_FILE, _read_statistics)
        if vectors.shape != (len(ids), len(mean)) or mean.shape != std.shape:
            raise UserError(
                f"{directory}: {len(ids)} ids, a matrix of shape {vectors.shape} and "
                f"{len(mean)} statistics do not match; make the content store again"
            )
        return cls(directory, manifest, ids, vectors, mean, std)

    @property
    def dim(self) -> int:
        """C, the length of a vector."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.item_ids)

    def __reduce__(self) -> tuple[Callable[[Path], "ContentStore"], tuple[Path]]:
        # Otherwise every worker process would be sent the whole matrix.
        return ContentStore.open, (self.directory,)

    def rows_of(self, ids: pa.Array | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the row of every id, int64 [n]; -1 for an id not in the store.

        Each call hashes the catalogue's ids: look many ids up in one call.

        Raises:
            UserError: the ids are not of the store's type.
        """
        wanted = _as_ids(ids, "item ids")
        if wanted.type != self.item_ids.type and len(wanted):
            raise UserError(
                f"{self.directory}: item ids are {self.item_ids.type} here, but "
                f"{wanted.type} where they are looked up; use one type in all files"
            )
        rows = pc.index_in(wanted, value_set=self.item_ids)
        found: npt.NDArray[np.int64] = (
            pc.fill_null(rows, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        )
        return found

    def gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        """Return the vectors of `rows` ([n], any order), float16 [n, C].

        Raises:
            UserError: a row is -1, an item without content.
        """
        unknown = int(np.count_nonzero(rows < 0))
        if unknown:
            raise UserError(
                f"{self.directory}: {unknown} of {rows.size} items have no content "
                "vector; encode them, or leave their rows out"
            )
        gathered: npt.NDArray[np.float16] = self.vectors[rows]
        return gathered

    def coverage(self, ids: pa.Array | npt.NDArray[Any]) -> tuple[int, int]:
        """Return how many of `ids` have a vector, and how many ids there are."""
        rows = self.rows_of(ids)
        return int(np.count_nonzero(rows >= 0)), len(rows)


def _as_ids(ids: pa.Array | npt.NDArray[Any], what: str) -> pa.Array:
    """Return ids as one int64 or string array."""
    array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_integer(kind):
        target = pa.int64()
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        target = pa.string()
    elif len(array) == array.null_count:
        target = pa.int64()
    else:
        raise UserError(f"{what}: ids of type {kind}; use integers or strings")
    try:
        return array.cast(target)
    except pa.ArrowInvalid as error:
        raise UserError(f"{what}: an id is out of range ({error})") from None


def _refuse_bad_ids(ids: pa.Array) -> None:
    if ids.null_count:
        row = pc.index(ids.is_null(), True).as_py()
        raise UserError(
            f"content store: {ids.null_count} items have a null {ITEM_ID}, the first "
            f"in row {row}; give every item an id"
        )
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        first = repeated[0].as_py()
        raise UserError(
            f"content store: {ITEM_ID} {first['values']!r} occurs {first['counts']} "
            f"times ({len(repeated)} ids do); keep one row per item"
        )


def _refuse_non_finite(
    stored: npt.NDArray[np.float16], given: npt.NDArray[Any], ids: pa.Array
) -> None:
    rows = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if not rows.size:
        return
    row = int(rows[0])
    item = f"content store: the vector of {ITEM_ID} {ids[row].as_py()!r}"
    if np.isfinite(given[row]).all():
        raise UserError(
            f"{item} holds {np.abs(given[row]).max():.6g}, too large for half "
            "precision; set l2_normalize=true"
        )
    raise UserError(f"{item} is not finite; encode it again with dtype=float32")


def _statistics(
    vectors: npt.NDArray[np.float16],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and standard deviation [C], accumulated in float64, two passes."""
    count = len(vectors)
    mean = np.zeros(vectors.shape[1], dtype=np.float64)
    for block in _blocks(vectors):
        mean += vectors[block].sum(axis=0, dtype=np.float64)
    mean /= count
    squares = np.zeros_like(mean)
    for block in _blocks(vectors):
        squares += np.square(vectors[block] - mean).sum(axis=0)
    std = np.sqrt(squares / count)
    noise = np.maximum(_ABSOLUTE_RESOLUTION, _RELATIVE_RESOLUTION * np.abs(mean))
    return mean, np.where(std > noise, std, 1.0)


def _blocks(vectors: npt.NDArray[Any]) -> Iterator[slice]:
    """Yield slices of rows that are small beside memory, even in float64."""
    rows = max(1, _BLOCK_BYTES // (8 * vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        yield slice(start, min(start + rows, len(vectors)))


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
