"""Histories: a data set's sequences as rows of a content store."""

from dataclasses import dataclass

from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitConfig, SplitTimes, resolve_times


@dataclass(frozen=True, kw_only=True)
class Histories:
    """All users' events of the wanted actions, and the split's moments."""

    sequences: SequenceSet
    times: SplitTimes


def load_histories(
    dataset: Dataset, store: ContentStore, split: SplitConfig
) -> Histories:
    """Read the interactions and sort them into sequences.

    Raises:
        UserError: bad interactions, most events without a content vector, or a split
            outside the log.
    """
    times = resolve_times(split, dataset.times)
    return Histories(sequences=dataset.sequences(store, split.actions), times=times)
