"""Histories: a data set's sequences as rows of a content store."""

from dataclasses import dataclass
from pathlib import Path

from learn_torchrec.arrays import Column, Int64Array
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.sequences import ItemRows, SequenceSet
from learn_torchrec.datasets.split import SplitConfig, SplitTimes, resolve_times
from learn_torchrec.ids import IdIndex, as_ids
from learn_torchrec.schema import ITEM_ID, ITEMS_FILE


@dataclass(frozen=True)
class Catalogue:
    """A data set's items in a content store's place, before there is one.

    Attributes:
        directory: the items' file, for messages.
        index: of the item ids.
    """

    directory: Path
    index: IdIndex

    @classmethod
    def of(cls, dataset: Dataset) -> "Catalogue":
        """Read and index a data set's items."""
        ids, name = dataset.items[ITEM_ID], dataset.name(ITEMS_FILE)
        return cls(Path(name), IdIndex.build(ids, name))

    def __len__(self) -> int:
        return len(self.index)

    def rows_of(self, ids: Column) -> Int64Array:
        """Return the row of every id, int64 [n]; -1 for unknown ids."""
        return self.index.rows_of(as_ids(ids, ITEM_ID, allow_null=True))


@dataclass(frozen=True, kw_only=True)
class Histories:
    """All users' events of the wanted actions, and the split's moments."""

    sequences: SequenceSet
    times: SplitTimes


def load_histories(dataset: Dataset, store: ItemRows, split: SplitConfig) -> Histories:
    """Read the interactions and sort them into sequences.

    Raises:
        UserError: bad interactions, most events without a content vector, or a split
            outside the log.
    """
    times = resolve_times(split, dataset.moments)
    return Histories(sequences=dataset.sequences(store, split.actions), times=times)
