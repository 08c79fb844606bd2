"""Dense all-action InfoNCE over the global batch (paper: section 3.3).

For anchor j and positive k of user i, with s the cosine over the temperature,

    loss_ijk = -log( e^{s_ijk} / (e^{s_ijk} + sum over other users' positives e^s) )
             = softplus( logsumexp over other users' positives  -  s_ijk )

so one log-sum-exp per anchor serves all its positives. A user's own other positives
are no negatives, and neither is another user's positive whose item is one of this
user's targets (an accidental hit).

Dimension letters: B users of this rank, G of all ranks together, N_h anchors and
N_t positives per user, D vector dim.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_single_autograd
from torch.utils.checkpoint import checkpoint

from learn_torchrec.arrays import Int64Array
from learn_torchrec.errors import UserError
from learn_torchrec.towers.batch import TowerBatch, collate, epoch_users
from learn_torchrec.towers.holdout import TowersSplit
from learn_torchrec.towers.model import TowersModelConfig, TwinTower
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.objectives.shared import (
    RepeatLogits,
    add_repeat_logits,
    columns_of,
    item_log_q,
    repeat_logits,
    repeats_by_chunk,
    slices_of_chunks,
    sum_over_ranks,
    world_size,
)
from learn_torchrec.towers.repeat import RepeatedItems
from learn_torchrec.towers.sampling import SamplingConfig, sample_user

_USERS_IN_CHUNK = 64

# TorchRec's pipelines trace the loss up to the sharded table; these stay opaque.
for _function in ("dense_all_action_loss", "_users_of"):
    torch.fx.wrap(_function)


class DenseAllAction(nn.Module):
    """Every sampled history event against every sampled target of its user.

    `item_counts` are int64 [N], training events of each catalogue item; `past_length`
    is that of the batches, see `collate`.
    """

    item_log_q: Tensor | None

    def __init__(
        self,
        loss: LossConfig,
        sampling: SamplingConfig,
        item_counts: Tensor,
        past_length: int = 0,
    ) -> None:
        super().__init__()
        self.sampling, self.past_length = sampling, past_length
        log_q = item_log_q(item_counts) if loss.sampling_correction else None
        self.register_buffer("item_log_q", log_q, persistent=False)

    def check(self, model: TowersModelConfig, data: TowersSplit) -> None:
        """Refuse settings that do not fit the data.

        Raises:
            UserError: training users with too few events, or no split time to cut at.
        """
        sampling, shortest = self.sampling, data.train.lengths.min()
        if shortest <= sampling.min_history:
            raise UserError(
                f"towers.sampling.min_history={sampling.min_history}: a training user "
                f"has only {shortest} events, but needs more than min_history; lower "
                "it or raise split.min_events"
            )
        if sampling.cut == "split" and data.cuts is None:
            raise UserError(
                "towers.sampling.cut=split: only split.holdout=time has a split time "
                "for training users; set towers.sampling.cut=random"
            )

    def batches(
        self, data: TowersSplit, *, batch_size: int, seed: int, epoch: int, start: int
    ) -> Iterator[TowerBatch]:
        """Yield this rank's batches of an epoch; see `epoch_users`."""
        sampling, train, cuts = self.sampling, data.train, self.cuts(data)
        lengths = train.lengths
        for _, users in epoch_users(
            train, batch_size=batch_size, seed=seed, epoch=epoch, start=start
        ):
            samples = [
                sample_user(lengths[user], sampling, seed, epoch, user, cuts[user])
                for user in users.mine
            ]
            yield collate(
                train,
                users.users,
                samples,
                sampling.num_history_samples,
                sampling.num_target_samples,
                past_length=self.past_length,
            )

    def cuts(self, data: TowersSplit) -> Int64Array:
        """Return the number of history events of each training user; 0: random."""
        if self.sampling.cut == "random" or data.cuts is None:
            return np.zeros(len(data.train), np.int64)
        # Users with events on only one side of the split time are cut at random.
        low, high = self.sampling.min_history, data.train.lengths
        return np.where((data.cuts >= low) & (data.cuts < high), data.cuts, 0)

    def loss(self, towers: TwinTower, batch: TowerBatch, temperature: Tensor) -> Tensor:
        """Return this rank's loss; see `dense_all_action_loss`."""
        user_vectors, item_vectors = towers(batch)
        padding = batch.positives < 0
        token_items = batch.item_rows[batch.target]
        items = token_items[batch.positives.clamp(min=0)].masked_fill(padding, -1)
        offsets = None
        if self.item_log_q is not None:
            offsets = -self.item_log_q[items.clamp(min=0)]
        return dense_all_action_loss(
            user_vectors,
            item_vectors,
            batch.anchors >= 0,
            items,
            temperature=temperature,
            offsets=offsets,
            targets=(_users_of(batch.target_lengths, batch.target), token_items),
            repeated=towers.repeated_items(batch),
        )


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The positives of all ranks, which every anchor is compared with.

    Attributes:
        vectors: float [G * N_t, D].
        items: int64 [G * N_t], item ids; -1 in padding.
        offsets: float [G * N_t], added to the logits (-log q, or zeros).
        first_user: index of this rank's first user among the G.
    """

    vectors: Tensor
    items: Tensor
    offsets: Tensor
    first_user: int


def gather_candidates(vectors: Tensor, items: Tensor, offsets: Tensor) -> Candidates:
    """Gather the positives of all ranks; gradients flow back to their ranks.

    Args:
        vectors: float [B, N_t, D]; B is the same on every rank.
        items: int64 [B, N_t], -1 in padding.
        offsets: float [B, N_t].
    """
    flat = vectors.flatten(0, 1)
    first_user = 0
    if world_size() > 1:
        first_user = dist.get_rank() * vectors.shape[0]
        group = dist.distributed_c10d._get_default_group()
        flat = all_gather_single_autograd(flat.contiguous(), 0, group)
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
    repeated: RepeatedItems | None = None,
) -> Tensor:
    """Return this rank's loss; its mean over ranks is the global loss.

    Memory does not grow with anchors x candidates: users are processed in chunks,
    whose logits are recomputed in the backward pass.

    Args:
        anchors: float [B, N_h, D], unit user vectors.
        positives: float [B, N_t, D], unit item vectors.
        anchor_mask: bool [B, N_h], false in padding.
        items: int64 [B, N_t], item ids of the positives, -1 in padding.
        temperature: divides the cosines.
        offsets: float [B, N_t], added to the logits, for sampling correction.
        targets: index of the user on this rank and item id, int64 [R] each, of all
            targets, sampled or not, to find accidental hits; None for the positives.
        repeated: score of history items by item id, added to the cosines.

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
    repeats = repeats_by_chunk(
        repeat_logits(repeated, candidates.items, temperature),
        anchor_mask.numel(),
        _USERS_IN_CHUNK * anchor_mask.shape[1],
    )
    in_chunks = slices_of_chunks(hits[0], len(anchors), _USERS_IN_CHUNK)
    pairs = (anchor_mask.sum(1) * (items >= 0).sum(1)).sum()
    total = anchors.new_zeros(())
    for chunk, own_hits in enumerate(in_chunks):
        start = chunk * _USERS_IN_CHUNK
        users = slice(start, start + _USERS_IN_CHUNK)
        total = total + checkpoint(
            _chunk_loss,
            anchors[users] / temperature,
            anchor_mask[users, :, None] & (items[users, None, :] >= 0),
            start,
            candidates,
            hits[:, own_hits],
            repeats[chunk],
            use_reentrant=False,
        )
    return total * world_size() / sum_over_ranks(pairs)


def _chunk_loss(
    anchors: Tensor,
    pair_mask: Tensor,
    start: int,
    candidates: Candidates,
    hits: Tensor,
    repeats: RepeatLogits | None,
) -> Tensor:
    """Sum the losses of a chunk of b users, the first with index `start`.

    `hits` and `repeats` are the chunk's.
    """
    count, num_anchors = anchors.shape[:2]
    rows = anchors.flatten(0, 1) @ candidates.vectors.T + candidates.offsets
    rows = add_repeat_logits(rows, repeats)
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
    """Return the candidate columns of the chunk's own positives, [b, N_t]."""
    device = candidates.items.device
    users = candidates.first_user + start + torch.arange(count, device=device)
    return users[:, None] * per_user + torch.arange(per_user, device=device)


def _excluded(start: int, own: Tensor, candidates: Candidates, hits: Tensor) -> Tensor:
    """Mark the candidates that are no negatives of a chunk's users: [b, G * N_t]."""
    excluded = (candidates.items < 0).repeat(len(own), 1)
    excluded.scatter_(1, own, True)
    excluded[hits[0] - start, hits[1]] = True
    return excluded


def _accidental_hits(user: Tensor, item: Tensor, candidates: Candidates) -> Tensor:
    """Find the candidates whose item is one of a user's targets.

    `user` and `item` are int64 [R], the user on this rank and the item of each target.

    Returns:
        int64 [2, hits]: users, ascending, and candidates.
    """
    by_user = user.argsort(stable=True)
    query, columns = columns_of(item[by_user], candidates.items)
    return torch.stack([user[by_user][query], columns])


def _users_of(lengths: Tensor, tokens: Tensor) -> Tensor:
    """Return the index within the batch of the user of each of S tokens, int64 [S]."""
    users = torch.arange(lengths.shape[0], device=lengths.device)
    return users.repeat_interleave(lengths, output_size=len(tokens))


def _all_gather(values: Tensor) -> Tensor:
    rows = dist.get_world_size() * values.shape[0]
    parts = values.new_empty((rows, *values.shape[1:]))
    dist.all_gather_into_tensor(parts, values.contiguous())
    return parts
