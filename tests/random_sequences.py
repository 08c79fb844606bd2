"""Sequences for the tests of the towers."""

import numpy as np
import pyarrow as pa

from learn_torchrec.datasets.sequences import SequenceSet


def sequence_set(*, user_ids, offsets, items, times):
    """Return a set whose events are all likes."""
    return SequenceSet.of_offsets(
        user_ids=user_ids,
        offsets=offsets,
        items=items,
        times=times,
        actions=np.zeros(len(items), np.int16),
        action_names=("like",),
    )


def make_sequences(lengths, seed=0):
    """Return a user of each length: items 0 to 39 at random, an event every 10."""
    random = np.random.default_rng(seed)
    return sequence_set(
        user_ids=pa.array(range(len(lengths))),
        offsets=np.r_[0, np.cumsum(lengths)],
        items=random.integers(0, 40, sum(lengths)),
        times=np.concatenate([np.arange(length) * 10 for length in lengths]),
    )
