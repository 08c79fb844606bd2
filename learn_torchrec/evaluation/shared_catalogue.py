"""Exact ranks in a catalogue whose items the ranks share: no rank holds all scores.

Each rank scores blocks of users against blocks of its own items; how many items score
higher than a target is added up over ranks.

Letters: U users, I items of all ranks, n of this rank, D vector dim, P (user, target)
pairs, B users and W items of a block.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from learn_torchrec.arrays import Float64Array, Int64Array
from learn_torchrec.evaluation.retrieval import distinct_pairs, refuse_non_finite
from learn_torchrec.jagged import Jagged

_ITEMS_IN_BLOCK = 1 << 16
_SCORES_IN_BLOCK = 1 << 24  # 64 MiB


class Added(NamedTuple):
    """Scores that are added to those of some items, such as of repeated ones.

    Attributes:
        user: int64 [E], ascending.
        item: int64 [E], rows of the catalogue.
        score: float32 [E].
    """

    user: Tensor
    item: Tensor
    score: Tensor


class ItemShare(NamedTuple):
    """This rank's items.

    Attributes:
        vectors: float32 [n, D], on the device that computes.
        first: row of the first in the catalogue.
    """

    vectors: Tensor
    first: int


def shared_target_ranks(
    users: Tensor,
    share: ItemShare,
    num_items: int,
    targets: Jagged,
    history: Jagged | None = None,
    added: Added | None = None,
    total: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> Float64Array:
    """Return the ranks of all targets, as `target_ranks` does of dot products.

    Every rank takes part and gets the same ranks.

    Args:
        users: float32 [U, D], the same on every rank, on the device of the share.
        share: of the items; ranks have consecutive ranges.
        num_items: I.
        targets: catalogue rows of each user's targets, -1 outside the catalogue.
        history: catalogue rows to exclude from each user's ranking, or None.
        added: to the dot products; the same on every rank.
        total: adds a tensor up over the ranks.

    Raises:
        UserError: vectors that are not finite.
    """
    refuse_non_finite(users, "user vectors")
    refuse_non_finite(share.vectors, "item vectors", share.first)
    owners, items = (
        torch.from_numpy(part) for part in distinct_pairs(targets, num_items)
    )
    if not len(owners):
        return np.empty(0)
    removed = None
    if history is not None:
        removed = distinct_pairs(history, num_items)
    width = max(1, min(_ITEMS_IN_BLOCK, len(share.vectors)))
    height = max(1, min(_SCORES_IN_BLOCK // width, len(users)))
    blocks = [
        _UserBlock(users, start, height, owners, items, removed, added)
        for start in range(0, len(users), height)
    ]
    own = total(torch.cat([block.own_scores(share, width) for block in blocks]))
    parts = own.split([len(block.items) for block in blocks])
    counts = [
        block.counts(share, width, part)
        for block, part in zip(blocks, parts, strict=True)
    ]
    higher, equal = total(torch.cat(counts, dim=1))
    ranks: Float64Array = (1 + higher + equal.double() / 2).numpy()
    return np.where(own.numpy() == -math.inf, math.inf, ranks)


class _UserBlock:
    """Up to B users, their pairs, and what changes their scores."""

    def __init__(
        self,
        users: Tensor,
        start: int,
        height: int,
        owners: Tensor,
        items: Tensor,
        removed: tuple[Int64Array, Int64Array] | None,
        added: Added | None,
    ) -> None:
        stop = min(start + height, len(users))
        # Products of one shape add up in one order: equal vectors have equal scores.
        self.vectors = _padded(users[start:stop], height)
        self.device = users.device
        self.owners, self.items = _of_users(owners, (owners, items), start, stop)
        self.owners = self.owners - start
        self.removed = self.added = None
        if removed is not None:
            gone = tuple(torch.from_numpy(part) for part in removed)
            user, item = _of_users(gone[0], gone, start, stop)
            self.removed = user - start, item
        if added is not None:
            user, item, score = _of_users(added.user.cpu(), added, start, stop)
            self.added = user - start, item, score

    def own_scores(self, share: ItemShare, width: int) -> Tensor:
        """Return the scores of the targets in the share, float32 [p]; 0 for others."""
        own = torch.zeros(len(self.items))
        rows = self.items - share.first
        mine = ((rows >= 0) & (rows < len(share.vectors))).nonzero().squeeze(1)
        for part in mine.split(width):
            chosen = share.vectors[rows[part].to(self.device)]
            scores = self._products(chosen, width)
            columns = torch.arange(len(part), device=self.device)
            found = scores[self.owners[part].to(self.device), columns]
            own[part] = found.cpu()
        # Each change is made by the rank that has the item.
        for change in (self.added, self.removed):
            if change is not None:
                user, item, *score = (values.cpu() for values in change)
                pair, index = _matches(self, user, item, mine)
                own[pair] += score[0][index] if score else -math.inf
        return own

    def counts(self, share: ItemShare, width: int, own: Tensor) -> Tensor:
        """Count the share's other items that score higher than, and equal to, targets.

        `own` are the targets' scores, float32 [p].

        Returns:
            int64 [2, p].
        """
        counts = torch.zeros(2, len(self.items), dtype=torch.int64)
        if not len(self.items):
            return counts
        for first, scores in self._scores(share, width):
            counts += _count(scores, self.owners, own)
            column = self.items - first
            mine = ((column >= 0) & (column < scores.shape[1])).nonzero().squeeze(1)
            place = self.owners[mine], column[mine]
            itself = scores[tuple(one.to(self.device) for one in place)].cpu()
            counts[0, mine] -= (itself > own[mine]).long()
            counts[1, mine] -= (itself == own[mine]).long()
        return counts

    def _scores(self, share: ItemShare, width: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the catalogue row of a block's first item, and scores [B, <= W]."""
        for start in range(0, len(share.vectors), width):
            part = share.vectors[start : start + width]
            scores = self._products(part, width)[:, : len(part)]
            first = share.first + start
            for change in (self.added, self.removed):
                if change is None:
                    continue
                user, item, *score = (one.to(self.device) for one in change)
                inside = (item >= first) & (item < first + len(part))
                place = user[inside], item[inside] - first
                if score:
                    scores = scores.index_put(place, score[0][inside], accumulate=True)
                else:
                    scores[place] = -math.inf
            yield first, scores

    def _products(self, items: Tensor, width: int) -> Tensor:
        """Return the dot products of the users with up to W items, [B, W]."""
        return self.vectors @ _padded(items, width).T


def _count(scores: Tensor, owners: Tensor, own: Tensor) -> Tensor:
    """Count the scores of each pair's user that are higher, and equal: int64 [2, p].

    On a CPU, NumPy counts true values tens of times faster than PyTorch sums booleans.
    """
    if scores.device.type == "cpu":
        matrix, counts = scores.numpy(), np.empty((2, len(own)), np.int64)
        pairs = zip(owners.numpy(), own.numpy(), strict=True)
        for pair, (user, score) in enumerate(pairs):
            counts[0, pair] = np.count_nonzero(matrix[user] > score)
            counts[1, pair] = np.count_nonzero(matrix[user] == score)
        return torch.from_numpy(counts)
    step = max(1, _SCORES_IN_BLOCK // scores.shape[1])
    parts = []
    for users, score in zip(owners.split(step), own.split(step), strict=True):
        rows = scores[users.to(scores.device)]
        score = score.to(scores.device)[:, None]
        parts.append(torch.stack([(rows > score).sum(1), (rows == score).sum(1)]))
    return torch.cat(parts, dim=1).cpu()


def _matches(
    block: _UserBlock, user: Tensor, item: Tensor, mine: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the pairs among `mine` that are (user, item) pairs of a change.

    Returns:
        int64 [hits] each: index of the pair, and of the change.
    """
    if not len(item) or not len(mine):
        return mine[:0], mine[:0]
    base = int(torch.cat([item, block.items]).max()) + 1
    keys, order = (user * base + item).sort()
    wanted = block.owners[mine] * base + block.items[mine]
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    hit = keys[place] == wanted
    return mine[hit], order[place[hit]]


def _of_users(
    owners: Tensor, columns: tuple[Tensor, ...], start: int, stop: int
) -> list[Tensor]:
    """Return the entries of users start to stop; `owners` ascend."""
    first, end = torch.searchsorted(owners, torch.tensor([start, stop]))
    return [column[first:end] for column in columns]


def _padded(rows: Tensor, count: int) -> Tensor:
    """Return rows [n, D] with zeros up to `count` rows."""
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))
