"""Repeat consumption: how likely a user is to take a history item again.

Vectors alone cannot tell: a user vector is close to the history's items whether people
buy them again, as in a shop, or do not, as in a cinema. A few learned weights can.

Letters: N items, B users, P past tokens of all users, M anchors per user, E pairs of an
anchor and a distinct item of its past.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from learn_torchrec.datasets.sequences import SequenceSet

_DAY = 86_400
_MOST_EVENTS = 20_000_000  # that are counted; of more, those of some users
_PRIOR_EVENTS = 10.0  # with which an item's share of repeats is smoothed


class RepeatedItems(NamedTuple):
    """The items in each anchor's past and the score each adds to its similarity.

    Attributes:
        anchor: int64 [E], index among the B x M anchors, ascending.
        item: int64 [E], catalogue rows.
        score: float32 [E].
    """

    anchor: Tensor
    item: Tensor
    score: Tensor


class RepeatConsumption(nn.Module):
    """Score an item of the past by w . (1, log n, log(1 + gap), log(1 + days), r).

    n counts the item among the user's latest events up to the anchor, gap is the number
    of events and days the time since its last occurrence; r tells how often people
    take the item again, see `RepeatStatistics`. Other items score 0. Weights start at
    zero, or at what the log's counts tell: see `start`.

    What makes the next event likely does not find most of all later ones: outside
    training the score is multiplied by `scale`, which validation chooses, see
    `validate_towers`.

    Args:
        log_odds: float32 [N], r of every item.
        length: latest events that are read.
    """

    log_odds: Tensor
    scale: Tensor

    def __init__(self, log_odds: Tensor, length: int) -> None:
        super().__init__()
        self.length = length
        self.weight = nn.Parameter(torch.zeros(5))
        self.register_buffer("log_odds", log_odds)
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def start(self, prior: float, temperature: float) -> None:
        """Start with items of the past above others, by how often they were taken.

        As likely as the log's `prior` says, and in proportion to their number of
        events: a small log's few steps do not get there from zero.
        """
        self.weight[:2] = temperature * torch.tensor([prior, 1.0])

    def forward(
        self,
        items: Tensor,
        times: Tensor,
        lengths: Tensor,
        anchors: Tensor,
    ) -> RepeatedItems:
        """Score the items in each anchor's past, its own event included.

        Args:
            items: int64 [P], catalogue rows, user after user, oldest first.
            times: int64 [P], unix seconds.
            lengths: int64 [B].
            anchors: int64 [B, M], token indices into `items`, -1 in padding.
        """
        starts = lengths.cumsum(0) - lengths
        flat = anchors.flatten()
        number = (flat >= 0).nonzero().squeeze(1)
        token = flat[number]
        start = starts[number // anchors.shape[1]]
        # Every pair of an anchor and a token up to it, sorted by anchor and item.
        count = (token - start + 1).clamp(max=self.length)
        first = count.cumsum(0) - count
        total = int(count.sum())
        owner = torch.arange(len(count), device=flat.device)
        owner = owner.repeat_interleave(count, output_size=total)
        within = torch.arange(total, device=flat.device) - first[owner]
        tokens = (token + 1 - count)[owner] + within
        num_items = len(self.log_odds)
        keys, order = (owner * num_items + items[tokens]).sort(stable=True)
        pairs, counts = keys.unique_consecutive(return_counts=True)
        last = tokens[order[counts.cumsum(0) - 1]]  # stable: the item's latest token
        owner, item = pairs // num_items, pairs % num_items
        anchor = token[owner]
        days = (times[anchor] - times[last]).float() / _DAY
        features = [
            torch.ones_like(days),
            counts.float().log(),
            (anchor - last).float().log1p(),
            days.clamp(min=0).log1p(),
            self.log_odds[item],
        ]
        score = torch.stack(features, 1) @ self.weight
        if not self.training:
            score = score * self.scale
        return RepeatedItems(number[owner], item, score)


class RepeatStatistics(NamedTuple):
    """How often people take items again.

    Attributes:
        log_odds: float32 [N], that an event of the item repeats an earlier one of its
            user, above those of all items together; 0 for an item without events.
        prior: log odds that the next event takes one given item of the past, above
            those of one given other item.
    """

    log_odds: Tensor
    prior: float

    @classmethod
    def of(cls, sequences: SequenceSet, num_items: int) -> "RepeatStatistics":
        """Count a log's repeats; those of an item are smoothed."""
        step = -(-sequences.num_events // _MOST_EVENTS)
        if step > 1:
            sequences = sequences.select_users(np.arange(len(sequences)) % step == 0)
        sequences = sequences.packed()
        owners = np.repeat(np.arange(len(sequences)), sequences.lengths)
        pairs = np.unique(owners * np.int64(num_items) + sequences.items)
        events = np.bincount(sequences.items, minlength=num_items)
        takers = np.bincount(pairs % num_items, minlength=num_items)
        # A prior also for the whole: a log without a repeat has odds as well.
        share = (events.sum() - takers.sum() + 1) / (events.sum() + 2)
        repeats = (events - takers + _PRIOR_EVENTS * share) / (events + _PRIOR_EVENTS)
        odds = np.log(repeats / (1 - repeats)) - np.log(share / (1 - share))
        # Half of a user's items lie in the past on average.
        past = max(1.0, len(pairs) / max(1, len(sequences)) / 2)
        others = max(1.0, num_items - past)
        prior = np.log(share / past) - np.log((1 - share) / others)
        return cls(torch.from_numpy(odds.astype(np.float32)), float(prior))
