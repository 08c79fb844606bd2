"""Write a small vectors artefact by hand."""

from pathlib import Path
from typing import Any

import numpy as np

from learn_torchrec.ids import IdIndex, as_ids
from learn_torchrec.matrix import create_shard
from learn_torchrec.publish import write_artifact
from learn_torchrec.ranker.learn.reduced import CONTENT, ReducedContent
from learn_torchrec.ranker.learn.vectors import KIND, LearnVectors
from learn_torchrec.vector_table import ITEMS, USERS, write_index


def write_side(
    directory: Path, ids: Any, vectors: Any, ranks: int = 1, **moments: Any
) -> None:
    """Write one side, its vectors divided among some ranks."""
    directory.mkdir(exist_ok=True)
    matrix = np.asarray(vectors, np.float16)
    for rank, part in enumerate(np.array_split(matrix, ranks)):
        shard = create_shard(directory, rank, part.shape)
        shard[:] = part
        shard.flush()
    write_index(directory, as_ids(ids, "ids"), **moments)


def write_vectors(
    directory: Path,
    users: tuple[Any, Any, Any, Any],
    items: tuple[Any, Any],
    cutoff: int = 100,
    ranks: int = 1,
    content: Any = None,
    config: dict[str, Any] | None = None,
) -> LearnVectors:
    """Write and open an artefact.

    Args:
        directory: where it appears.
        users: ids [K], offsets [K + 1], times [V] and vectors [V, D].
        items: ids and vectors.
        cutoff: of the towers.
        ranks: that write.
        content: unit vectors of the items; None for an artefact without.
        config: for the manifest.
    """
    ids, offsets, times, vectors = users
    with write_artifact(
        directory, kind=KIND, config=config or {}, inputs={}, cutoff=cutoff
    ) as out:
        moments = {"offsets": np.array(offsets), "times": np.array(times, np.int64)}
        write_side(out / USERS, ids, vectors, ranks, **moments)
        write_side(out / ITEMS, *items, ranks)
        if content is not None:
            unit = np.asarray(content, np.float16)
            write_side(out / CONTENT, items[0], unit)
            index = IdIndex.build(items[0], "items")
            ReducedContent.build(index, unit, 5).write(out / CONTENT)
    return LearnVectors.open(directory)
