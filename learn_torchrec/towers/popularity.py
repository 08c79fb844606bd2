"""How much an item's popularity adds to its similarity.

N is the number of items.
"""

import math

import torch
from torch import Tensor, nn


class Popularity(nn.Module):
    """Add `weight` x log(1 + n), above its mean over the items with events.

    n are an item's training events; an item without any may be new and adds 0, as the
    mean item does. Training does not see it: there logit adjustment leaves popularity
    out of the vectors. Validation chooses the weight, see `validate_towers`, from 0,
    with which it starts.

    Args:
        event_counts: int64 [N], training events of each item.
    """

    log_count: Tensor
    weight: Tensor

    def __init__(self, event_counts: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_count", event_counts.double().log1p().float())
        self.register_buffer("weight", torch.zeros(()))

    def forward(self) -> Tensor:
        """Return what each item's similarity rises by, float32 [N]."""
        return self.weight * self.above_mean()

    def above_mean(self) -> Tensor:
        """Return that at a weight of 1, float32 [N]."""
        is_known = self.log_count > 0
        mean = self.log_count.sum() / is_known.sum().clamp(min=1)
        return (self.log_count - mean) * is_known

    def rare(self, most: int) -> Tensor:
        """Return which items have at most so many events, bool [N]."""
        return self.log_count < math.log1p(most + 0.5)
