"""Content in fewer dims: principal components of the standardized vectors.

Letters: n vectors, C content dim, R reduced dim.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from learn_torchrec.arrays import AnyArray, Float16Array, Float32Array
from learn_torchrec.content.store import ContentStore
from learn_torchrec.spaces import digest_of

REDUCTION_FILE = "reduction.npz"
_FITTED_ROWS = 100_000


@dataclass(frozen=True)
class Reduction:
    """A linear map from content to fewer dims; see `fit`.

    Attributes:
        mean: float32 [C], of the content.
        matrix: float32 [C, R], standardizes and rotates.
    """

    mean: Float32Array
    matrix: Float32Array

    @classmethod
    def fit(cls, store: ContentStore, dim: int) -> Self:
        """Return the first principal components of a store's standardized content.

        Fitted on up to 100,000 evenly spaced items; `dim` is R if C is not less.
        """
        rows = np.unique(np.linspace(0, len(store) - 1, _FITTED_ROWS).astype(np.int64))
        sample = (store.gather(rows) - store.mean) / store.std
        _, vectors = np.linalg.eigh(sample.T @ sample)
        components = vectors[:, ::-1][:, :dim]
        # An eigenvector's sign is arbitrary: the largest entry is made positive.
        largest = np.abs(components).argmax(axis=0)
        components = components * np.sign(components[largest, np.arange(len(largest))])
        return cls(
            store.mean.astype(np.float32),
            (components / store.std[:, None]).astype(np.float32),
        )

    @property
    def digest(self) -> str:
        """What tells it from another map."""
        return digest_of(self.mean, self.matrix)

    def write(self, directory: Path) -> None:
        """Write it beside what it reduced, for vectors of later items."""
        np.savez(directory / REDUCTION_FILE, mean=self.mean, matrix=self.matrix)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            OSError: the file is missing; ValueError, BadZipFile, KeyError: damaged.
        """
        with np.load(directory / REDUCTION_FILE, allow_pickle=False) as stored:
            return cls(stored["mean"], stored["matrix"])

    def apply(self, vectors: AnyArray) -> Float16Array:
        """Return content [n, C] as unit vectors, float16 [n, R]; zeros stay zeros."""
        reduced = (vectors.astype(np.float32) - self.mean) @ self.matrix
        norms = np.linalg.norm(reduced, axis=1, keepdims=True)
        return (reduced / np.maximum(norms, 1e-6)).astype(np.float16)
