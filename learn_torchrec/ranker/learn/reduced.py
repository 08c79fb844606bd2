"""Content for the ranker: standardized, reduced to few dims, of unit length.

A ranker compares a candidate with every item of a history, so vectors must be small
enough to be resident: principal components of the standardized content, in half
precision. Beside them: which items share a text, and the nearest texts of each.

Letters: N items, C content dim, R reduced dim, T distinct texts, k neighbours.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import (
    Float16Array,
    Int32Array,
    Int64Array,
)
from learn_torchrec.content.reduction import Reduction
from learn_torchrec.content.store import ContentStore
from learn_torchrec.evaluation.topk import approximate_top_items, top_items
from learn_torchrec.ids import IdIndex
from learn_torchrec.matrix import ShardedMatrix, blocks, create_shard, shards_of
from learn_torchrec.vector_table import VectorTable

CONTENT = "content"  # the folder of a vectors artefact
_MOST_EXACT = 200_000  # texts whose neighbours are searched exhaustively
_TEXTS, _NEIGHBOURS, _SIMILARITIES = "texts", "neighbours", "similarities"


def write_reduced(
    directory: Path,
    rank: int,
    store: ContentStore,
    reduction: Reduction,
    rows: Int64Array,
) -> None:
    """Write the reduced content of a rank's items [n] as its shard of a folder."""
    directory.mkdir(exist_ok=True)
    shard = create_shard(directory, rank, (len(rows), reduction.matrix.shape[1]))
    for part in blocks((len(rows), store.dim)):
        shard[part] = reduction.apply(store.gather(rows[part]))
    shard.flush()


def write_neighbours(directory: Path, index: IdIndex, count: int) -> None:
    """Write which items share a text, and the nearest texts, beside all shards."""
    shards = ShardedMatrix.open(shards_of(directory, directory.iterdir()))
    ReducedContent.build(index, shards, count).write(directory)


@dataclass(frozen=True, kw_only=True)
class ReducedContent:
    """The ranker's content of a catalogue.

    Attributes:
        index: of the N item ids.
        vectors: float16 [N, R] of unit length, memory-mapped if it was opened.
        texts: int32 [N], equal for items of equal content.
        neighbours: int32 [T, k], the nearest other texts of each, the nearest first.
        similarities: float16 [T, k], their cosines.
        directory: of the files; None in memory.
        files: of the artefact.
    """

    index: IdIndex
    vectors: ShardedMatrix | Float16Array
    texts: Int32Array
    neighbours: Int32Array
    similarities: Float16Array
    directory: Path | None = None
    files: tuple[Path, ...] = ()

    @classmethod
    def build(
        cls,
        index: IdIndex,
        vectors: ShardedMatrix | Float16Array,
        neighbours: int,
    ) -> Self:
        """Group equal vectors [N, R] and find the nearest groups of each."""
        whole = np.ascontiguousarray(vectors[np.arange(len(vectors))])
        keys = whole.view(np.dtype((np.void, whole.itemsize * whole.shape[1])))
        _, first, texts = np.unique(
            keys.ravel(), return_index=True, return_inverse=True
        )
        k = min(neighbours, len(first) - 1)
        found, near = _nearest(whole[first], k)
        return cls(
            index=index,
            vectors=vectors,
            texts=texts.astype(np.int32),
            neighbours=found,
            similarities=near,
        )

    def write(self, directory: Path) -> None:
        """Write all but the vectors into a folder."""
        for name in (_TEXTS, _NEIGHBOURS, _SIMILARITIES):
            np.save(directory / f"{name}.npy", getattr(self, name))

    @classmethod
    def open(
        cls, directory: Path, index: IdIndex, files: Collection[Path] | None = None
    ) -> Self:
        """Map a folder of `write` and the vectors' shards.

        `files` are those that an artefact's manifest lists; None for all.

        Raises:
            OSError: a file is missing; ValueError: damaged.
        """
        files = [*directory.iterdir()] if files is None else files
        return cls(
            index=index,
            vectors=ShardedMatrix.open(shards_of(directory, files)),
            directory=directory,
            files=tuple(files),
            **{
                name: map_array(directory / f"{name}.npy", kind, dims)
                for name, kind, dims in (
                    (_TEXTS, np.int32, 1),
                    (_NEIGHBOURS, np.int32, 2),
                    (_SIMILARITIES, np.float16, 2),
                )
            },
        )

    def unit_vectors(self, rows: Int64Array) -> Float16Array:
        """Return the vectors of rows [n], float16 [n, R]; zeros where -1.

        Raises:
            UserError: a vector is not finite.
        """
        return VectorTable(index=self.index, vectors=self.vectors).gather(rows)

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        if self.directory is not None:  # another process maps the same files
            return type(self).open, (self.directory, self.index, self.files)
        return super().__reduce_ex__(protocol)


def _nearest(vectors: Float16Array, k: int) -> tuple[Int32Array, Float16Array]:
    """Return the k nearest other rows of each row [T, k], and their cosines."""
    if k <= 0:
        empty = np.empty((len(vectors), 0))
        return empty.astype(np.int32), empty.astype(np.float16)
    table = torch.from_numpy(vectors).float()
    if len(table) > _MOST_EXACT:
        scores, items = approximate_top_items(table, table, k + 1).top
    else:
        scores, items = top_items(table, table, k + 1)
    own = items == np.arange(len(items))[:, None]
    own[~own.any(axis=1), -1] = True  # beyond equals that rounding put before it
    return (
        items[~own].reshape(-1, k).astype(np.int32),
        scores[~own].reshape(-1, k).astype(np.float16),
    )
