"""What towers take from the catalogue and the log before training.

Letters: N items, C content dim, D vector dim.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from learn_torchrec.content.reduction import Reduction
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.repeat import RepeatStatistics
from learn_torchrec.training.distributed import on_rank0


@dataclass(frozen=True)
class TowerStatistics:
    """Statistics that towers hold as constants.

    Attributes:
        mean: float32 [C], subtracted from the content vectors.
        std: float32 [C], divides them.
        event_counts: int64 [N], training events of each catalogue item.
        repeat: of the log; None where no score of repeats learns from them.
        components: float32 [C, D], principal components of the standardized content,
            on which vectors are a residual; None where they are not.
    """

    mean: Tensor
    std: Tensor
    event_counts: Tensor
    repeat: RepeatStatistics | None = None
    components: Tensor | None = None

    @classmethod
    def measure(
        cls, model: TowersModelConfig, store: ContentStore, log: SequenceSet
    ) -> Self:
        """Measure what a model needs; every rank takes part and gets the same.

        `log` has the events that may be counted.
        """
        mean, std = (torch.from_numpy(each).float() for each in (store.mean, store.std))
        repeat = components = None
        if model.repeat:
            repeat = RepeatStatistics.of(log, len(store))
        if model.residual:
            # Of one rank: another machine's linear algebra rounds in its own way.
            dim = model.encoder.vector_dim
            matrix = on_rank0(lambda: Reduction.fit(store, dim).matrix)
            components = torch.from_numpy(matrix) * std[:, None]
            components = F.pad(components, (0, dim - components.shape[1]))
        if not model.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        counts = torch.from_numpy(log.item_counts(len(store)))
        return cls(mean, std, counts, repeat, components)
