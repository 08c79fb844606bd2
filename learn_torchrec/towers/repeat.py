"""Repeat consumption: how likely a user takes an item of the history again.

Vectors alone cannot tell: a user's vector is near the items of the history, whether
people buy again, as in a shop, or do not, as in a cinema. Three learned weights can.

Letters: B users, S history tokens of all users, N anchors of a user, E pairs of an
anchor and an item met up to it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class RepeatedItems(NamedTuple):
    """Items that anchors have met, and what that adds to their similarity.

    Attributes:
        anchor: int64 [E], number among the B x N anchors, ascending.
        item: int64 [E], in the numbering of the history that was given.
        score: float32 [E].
    """

    anchor: Tensor
    item: Tensor
    score: Tensor


class RepeatConsumption(nn.Module):
    """Score of an item by its place in the history: w0 + w1 log n + w2 log(1 + gap).

    n is how often the history up to the anchor has the item, gap how many events ago
    the last time was. Items that were not met score 0, as all do at the start.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(
        self, history: Tensor, lengths: Tensor, anchors: Tensor
    ) -> RepeatedItems:
        """Score what each anchor has met, the anchor's own event included.

        Args:
            history: int64 [S], items, user after user, oldest first.
            lengths: int64 [B].
            anchors: int64 [B, N], token indices into `history`, -1 in padding.
        """
        starts = lengths.cumsum(0) - lengths
        flat = anchors.flatten()
        number = (flat >= 0).nonzero().squeeze(1)
        token = flat[number]
        start = starts[number // anchors.shape[1]]
        # Every (anchor, token up to it), then the tokens of one item together.
        met = token - start + 1
        first = met.cumsum(0) - met
        within = torch.arange(int(met.sum()), device=flat.device)
        within = within - first.repeat_interleave(met)
        tokens = start.repeat_interleave(met) + within
        owner = torch.arange(len(met), device=flat.device).repeat_interleave(met)
        num_items = int(history.max()) + 1
        keys, order = (owner * num_items + history[tokens]).sort(stable=True)
        pairs, counts = keys.unique_consecutive(return_counts=True)
        last = order[counts.cumsum(0) - 1]  # stable: the latest token of the item
        owner, item = pairs // num_items, pairs % num_items
        gap = token[owner] - tokens[last]
        features = torch.stack(
            [torch.ones_like(gap).float(), counts.float().log(), gap.float().log1p()], 1
        )
        return RepeatedItems(number[owner], item, features @ self.weight)
