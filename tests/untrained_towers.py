"""What towers are built from, without a log."""

import torch
from torch import Tensor

from learn_torchrec.content.store import ContentStore
from learn_torchrec.towers.statistics import TowerStatistics


def statistics_of(
    store: ContentStore, event_counts: Tensor | None = None
) -> TowerStatistics:
    """Return the statistics of a store; every item has one event by default."""
    mean, std = (torch.from_numpy(each).float() for each in (store.mean, store.std))
    if event_counts is None:
        event_counts = torch.ones(len(store), dtype=torch.int64)
    return TowerStatistics(mean, std, event_counts)
