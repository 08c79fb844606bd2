"""Dense all-action InfoNCE over the global batch (paper: section 3.3).

For anchor j and positive k of user i, with s the cosine over the temperature,

    loss_ijk = -log( e^{s_ijk} / (e^{s_ijk} + sum over other users' positives e^s) )
             = softplus( logsumexp over other users' positives  -  s_ijk )

so one log-sum-exp for each anchor serves all its positives. The user's own other
positives are in neither place, and another user's positive is left out where its
item is one of this user's targets (an accidental hit).

Dimension letters: B users of this rank, G of all ranks together, N_h anchors and
N_t positives of a user, D vector dim.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_tensor_autograd
from torch.utils.checkpoint import checkpoint

from learn_torchrec.config import configuration, require
from learn_torchrec.towers.repeat import Seen

LEAST_TEMPERATURE = 0.01  # a learned one is kept from collapsing below
_USERS_IN_CHUNK = 64
_ANCHORS_IN_CHUNK = 4096
_LOGITS_IN_CHUNK = 1 << 26  # 256 MiB: fewer anchors where the candidates are many


@configuration
class LossConfig:
    """Settings of the contrastive loss.

    Attributes:
        objective: `dense_all_action` (the paper's: every anchor against each sampled
            target), or `next_item` (the authors' fine-tuning on short sequences:
            every event against the one after it, all of the catalogue as candidates).
        candidates: of `next_item`, how many items drawn from the catalogue stand for
            it in a step; 0 for all of them.
        logit_adjustment: of `next_item`, how much of an item's log share of the
            training events is added to its logit in training and left out afterwards:
            what popularity explains is not learned again by the vectors, so that rare
            items rank higher. Not in the paper; 0 is off, 1 takes popularity out.
        temperature: divides the cosine; the authors' public code uses 1/20.
        learn_temperature: start from it and learn it, as CLIP does; it stays at 0.01
            or above.
        sampling_correction: subtract log q of an item, its share of the training
            events, from its logit, so that frequent items are not pushed down for
            being drawn often as negatives. Not in the paper; off is the paper.
    """

    objective: Literal["dense_all_action", "next_item"] = "dense_all_action"
    candidates: NonNegativeInt = 0
    logit_adjustment: NonNegativeFloat = 0.0
    temperature: PositiveFloat = 0.05
    learn_temperature: bool = False
    sampling_correction: bool = False

    def __post_init__(self) -> None:
        require(
            not self.learn_temperature or self.temperature >= LEAST_TEMPERATURE,
            f"temperature: at least {LEAST_TEMPERATURE} where it is learned; raise it "
            "or set towers.loss.learn_temperature=false",
        )
        require(
            self.objective == "dense_all_action" or not self.sampling_correction,
            "sampling_correction: next_item draws its candidates evenly "
            "and has nothing to correct; set it to false",
        )

    @property
    def needs_log_q(self) -> bool:
        """Whether it reads the items' shares of the training events."""
        return self.sampling_correction or self.logit_adjustment > 0


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The positives of all ranks: what every anchor is compared with.

    Attributes:
        vectors: float [G * N_t, D].
        items: int64 [G * N_t], item ids; -1 in padding.
        offsets: float [G * N_t], added to the logits (-log q, or zeros).
        first_user: this rank's first user among the G.
    """

    vectors: Tensor
    items: Tensor
    offsets: Tensor
    first_user: int


def gather_candidates(vectors: Tensor, items: Tensor, offsets: Tensor) -> Candidates:
    """Bring the positives of all ranks together; gradients flow back to their ranks.

    Args:
        vectors: float [B, N_t, D]; B is the same on every rank.
        items: int64 [B, N_t], -1 in padding.
        offsets: float [B, N_t].
    """
    flat = vectors.flatten(0, 1)
    first_user = 0
    if _world_size() > 1:
        first_user = dist.get_rank() * vectors.shape[0]
        group = dist.distributed_c10d._get_default_group()
        flat = all_gather_tensor_autograd(flat.contiguous(), 0, group)
        items, offsets = _all_gather(items), _all_gather(offsets)
    return Candidates(
        vectors=flat,
        items=items.flatten(),
        offsets=offsets.flatten(),
        first_user=first_user,
    )


def dense_all_action_loss(
    anchors: Tensor,
    positives: Tensor,
    anchor_mask: Tensor,
    items: Tensor,
    *,
    temperature: float | Tensor,
    offsets: Tensor | None = None,
    targets: tuple[Tensor, Tensor] | None = None,
    seen: Seen | None = None,
) -> Tensor:
    """Return this rank's share of the global loss; the mean over ranks is the loss.

    Memory does not grow with anchors x candidates: chunks of users are computed
    one after the other and computed again in the backward pass.

    Args:
        anchors: float [B, N_h, D], unit user vectors.
        positives: float [B, N_t, D], unit item vectors.
        anchor_mask: bool [B, N_h], false in padding.
        items: int64 [B, N_t], item ids of the positives, -1 in padding.
        temperature: divides the cosines.
        offsets: float [B, N_t], added to the logits, for sampling correction.
        targets: user number of this rank and item id, int64 [R] each, of all
            targets, sampled or not; another user's positive that is one of them is
            no negative. The positives alone when None.
        seen: added to the similarity of items that an anchor has met; item ids.

    Returns:
        Scalar: W times this rank's sum over valid pairs, divided by the valid pairs
        of all W ranks. Averaging it and its gradients over ranks, as data-parallel
        training does, gives the mean over the global batch.
    """
    if offsets is None:
        offsets = torch.zeros_like(items, dtype=anchors.dtype)
    candidates = gather_candidates(positives, items, offsets)
    if targets is None:
        user, position = torch.nonzero(items >= 0, as_tuple=True)
        targets = user, items[user, position]
    hits = _accidental_hits(*targets, candidates)
    extra = _scattered(seen, candidates.items, temperature)
    pairs = (anchor_mask.sum(1) * (items >= 0).sum(1)).sum()
    total = anchors.new_zeros(())
    for start in range(0, anchors.shape[0], _USERS_IN_CHUNK):
        users = slice(start, start + _USERS_IN_CHUNK)
        total = total + checkpoint(
            _chunk_loss,
            anchors[users] / temperature,
            anchor_mask[users, :, None] & (items[users, None, :] >= 0),
            start,
            candidates,
            hits,
            extra,
            use_reentrant=False,
        )
    return total * _world_size() / _over_ranks(pairs)


def next_item_loss(
    anchors: Tensor,
    vectors: Tensor,
    anchor_mask: Tensor,
    positives: Tensor,
    candidates: Tensor,
    *,
    temperature: float | Tensor,
    offsets: Tensor | None = None,
    seen: Seen | None = None,
) -> Tensor:
    """Return this rank's share of the global next-item loss; the mean is the loss.

    The cross-entropy of each anchor's own positive among the candidates. A candidate
    that is the positive counts once. Memory is bounded as above.

    Args:
        anchors: float [B, N, D], unit user vectors.
        vectors: float [U, D], unit vectors of the batch's distinct items.
        anchor_mask: bool [B, N], false in padding.
        positives: int64 [B, N], index into `vectors` of each anchor's next item.
        candidates: int64 [K], indices into `vectors`, the same items on every rank.
        temperature: divides the cosines.
        offsets: float [U], added to the logits, for adjustment.
        seen: added to the similarity of items that an anchor has met; items as
            indices into `vectors`.

    Returns:
        Scalar: W times this rank's sum over anchors, divided by the anchors of all W
        ranks.
    """
    users = anchors[anchor_mask] / temperature  # [P, D]
    own = positives[anchor_mask]
    if offsets is None:
        offsets = vectors.new_zeros(len(vectors))
    own_extra = offsets[own]
    if seen is not None:
        number = anchor_mask.flatten().cumsum(0) - 1
        seen = Seen(number[seen.anchor], seen.item, seen.score)
        is_own = (seen.item == own[seen.anchor]).nonzero().squeeze(1)
        score = seen.score[is_own] / temperature
        own_extra = own_extra.index_add(0, seen.anchor[is_own], score)
    extra = _scattered(seen, candidates, temperature)
    gallery = _Gallery(candidates, vectors[candidates], offsets[candidates])
    in_chunk = min(_ANCHORS_IN_CHUNK, max(1, _LOGITS_IN_CHUNK // len(candidates)))
    total = anchors.new_zeros(())
    for start in range(0, len(users), in_chunk):
        chunk = slice(start, start + in_chunk)
        total = total + checkpoint(
            _next_item_chunk,
            users[chunk],
            own[chunk],
            vectors[own[chunk]],
            own_extra[chunk],
            gallery,
            start,
            extra,
            use_reentrant=False,
        )
    return total * _world_size() / _over_ranks(anchor_mask.sum())


class _Gallery(NamedTuple):
    """What stands for the catalogue: K indices, vectors [K, D], logits to add [K]."""

    items: Tensor
    vectors: Tensor
    offsets: Tensor


def _next_item_chunk(
    users: Tensor,
    own: Tensor,
    own_vectors: Tensor,
    own_extra: Tensor,
    gallery: _Gallery,
    start: int,
    extra: "_Extra | None",
) -> Tensor:
    """Sum the losses of a chunk of anchors, the first of them number `start`."""
    logits = users @ gallery.vectors.T + gallery.offsets
    logits = _with_extra(logits, start, extra)
    # Compared here: what a checkpoint is given lives until the backward pass.
    is_own = own[:, None] == gallery.items
    others = logits.masked_fill(is_own, -torch.inf).logsumexp(-1)
    return F.softplus(others - (users * own_vectors).sum(-1) - own_extra).sum()


class _Extra(NamedTuple):
    """Logits to add: rows ascending, columns and values, [hits] each."""

    row: Tensor
    column: Tensor
    value: Tensor


def _scattered(
    seen: Seen | None, candidates: Tensor, temperature: float | Tensor
) -> _Extra | None:
    """Find the columns of the candidates that are items an anchor has met."""
    if seen is None:
        return None
    query, column = _columns_of(seen.item, candidates)
    return _Extra(seen.anchor[query], column, seen.score[query] / temperature)


def _with_extra(logits: Tensor, start: int, extra: _Extra | None) -> Tensor:
    """Add to the logits [n, K] of rows `start` to `start + n` what belongs to them."""
    if extra is None:
        return logits
    bounds = torch.tensor([start, start + len(logits)], device=logits.device)
    first, last = torch.searchsorted(extra.row, bounds)
    rows = extra.row[first:last] - start
    index = (rows, extra.column[first:last])
    return logits.index_put(index, extra.value[first:last], accumulate=True)


def _chunk_loss(
    anchors: Tensor,
    pair_mask: Tensor,
    start: int,
    candidates: Candidates,
    hits: Tensor,
    extra: _Extra | None,
) -> Tensor:
    """Sum the losses of a chunk of b users, the first of them number `start`."""
    count, num_anchors = anchors.shape[:2]
    rows = anchors.flatten(0, 1) @ candidates.vectors.T + candidates.offsets
    rows = _with_extra(rows, start * num_anchors, extra)
    logits = rows.unflatten(0, (count, num_anchors))  # [b, N_h, G * N_t]
    own = _own_columns(start, count, pair_mask.shape[2], candidates)  # [b, N_t]
    scores = logits.gather(2, own[:, None].expand(-1, num_anchors, -1))
    excluded = _excluded(start, own, candidates, hits)
    logits = logits.masked_fill(excluded[:, None, :], -torch.inf)
    negatives = logits.logsumexp(-1)  # [b, N_h], -inf where there is no negative
    losses = F.softplus(negatives[:, :, None] - scores)  # [b, N_h, N_t]
    return losses.masked_fill(~pair_mask, 0.0).sum()


def _own_columns(
    start: int, count: int, per_user: int, candidates: Candidates
) -> Tensor:
    """Columns of the chunk's users' own positives among all ranks', [b, N_t]."""
    device = candidates.items.device
    users = candidates.first_user + start + torch.arange(count, device=device)
    return users[:, None] * per_user + torch.arange(per_user, device=device)


def _excluded(start: int, own: Tensor, candidates: Candidates, hits: Tensor) -> Tensor:
    """Mark the candidates that are no negatives of a chunk's users: [b, G * N_t]."""
    excluded = (candidates.items < 0).repeat(len(own), 1)
    excluded.scatter_(1, own, True)
    bounds = torch.tensor([start, start + len(own)], device=hits.device)
    first, last = torch.searchsorted(hits[0], bounds)
    inside = hits[:, first:last]
    excluded[inside[0] - start, inside[1]] = True
    return excluded


def _accidental_hits(user: Tensor, item: Tensor, candidates: Candidates) -> Tensor:
    """Find the candidates whose item is one of a user's targets.

    Args:
        user: int64 [R], this rank's user of each target.
        item: int64 [R], its item id.
        candidates: of all ranks.

    Returns:
        int64 [2, hits]: users, ascending, and candidates.
    """
    by_user = user.argsort(stable=True)
    query, columns = _columns_of(item[by_user], candidates.items)
    return torch.stack([user[by_user][query], columns])


def _columns_of(item: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Find each item among the candidates, in the order of the items.

    Sorts the candidates once: work and memory follow the number of hits, not items x
    candidates.

    Returns:
        int64 [hits] each: which item, and in which place of the candidates.
    """
    ordered, order = candidates.sort()
    first = torch.searchsorted(ordered, item)
    counts = torch.searchsorted(ordered, item, right=True) - first
    starts = counts.cumsum(0) - counts
    total = int(counts.sum())
    within = torch.arange(total, device=item.device) - starts.repeat_interleave(counts)
    columns = order[first.repeat_interleave(counts) + within]
    numbers = torch.arange(len(item), device=item.device)
    return numbers.repeat_interleave(counts), columns


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _over_ranks(count: Tensor) -> Tensor:
    """The sum of a count over ranks."""
    if _world_size() == 1:
        return count
    total = count.clone()
    dist.all_reduce(total)
    return total


def _all_gather(values: Tensor) -> Tensor:
    rows = dist.get_world_size() * values.shape[0]
    parts = values.new_empty((rows, *values.shape[1:]))
    dist.all_gather_into_tensor(parts, values.contiguous())
    return parts
