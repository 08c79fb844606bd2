"""Raw content vectors in the place of LEARN's: shows what the towers add."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.artifact import read_manifest
from learn_torchrec.content.store import KIND, ContentStore
from learn_torchrec.ranker.vectors import LearnVectors, VectorTable
from learn_torchrec.schema import ACTION, ITEM_ID, TIMESTAMP, USER_ID


def content_vectors(
    store: ContentStore, interactions: pa.Table, actions: tuple[str, ...]
) -> LearnVectors:
    """Return items' content, and users as the mean of what they acted on so far.

    The paper's "w/o Align" (v2; Baseline-v1 of v1). Nothing is learned, so no cut-off
    applies; a user is seen as of strictly before an impression all the same.

    Args:
        store: content of every item.
        interactions: the log.
        actions: that make a history.

    Returns:
        Vectors of C dims, one for a user after each of its events.
    """
    events = interactions.filter(
        pc.is_in(interactions[ACTION], value_set=pa.array(actions))
    ).sort_by([(USER_ID, "ascending"), (TIMESTAMP, "ascending")])
    users = events[USER_ID].combine_chunks()
    rows = pc.index_in(events[ITEM_ID].combine_chunks(), store.item_ids).to_numpy()
    codes = users.dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    sizes = np.diff(np.r_[starts, len(codes)])
    means = np.asarray(store.vectors[rows], np.float32)
    for start, size in zip(starts, sizes, strict=True):
        mine = means[start : start + size]
        counts = np.arange(1, size + 1, dtype=np.float32)[:, None]
        mine[:] = mine.cumsum(axis=0, dtype=np.float64) / counts
    return LearnVectors(
        users=VectorTable(ids=users, times=events[TIMESTAMP].to_numpy(), vectors=means),
        items=VectorTable(
            ids=store.item_ids,
            times=None,
            vectors=np.asarray(store.vectors, np.float32),
        ),
        manifest=read_manifest(store.directory, KIND),
    )
