"""A codebook: what turns content vectors into codes, by residual k-means.

Content is brought to its principal components. The first code of an item is the nearest
of K centroids, the next one the nearest to what that leaves over, and so on.

Letters: N items, C content dim, D components, L levels, K codes of a level, n rows.
"""

import logging
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from learn_torchrec.arrays import (
    AnyArray,
    Float32Array,
    Float64Array,
    Int16Array,
    Int64Array,
)
from learn_torchrec.config import Width, configuration, require
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.matrix import ShardedMatrix, blocks

_MOST_CODES = 256  # of a level, unless more are configured
_LEAST_ITEMS = 39  # for each code: FAISS warns of badly estimated centroids below
_FITTED_ITEMS = 256  # for each code: FAISS gains nothing from more
_ROUNDING = 1e-11  # of distances in float64, with room to spare

logger = logging.getLogger(__name__)


@configuration
class CodesConfig:
    """Residual k-means over the content vectors of a catalogue.

    Attributes:
        levels: codes of an item; each describes what the ones before leave over.
        codes_per_level: centroids of a level; None for the largest power of two up to
            256 that leaves 39 items for each.
        fit_items: items that the centroids are fitted to, drawn once; None for 256 for
            each code of a level.
        iterations: of k-means, on each level.
        standardize: divide every dimension by its standard deviation in the content
            store that the codebook is fitted to.
        components: principal components of that content which are clustered. In more
            dimensions all items are about equally far apart, and most of them get the
            same code on the deeper levels.
        seed: of the drawn items and the first centroids.
    """

    levels: PositiveInt = 3
    codes_per_level: Annotated[int, Field(ge=2, le=2**15)] | None = None
    fit_items: PositiveInt | None = None
    iterations: PositiveInt = 25
    standardize: bool = True
    components: Width = 64
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def __post_init__(self) -> None:
        size = self.codes_per_level or _MOST_CODES
        require(
            self.levels * math.log2(size) < 63,
            f"levels: {self.levels} levels of {size} codes do not fit int64 as one id; "
            "choose fewer",
        )

    def size(self, items: int) -> int:
        """Return K for a catalogue of so many items."""
        if self.codes_per_level is not None:
            return self.codes_per_level
        return 2 ** int(math.log2(min(max(items / _LEAST_ITEMS, 2), _MOST_CODES)))


@dataclass(frozen=True)
class Codebook:
    """Centroids of reduced content.

    Attributes:
        centroids: float32 [L, K, D].
        mean: float64 [C], of the content.
        projection: float64 [C, D], from centred content to its components.
    """

    centroids: Float32Array
    mean: Float64Array
    projection: Float64Array

    def encode(
        self, vectors: AnyArray | ShardedMatrix
    ) -> tuple[Int16Array, Float64Array]:
        """Return the codes of content vectors, and what they leave over.

        Equal vectors get equal codes, whatever other vectors are encoded with them.

        Args:
            vectors: [N, C] in half precision, in memory or mapped; read in blocks.

        Returns:
            Codes int16 [N, L]; float64 [L + 1], the sum over all items of the squared
            length that is left after 0, 1, ... L codes.
        """
        levels, size, _ = self.centroids.shape
        codes = np.empty((len(vectors), levels), np.int16)
        left = np.zeros(levels + 1)
        for block in blocks((len(vectors), max(size, len(self.mean)))):
            rest = (vectors[block] - self.mean) @ self.projection
            squares = np.square(rest).sum(axis=1, keepdims=True)
            left[0] += squares.sum()
            for level, centroids in enumerate(self.centroids):
                found = nearest(rest, centroids, squares)
                rest -= centroids[found]
                codes[block, level] = found
                left[level + 1] += np.square(rest).sum()
        return codes, left


def nearest(
    points: Float64Array, centroids: Float32Array, squares: Float64Array
) -> Int64Array:
    """Return the index of the nearest centroid to each point, int64 [n].

    A tie goes to the first, also where rounding would break it: how a matrix product
    rounds depends on the number of its rows, but a point's code must not.

    Args:
        points: float64 [n, D], what earlier codes leave over of vectors.
        centroids: float32 [K, D].
        squares: float64 [n, 1], squared lengths of those vectors, whose rounding
            `points` still have.
    """
    centroids = centroids.astype(np.float64)
    own = np.square(centroids).sum(axis=1)
    distances = points @ (-2 * centroids.T)
    distances += own  # without the points' own squares, the same for all
    rounding = _ROUNDING * (squares + own.max())
    bound = distances.min(axis=1, keepdims=True) + rounding
    first: Int64Array = (distances <= bound).argmax(axis=1)
    return first


def fit_codebook(store: ContentStore, config: CodesConfig) -> Codebook:
    """Fit the centroids to a sample of a content store; the same in every run.

    Raises:
        UserError: FAISS is not installed, or there are fewer items than codes.
    """
    size = config.size(len(store))
    count = min(len(store), config.fit_items or _FITTED_ITEMS * size)
    if count < size:
        raise UserError(
            f"codes.codes_per_level: {size} codes, but {count} items of "
            f"{store.directory} to fit them to; choose fewer, or more codes.fit_items"
        )
    random = np.random.default_rng(config.seed)
    rows = np.sort(random.choice(len(store), count, replace=False))
    scale = store.std if config.standardize else np.ones(store.dim)
    content = store.gather(rows).astype(np.float32)
    content -= store.mean
    content /= scale
    components = _components(content, config.components)
    rest = (content @ components).astype(np.float64)
    squares, centroids = np.square(rest).sum(axis=1, keepdims=True), []
    for level in range(config.levels):
        centroids.append(_k_means(rest.astype(np.float32), size, config))
        logger.info(
            "level %d of %d: fitted to %d items", level + 1, config.levels, count
        )
        for block in blocks((count, size)):
            found = nearest(rest[block], centroids[-1], squares[block])
            rest[block] -= centroids[-1][found]
    return Codebook(np.stack(centroids), store.mean, components / scale[:, None])


def _components(content: Float32Array, count: int) -> Float64Array:
    """Return the principal components of centred content [n, C], float64 [C, D]."""
    products = np.zeros((content.shape[1], content.shape[1]))
    for block in blocks(content.shape):
        rows = content[block].astype(np.float64)
        products += rows.T @ rows
    variances, vectors = np.linalg.eigh(products)  # ascending
    kept = variances[::-1][:count].sum() / max(variances.sum(), 1e-300)
    count = min(count, len(variances))
    logger.info("%d components have %.1f %% of the variance", count, 100 * kept)
    return np.ascontiguousarray(vectors[:, ::-1][:, :count])


def _k_means(points: Float32Array, size: int, config: CodesConfig) -> Float32Array:
    """Return centroids of points [n, C], float32 [K, C]."""
    try:
        import faiss
    except ImportError:
        raise UserError(
            "encode-codes needs FAISS: pip install faiss-cpu, or pip install "
            '"learn-torchrec[codes]"'
        ) from None
    clustering = faiss.Kmeans(
        points.shape[1],
        size,
        niter=config.iterations,
        seed=config.seed,
        min_points_per_centroid=1,  # the number of codes is configured, no mistake
        max_points_per_centroid=len(points),
    )
    clustering.train(points)
    return np.asarray(clustering.centroids)
