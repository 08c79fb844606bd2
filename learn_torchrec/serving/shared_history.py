"""The history of a request, which all its candidates meet.

In training every row has a history of its own. Here one product of matrices compares
all candidates of a request with the history, with the same results.

Letters: N candidates, L history items, M distinct items, D vector dim.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learn_torchrec.arrays import Int64Array
from learn_torchrec.ids import UNKNOWN
from learn_torchrec.ranker.learn.batch import LearnBatch
from learn_torchrec.ranker.learn.histories import JaggedHistory
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.statistics import TargetStatistics, mean_of_history

_DAY = 86_400.0


@dataclass
class SharedHistory:
    """Stands for a `HistoryBatch` of N equal histories.

    Attributes:
        candidates: int64 [N], rows of `vectors`.
        items: int64 [L], likewise.
        lengths: int64 [1], L.
        counts: float32 [L].
        ages: float32 [L], days.
        vectors: float16 [M, D] of unit length, by space.
    """

    candidates: Tensor
    items: Tensor
    lengths: Tensor
    counts: Tensor
    ages: Tensor
    vectors: dict[str, Tensor]

    @classmethod
    def of(
        cls, inputs: LearnInputs, candidates: Int64Array, met: JaggedHistory, time: int
    ) -> "SharedHistory":
        """Return the history of a request.

        Args:
            inputs: whose vectors meet.
            candidates: int64 [N], rows of the item vectors.
            met: one history.
            time: of the request, unix seconds.
        """
        distinct, places = np.unique(
            np.r_[UNKNOWN, candidates, met.items], return_inverse=True
        )
        rows = torch.from_numpy(places[1:].astype(np.int64))
        ages = (time - met.times) / _DAY
        return cls(
            candidates=rows[: len(candidates)],
            items=rows[len(candidates) :],
            lengths=torch.tensor([len(met.items)]),
            counts=torch.from_numpy(met.counts.astype(np.float32)),
            ages=torch.from_numpy(ages.astype(np.float32)),
            vectors={
                space: torch.from_numpy(inputs.unit_vectors(space, distinct))
                for space in inputs.spaces
            },
        )

    def padded(self, values: Tensor, padding: float) -> Tensor:
        """Return values [L] for each candidate, [N, max(1, L)]."""
        if not len(values):
            values = values.new_full((1,), padding)
        return values.expand(len(self.candidates), len(values))

    def cosines(self, space: str, padding: float) -> Tensor:
        """Return the cosines of candidates and history items, float32 [N, L]."""
        if not len(self.items):
            return self.padded(self.ages, padding)
        vectors = self.vectors[space]
        met = vectors.index_select(0, self.items)
        wanted = vectors.index_select(0, self.candidates)
        return (wanted @ met.T).float()


def statistics_of(inputs: LearnInputs) -> TargetStatistics | None:
    """Return what computes the statistics of some inputs; None if none are read."""
    fitting = inputs.config.that_fits(inputs.shape.spaces).statistics
    return TargetStatistics(fitting) if fitting.spaces else None


@torch.no_grad()
def meet(
    history: SharedHistory, statistics: TargetStatistics | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return statistics [N, F] and the mean content [N, R], those that are read."""
    found = None if statistics is None else statistics(history)
    means = None
    if "content" in history.vectors:
        means = mean_of_history(history).expand(len(history.candidates), -1)
    return found, means


@torch.no_grad()
def met(batch: LearnBatch, inputs: LearnInputs) -> LearnBatch:
    """Return a batch of rows in the form of requests: with statistics computed."""
    if batch.history is None:
        return batch
    statistics, means = statistics_of(inputs), None
    if "content" in batch.history.vectors:
        means = mean_of_history(batch.history)
    return dataclasses.replace(
        batch,
        statistics=None if statistics is None else statistics(batch.history),
        history_means=means,
        history=None if inputs.config.attention == "off" else batch.history,
    )
