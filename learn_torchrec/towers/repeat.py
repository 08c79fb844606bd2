"""Repeat consumption: how likely a user is to take a history item again.

Vectors alone cannot tell: a user vector is close to the history's items whether people
buy them again, as in a shop, or do not, as in a cinema. Three learned weights can.

Letters: B users, S history tokens of all users, N anchors per user, E pairs of an
anchor and a distinct item of its history.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class RepeatedItems(NamedTuple):
    """The items in each anchor's history and the score each adds to its similarity.

    Attributes:
        anchor: int64 [E], index among the B x N anchors, ascending.
        item: int64 [E], in the numbering of the given history.
        score: float32 [E].
    """

    anchor: Tensor
    item: Tensor
    score: Tensor


class RepeatConsumption(nn.Module):
    """Score a history item by w0 + w1 log n + w2 log(1 + gap).

    n counts the item in the history up to the anchor; gap is the number of events since
    its last occurrence. Other items score 0. Weights start at zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(
        self, history: Tensor, lengths: Tensor, anchors: Tensor
    ) -> RepeatedItems:
        """Score the items in each anchor's history, its own event included.

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
        # Every pair of an anchor and a token up to it, sorted by anchor and item.
        count = token - start + 1
        first = count.cumsum(0) - count
        total = int(count.sum())
        owner = torch.arange(len(count), device=flat.device)
        owner = owner.repeat_interleave(count, output_size=total)
        within = torch.arange(total, device=flat.device) - first[owner]
        tokens = start[owner] + within
        num_items = history.max() + 1
        keys, order = (owner * num_items + history[tokens]).sort(stable=True)
        pairs, counts = keys.unique_consecutive(return_counts=True)
        last = order[counts.cumsum(0) - 1]  # stable: the latest token of the item
        owner, item = pairs // num_items, pairs % num_items
        gap = token[owner] - tokens[last]
        features = torch.stack(
            [torch.ones_like(gap).float(), counts.float().log(), gap.float().log1p()], 1
        )
        return RepeatedItems(number[owner], item, features @ self.weight)
