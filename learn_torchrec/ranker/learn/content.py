"""Content without towers: reduced for the ranker, or raw for the paper's form."""

import itertools

import numpy as np

from learn_torchrec.arrays import BoolArray, Float16Array
from learn_torchrec.artifact import read_manifest
from learn_torchrec.content.reduction import Reduction
from learn_torchrec.content.store import KIND, ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.ids import IdIndex
from learn_torchrec.matrix import blocks
from learn_torchrec.ranker.learn.reduced import ReducedContent
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.schema import USER_ID
from learn_torchrec.vector_table import VectorTable


def reduced_content(
    store: ContentStore, dim: int = 64, neighbours: int = 50
) -> ReducedContent:
    """Return the items' content as a ranker without towers reads it, in memory.

    Args:
        store: of the content.
        dim: R, of the reduced content.
        neighbours: nearest texts that are found for each text.
    """
    reduction = Reduction.fit(store, dim)
    parts = (store.vectors[part] for part in blocks(store.vectors.shape))
    whole = np.concatenate([reduction.apply(part) for part in parts])
    return ReducedContent.build(store.index, whole, neighbours)


def content_vectors(store: ContentStore, sequences: SequenceSet) -> LearnVectors:
    """Return the items' content, and users as the running mean of their history.

    The paper's "w/o Align" (v2; Baseline-v1 of v1). Nothing is learned, so no cut-off
    applies; a user vector still knows only events strictly before an impression.

    Args:
        store: of the items' content.
        sequences: the users' histories, as rows of the store.

    Returns:
        Vectors of C dims in half precision: items on disk, users in memory, one per
        user and timestamp.
    """
    sequences = sequences.packed()
    owners = np.repeat(np.arange(len(sequences)), sequences.lengths)
    keys = np.stack([owners, sequences.times])
    # Look-ups return only the last of simultaneous events, which includes them all.
    is_last = np.r_[(keys[:, 1:] != keys[:, :-1]).any(axis=0), True]
    return LearnVectors(
        users=VectorTable(
            index=IdIndex.build(sequences.user_ids, USER_ID),
            offsets=np.r_[0, np.cumsum(is_last)][sequences.offsets],
            times=sequences.times[is_last].astype(np.int64),
            vectors=_running_means(store, sequences, is_last),
        ),
        items=VectorTable(index=store.index, vectors=store.vectors),
        manifest=read_manifest(store.directory, KIND),
    )


def _running_means(
    store: ContentStore, sequences: SequenceSet, selected: BoolArray
) -> Float16Array:
    """Return the mean content of a user's events up to each selected one.

    `selected` is bool [events].

    Returns:
        float16 [selected events, C], accumulated in float64, one user at a time.
    """
    means = np.empty((np.count_nonzero(selected), store.dim), np.float16)
    done = 0
    for start, end in itertools.pairwise(sequences.offsets):
        rows = sequences.items[start:end].astype(np.int64)
        sums = store.gather(rows).cumsum(axis=0, dtype=np.float64)
        last = np.flatnonzero(selected[start:end])
        means[done : done + len(last)] = sums[last] / (last[:, None] + 1)
        done += len(last)
    return means
