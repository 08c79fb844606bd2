"""The candidate meets the history: statistics of their similarities.

A user's mean vector has lost what the candidate needs to know: whether *something* in
the history is like it, how often and how long ago. Nothing is learned here, so new
items and users get the same statistics as others.

Letters: B rows, L the longest history, V history items, S spaces.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learn_torchrec.ranker.learn.batch import Meeting
from learn_torchrec.ranker.learn.config import StatisticsConfig

_LEAST = -2.0  # below every cosine


class TargetStatistics(nn.Module):
    """Statistics of a candidate's cosines with the items of its user's history.

    For each space, over the whole history and without the candidate itself: the highest
    cosine, the mean of the highest few, sums of kernels over the events, with and
    without recency, and numbers of events above thresholds (logarithms of 1 + sum), and
    the age of the most similar item (log of 1 + days). Zeros for an empty history.
    Beside them: log of 1 + the events of the history, and of those with the candidate.

    Args:
        config: see `StatisticsConfig`.

    Attributes:
        out_features: width of the output.
    """

    def __init__(self, config: StatisticsConfig) -> None:
        super().__init__()
        self.config = config
        each = 3 + 2 * len(config.temperatures) + len(config.thresholds)
        self.out_features = 2 * each * len(config.spaces) + 2

    def forward(self, history: Meeting) -> Tensor:
        """Return the statistics, float32 [B, out_features]."""
        items = history.padded(history.items, -1)  # [B, L]
        counts = history.padded(history.counts, 0.0)
        ages = history.padded(history.ages, 0.0)
        is_self = items == history.candidates.unsqueeze(1)
        # Events of each item: all, and without the candidate's own.
        events = torch.stack([counts, torch.where(is_self, 0.0, counts)])
        recency = torch.exp(ages / -self.config.recency_days)
        number, others = events.sum(2)
        parts = [number.log1p(), (number - others).log1p()]
        for space in self.config.spaces:
            cosines = history.cosines(space, _LEAST)
            sums = [
                (events * weights).sum(2).log1p()
                for weights in self._weights(cosines, recency)
            ]
            for place, nearest in enumerate(self._nearest(cosines, is_self, ages)):
                parts += [*nearest, *(each[place] for each in sums)]
        return torch.stack(parts, dim=1)

    def _weights(self, cosines: Tensor, recency: Tensor) -> Iterator[Tensor]:
        """Yield the events' weights [B, L] in each sum of one space."""
        for temperature in self.config.temperatures:
            kernel = torch.exp((cosines - 1) / temperature)
            yield kernel
            yield kernel * recency
        for threshold in self.config.thresholds:
            yield cosines.clone().gt_(threshold)  # in place: numbers, not booleans

    def _nearest(
        self, cosines: Tensor, is_self: Tensor, ages: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return statistics [B] of the most similar items: of all, and of others."""
        # The candidate is there at most once, so one more has the others' top, too.
        top, longest = self.config.top, cosines.shape[1]
        found = cosines.topk(min(top + 1, longest), dim=1)
        is_own = is_self.gather(1, found.indices)
        rest = torch.where(is_own, _LEAST, found.values)
        rest = rest.topk(min(top, longest), dim=1).values
        others = torch.where(is_self, _LEAST, cosines)
        return (
            _of_the_top(found.values[:, :top], cosines, ages),
            _of_the_top(rest, others, ages),
        )


def _of_the_top(top: Tensor, cosines: Tensor, ages: Tensor) -> list[Tensor]:
    """Return the best, the mean and the age of the best of the `top` cosines."""
    present = top > _LEAST
    mean = (top * present).sum(1) / present.sum(1).clamp(min=1)
    best, is_there = top[:, 0], present[:, 0]
    # Twins are equally similar: the latest counts.
    age = torch.where(cosines < best.unsqueeze(1), math.inf, ages).amin(1)
    age = torch.where(is_there, age, 0.0)
    return [best * is_there, mean, torch.log1p(age)]


def mean_of_history(history: Meeting) -> Tensor:
    """Return the mean content of each history over its events, unit length, [B, R]."""
    offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(history.lengths)
    means = F.embedding_bag(
        history.items,
        history.vectors["content"].float(),
        offsets[:-1],
        mode="sum",
        per_sample_weights=history.counts,
    )
    return F.normalize(means, dim=1).half()
