"""Mean and standard deviation of every dimension of a matrix, summed over ranks.

Letters: C content dim, n rows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learn_torchrec.arrays import AnyArray, Float64Array
from learn_torchrec.matrix import blocks

STATISTICS_FILE = "statistics.npz"
# A deviation below the rounding of half precision is noise, not content.
_RELATIVE_RESOLUTION = 2.0**-11
_ABSOLUTE_RESOLUTION = 2.0**-24


@dataclass(frozen=True)
class Moments:
    """Count, mean [C] and sum of squared deviations [C] of some rows, float64."""

    count: int
    mean: Float64Array
    squares: Float64Array

    @classmethod
    def of(cls, vectors: AnyArray) -> "Moments":
        """Return the moments of `vectors` [n, C], accumulated in float64."""
        dim = vectors.shape[1]
        total = cls(0, np.zeros(dim), np.zeros(dim))
        for block in blocks(vectors.shape):
            rows = vectors[block].astype(np.float64)
            mean = rows.mean(axis=0)
            squares = np.square(rows - mean).sum(axis=0)
            total = total + cls(len(rows), mean, squares)
        return total

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of rows (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        step = other.mean - self.mean
        between = np.square(step) * (self.count * other.count / count)
        return Moments(
            count,
            self.mean + step * (other.count / count),
            self.squares + other.squares + between,
        )

    def std(self) -> Float64Array:
        """Return the standard deviation [C]; 1 where it is no more than rounding."""
        std = np.sqrt(self.squares / max(1, self.count))
        noise = np.maximum(
            _ABSOLUTE_RESOLUTION, _RELATIVE_RESOLUTION * np.abs(self.mean)
        )
        return np.where(std > noise, std, 1.0)

    def write(self, directory: Path) -> None:
        """Write mean and standard deviation."""
        np.savez(directory / STATISTICS_FILE, mean=self.mean, std=self.std())


def read_statistics(directory: Path) -> tuple[Float64Array, Float64Array]:
    """Return mean and standard deviation, float64 [C] each.

    Raises:
        OSError, ValueError, BadZipFile: missing or damaged.
    """
    with np.load(directory / STATISTICS_FILE, allow_pickle=False) as statistics:
        return statistics["mean"], statistics["std"]
