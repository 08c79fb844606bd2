"""The candidate meets the history: statistics of their similarities.

A user's mean vector has lost what the candidate needs to know: whether *something* in
the history is like it, how often and how long ago. Nothing is learned here, so new
items and users get the same statistics as others.

Letters: B rows, L the longest history, V history items, S spaces.
"""

import math

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
        items = history.padded(history.items, 0)  # [B, L]
        counts = history.padded(history.counts, 0.0)
        ages = history.padded(history.ages, 0.0)
        is_item = counts > 0
        is_self = is_item & (items == history.candidates.unsqueeze(1))
        # Events of each item: all, and without the candidate's own.
        events = torch.stack([counts, counts * ~is_self], dim=1)  # [B, 2, L]
        recency = torch.exp(-ages / self.config.recency_days)
        parts = [counts.sum(1).log1p(), (counts * is_self).sum(1).log1p()]
        for space in self.config.spaces:
            cosines = history.cosines(space, items)
            sums = torch.bmm(events, self._weights(cosines, recency)).log1p()
            for place, seen in enumerate((is_item, is_item & ~is_self)):
                parts += self._nearest(cosines, seen, ages)
                parts += sums[:, place].unbind(1)
        return torch.stack(parts, dim=1)

    def _weights(self, cosines: Tensor, recency: Tensor) -> Tensor:
        """Return the events' weights in the sums of one space, [B, L, sums]."""
        weights = []
        for temperature in self.config.temperatures:
            kernel = torch.exp((cosines - 1) / temperature)
            weights += [kernel, kernel * recency]
        weights += [(cosines > t).float() for t in self.config.thresholds]
        if not weights:
            return cosines.new_zeros(*cosines.shape, 0)
        return torch.stack(weights, dim=2)

    def _nearest(self, cosines: Tensor, seen: Tensor, ages: Tensor) -> list[Tensor]:
        """Return statistics [B] of the most similar items among those `seen`."""
        any_seen = seen.any(1)
        cosines = cosines.masked_fill(~seen, _LEAST)
        top = cosines.topk(min(self.config.top, cosines.shape[1]), dim=1)
        present = top.values > _LEAST
        mean = (top.values * present).sum(1) / present.sum(1).clamp(min=1)
        best = top.values[:, 0]
        # Twins are equally similar: the latest counts.
        age = ages.masked_fill(cosines < best.unsqueeze(1), math.inf).amin(1)
        age = age.masked_fill(~any_seen, 0.0)
        return [best * any_seen, mean, torch.log1p(age)]


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
