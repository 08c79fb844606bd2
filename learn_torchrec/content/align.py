"""A linear map from a new encoder's content to an earlier one's space.

Both encoders have read some of the same items. The map is fitted on those, so that what
was trained on the earlier content can read items that only the new encoder has read.

Letters: n items, C dims of the earlier content, E dims of the new.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from learn_torchrec.arrays import AnyArray, Float32Array, Float64Array, Int64Array
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.spaces import cosines

Method = Literal["ridge", "procrustes"]

LEAST_SHARED = 50
ALIGNMENT_FILE = "alignment.npz"
_FITTED = 100_000  # items at most
_HELD_OUT = 0.1  # to choose the penalty, and as many to measure
_PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class SharedItems:
    """Rows of the items that both stores have, divided at random.

    Attributes:
        old: int64 [n], rows of the earlier store.
        new: int64 [n], of the new one.
        fitted: number of the first, to fit; the next choose, the rest measure.
        chosen: number of the next.
    """

    old: Int64Array
    new: Int64Array
    fitted: int
    chosen: int

    @classmethod
    def of(cls, old: ContentStore, new: ContentStore) -> Self:
        """Find the shared items.

        Raises:
            UserError: ids of different types, or too few shared items.
        """
        rows = old.rows_of(new.item_ids)
        shared = np.flatnonzero(rows >= 0)
        if len(shared) < LEAST_SHARED:
            raise UserError(
                f"{old.directory} and {new.directory} share {len(shared)} items, at "
                f"least {LEAST_SHARED} are needed; encode more of the old items with "
                "the new encoder"
            )
        shared = np.random.default_rng(0).permutation(shared)
        held_out = int(min(len(shared) * _HELD_OUT, _FITTED * _HELD_OUT))
        fitted = min(len(shared) - 2 * held_out, _FITTED)
        shared = shared[: fitted + 2 * held_out]
        return cls(rows[shared], shared, fitted, held_out)

    @property
    def measured(self) -> slice:
        """The items that neither fitted nor chose anything."""
        return slice(self.fitted + self.chosen, None)


@dataclass(frozen=True)
class Alignment:
    """A map to another space.

    Attributes:
        matrix: float32 [E, C].
        offset: float32 [C].
        is_unit: whether vectors of the earlier space have unit length.
    """

    matrix: Float32Array
    offset: Float32Array
    is_unit: bool

    @classmethod
    def fit(
        cls, old: ContentStore, new: ContentStore, shared: SharedItems, method: Method
    ) -> Self:
        """Fit on standardized vectors of the shared items.

        `ridge` is least squares with the penalty that does best on held-out items,
        `procrustes` a rotation, which needs equal dims and keeps all similarities.

        Raises:
            UserError: a rotation between different dims.
        """
        target = _standardized(old, shared.old)
        source = _standardized(new, shared.new)
        fitted = slice(0, shared.fitted)
        chosen = slice(shared.fitted, shared.fitted + shared.chosen)
        if method == "procrustes":
            if old.dim != new.dim:
                raise UserError(
                    f"--method procrustes: {new.directory} has {new.dim} dims and "
                    f"{old.directory} {old.dim}; use --method ridge"
                )
            left, _, right = np.linalg.svd(source[fitted].T @ target[fitted])
            matrix = left @ right
        else:
            maps = _ridges(source[fitted], target[fitted])
            fits = [
                cosines(source[chosen] @ one, target[chosen]).mean() for one in maps
            ]
            matrix = maps[int(np.argmax(fits))]
        # From raw vectors to raw vectors.
        matrix = matrix / new.std[:, None] * old.std
        offset = old.mean - new.mean @ matrix
        lengths = np.linalg.norm(
            old.gather(shared.old[:100]).astype(np.float32), axis=1
        )
        is_unit = bool(np.allclose(lengths, 1, atol=0.01))
        return cls(matrix.astype(np.float32), offset.astype(np.float32), is_unit)

    def apply(self, vectors: AnyArray) -> Float32Array:
        """Return vectors [n, E] in the earlier space, float32 [n, C]."""
        mapped: Float32Array = vectors.astype(np.float32) @ self.matrix + self.offset
        if self.is_unit:
            mapped /= np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-6)
        return mapped

    def write(self, directory: Path) -> None:
        """Write the map beside what it has mapped, for later items."""
        np.savez(
            directory / ALIGNMENT_FILE,
            matrix=self.matrix,
            offset=self.offset,
            is_unit=self.is_unit,
        )

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            OSError: the file is missing; ValueError, BadZipFile, KeyError: damaged.
        """
        with np.load(directory / ALIGNMENT_FILE, allow_pickle=False) as stored:
            return cls(stored["matrix"], stored["offset"], bool(stored["is_unit"]))


def standardized(store: ContentStore, vectors: AnyArray) -> Float64Array:
    """Return vectors [n, C] by a store's mean and deviation, as towers read them.

    All raw vectors of a language model point the same way, so that raw cosines say
    little.
    """
    scaled: Float64Array = (vectors.astype(np.float64) - store.mean) / store.std
    return scaled


def _standardized(store: ContentStore, rows: Int64Array) -> Float64Array:
    return standardized(store, store.gather(rows))


def _ridges(source: Float64Array, target: Float64Array) -> list[Float64Array]:
    """Return the least-squares maps [E, C] of some penalties."""
    values, vectors = np.linalg.eigh(source.T @ source)
    projected = vectors.T @ (source.T @ target)
    return [
        vectors @ (projected / (values + penalty * len(source))[:, None])
        for penalty in _PENALTIES
    ]
