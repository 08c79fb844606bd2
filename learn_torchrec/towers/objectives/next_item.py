"""Next-item cross-entropy (the authors' fine-tuning on short sequences).

Every event is an anchor whose only positive is the next event; the candidates are the
catalogue, or a sample of it.

Dimension letters: B users of this rank, N anchors per user, U distinct items of the
batch, K candidates, D vector dim.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learn_torchrec.errors import UserError
from learn_torchrec.towers.batch import TowerBatch, collate, epoch_users
from learn_torchrec.towers.candidates import CandidateSampler
from learn_torchrec.towers.holdout import TowersSplit
from learn_torchrec.towers.model import TowersModelConfig, TwinTower, arange_like
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.objectives.shared import (
    RepeatLogits,
    add_repeat_logits,
    item_log_q,
    repeat_logits,
    repeats_by_chunk,
    sum_over_ranks,
    world_size,
)
from learn_torchrec.towers.repeat import RepeatedItems
from learn_torchrec.towers.sampling import SamplingConfig, next_item_sample

_ANCHORS_IN_CHUNK = 4096
_LOGITS_IN_CHUNK = 1 << 26  # 256 MiB; limits the anchors if candidates are many

# TorchRec's pipelines trace the loss up to the sharded table; these stay opaque.
for _function in ("next_item_loss", "arange_like", "in_batch"):
    torch.fx.wrap(_function)


class NextItem(nn.Module):
    """Each event against the next one, among the catalogue.

    Of `sampling` only the `history_length` matters: so many pairs of a user in a row.
    `item_counts` are int64 [N], training events of each catalogue item; `past_length`
    is that of the batches, see `collate`.
    """

    adjustment: Tensor | None
    log_inclusion: Tensor | None

    def __init__(
        self,
        loss: LossConfig,
        sampling: SamplingConfig,
        item_counts: Tensor,
        past_length: int = 0,
    ) -> None:
        super().__init__()
        self.past_length = past_length
        self.baskets = loss.baskets
        self.history_length = sampling.history_length
        self.num_items = len(item_counts)
        self.sampler: CandidateSampler | None = None
        log_inclusion = None
        if 0 < loss.candidates < self.num_items:
            self.sampler = CandidateSampler(item_counts.numpy(), loss.candidates)
            log_inclusion = torch.from_numpy(self.sampler.inclusion).log().float()
        self.register_buffer("log_inclusion", log_inclusion, persistent=False)
        adjustment = None
        if loss.logit_adjustment or loss.unseen_weight < 1:
            adjustment = loss.logit_adjustment * item_log_q(item_counts)
            adjustment[item_counts == 0] += math.log(loss.unseen_weight)
        self.register_buffer("adjustment", adjustment, persistent=False)

    def check(self, model: TowersModelConfig, data: TowersSplit) -> None:
        """Refuse towers that cannot encode a candidate alone.

        Raises:
            UserError: the item tower is causal.
        """
        if model.item_tower == "causal":
            raise UserError(
                "towers.loss.objective=next_item needs items encoded alone; set "
                "towers.model.item_tower to self or projection"
            )

    def batches(
        self, data: TowersSplit, *, batch_size: int, seed: int, epoch: int, start: int
    ) -> Iterator[TowerBatch]:
        """Yield this rank's batches of an epoch; see `epoch_users`.

        A step's candidates depend only on (seed, epoch, step): every rank has the same.
        """
        train, length = data.train, self.history_length
        for step, users in epoch_users(
            train, batch_size=batch_size, seed=seed, epoch=epoch, start=start
        ):
            candidates = np.arange(self.num_items)
            if self.sampler is not None:
                candidates = self.sampler.draw(seed, epoch, step)
            samples = [
                next_item_sample(
                    train.times[train.starts[user] : train.ends[user]],
                    length,
                    seed,
                    epoch,
                    user,
                    self.baskets,
                )
                for user in users.mine
            ]
            yield collate(
                train,
                users.users,
                samples,
                length,
                length,
                candidates,
                self.past_length,
            )

    def loss(self, towers: TwinTower, batch: TowerBatch, temperature: Tensor) -> Tensor:
        """Return this rank's loss; see `next_item_loss`."""
        if batch.content is None or batch.candidates is None:
            raise ValueError("the batch has no content or no candidates")
        id_vectors = towers.id_vectors(batch.item_ids)
        vectors = towers.encode_items(
            batch.content, arange_like(batch.item_rows), id_vectors
        )
        offsets, log_inclusion = (
            None if of_item is None else of_item[batch.item_rows]
            for of_item in (self.adjustment, self.log_inclusion)
        )
        return next_item_loss(
            towers.encode_anchors(batch, id_vectors),
            vectors,
            batch.target[batch.positives.clamp(min=0)].where(batch.anchors >= 0, -1),
            batch.candidates,
            temperature=temperature,
            offsets=offsets,
            repeated=in_batch(towers.repeated_items(batch), batch.item_rows),
            log_inclusion=log_inclusion,
        )


def in_batch(repeated: RepeatedItems | None, rows: Tensor) -> RepeatedItems | None:
    """Number items by their place in a batch's `rows`, int64 [U], -1 outside."""
    if repeated is None:
        return None
    place = torch.searchsorted(rows, repeated.item).clamp(max=len(rows) - 1)
    is_there = rows[place] == repeated.item
    return repeated._replace(item=place.where(is_there, -1))


def next_item_loss(
    anchors: Tensor,
    vectors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    *,
    temperature: float | Tensor,
    offsets: Tensor | None = None,
    repeated: RepeatedItems | None = None,
    log_inclusion: Tensor | None = None,
) -> Tensor:
    """Return this rank's loss; its mean over ranks is the global loss.

    The cross-entropy of each anchor's positive among the candidates; a candidate equal
    to the positive counts once. Memory is bounded: anchors are processed in chunks,
    whose logits are recomputed in the backward pass.

    Args:
        anchors: float [B, N, D], unit user vectors.
        vectors: float [U, D], unit vectors of the batch's distinct items.
        positives: int64 [B, N], index into `vectors` of each anchor's next item, -1 in
            padding.
        candidates: int64 [K], indices into `vectors`, the same items on every rank.
        temperature: divides the cosines.
        offsets: float [U], added to the logits, for logit adjustment.
        repeated: score of past items, as indices into `vectors`, -1 outside, added to
            the cosines.
        log_inclusion: float [U], log probability that an item is drawn as a candidate:
            each stands for as many as it makes rare, so that the loss estimates the
            one with every item. None: the candidates are the catalogue.

    Returns:
        Scalar: W times this rank's sum over anchors, divided by the anchors of all W
        ranks.
    """
    is_anchor = positives.flatten() >= 0
    valid = is_anchor.nonzero().squeeze(1)
    users = anchors.flatten(0, 1)[valid] / temperature  # [P, D]
    own = positives.flatten()[valid]
    if offsets is None:
        offsets = vectors.new_zeros(len(vectors))
    own_offsets = offsets[own]
    if repeated is not None:
        number = is_anchor.cumsum(0) - 1
        repeated = RepeatedItems(number[repeated.anchor], repeated.item, repeated.score)
        is_own = (repeated.item == own[repeated.anchor]).nonzero().squeeze(1)
        score = repeated.score[is_own] / temperature
        own_offsets = own_offsets.index_add(0, repeated.anchor[is_own], score)
    if log_inclusion is not None:
        offsets = offsets - log_inclusion
    gallery = _Gallery(candidates, vectors[candidates], offsets[candidates])
    in_chunk = min(_ANCHORS_IN_CHUNK, max(1, _LOGITS_IN_CHUNK // len(candidates)))
    repeats = repeats_by_chunk(
        repeat_logits(repeated, candidates, temperature), len(users), in_chunk
    )
    total = anchors.new_zeros(())
    for place, own_repeats in enumerate(repeats):
        chunk = slice(place * in_chunk, (place + 1) * in_chunk)
        total = total + checkpoint(
            _next_item_chunk,
            users[chunk],
            own[chunk],
            vectors[own[chunk]],
            own_offsets[chunk],
            gallery,
            own_repeats,
            use_reentrant=False,
        )
    return total * world_size() / sum_over_ranks(is_anchor.sum())


class _Gallery(NamedTuple):
    """The candidates: K item indices, vectors [K, D], logit offsets [K]."""

    items: Tensor
    vectors: Tensor
    offsets: Tensor


def _next_item_chunk(
    users: Tensor,
    own: Tensor,
    own_vectors: Tensor,
    own_offsets: Tensor,
    gallery: _Gallery,
    repeats: RepeatLogits | None,
) -> Tensor:
    """Sum the losses of a chunk of anchors."""
    logits = users @ gallery.vectors.T + gallery.offsets
    logits = add_repeat_logits(logits, repeats)
    # Compared here, since checkpoint() keeps its arguments until the backward pass.
    is_own = own[:, None] == gallery.items
    others = logits.masked_fill(is_own, -torch.inf).logsumexp(-1)
    return F.softplus(others - (users * own_vectors).sum(-1) - own_offsets).sum()
