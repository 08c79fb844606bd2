"""The twin towers and their training task.

Dimension letters: B users, N_h anchors and N_t positives of a user, D vector dim.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learn_torchrec.towers.batch import TowerBatch
from learn_torchrec.towers.encoder import EncoderShape, PreferenceEncoder
from learn_torchrec.towers.loss import LossConfig, dense_all_action_loss

_LEAST_TEMPERATURE = 0.01
ItemTower = Literal["causal", "self", "content"]


@dataclass(frozen=True, kw_only=True)
class TowersModelConfig:
    """Shape of the twin towers.

    Attributes:
        encoder: the transformer that both towers share.
        item_tower: what the item side reads in training (paper: table "item tower").
            `causal` (variant 1): the target sequence, each item in the context of
            the earlier targets; `self` (variant 2): each target item alone;
            `content` (variant 3): the item's content vector itself, so that
            encoder.vector_dim must be the content's. At inference an item is always
            alone.
        standardize: bring every dimension of the content to mean 0 and deviation 1
            over the catalogue. Vectors of a language model are a narrow cone, which
            towers learn little from; the authors' public code does not do it.
    """

    encoder: EncoderShape = field(default_factory=EncoderShape)
    item_tower: ItemTower = "causal"
    standardize: bool = True


class TwinTower(nn.Module):
    """User and item tower with shared weights; knows no loss.

    Args:
        encoder: the shared `PreferenceEncoder`.
        item_tower: see `TowersModelConfig`.
    """

    def __init__(self, encoder: PreferenceEncoder, item_tower: ItemTower) -> None:
        super().__init__()
        self.encoder = encoder
        self.item_tower = item_tower

    def forward(self, batch: TowerBatch) -> tuple[Tensor, Tensor]:
        """Return the vectors that training compares.

        Returns:
            User vectors [B, N_h, D] at the anchors and item vectors [B, N_t, D] of
            the positives, unit norm; rows of padding hold some other token's vector.
        """
        if batch.content is None:
            raise ValueError("the batch has no content; see attach_content")
        user_vectors = self.encoder(
            batch.content,
            batch.history,
            batch.history_lengths,
            read=batch.anchors.clamp(min=0),
        )
        positives = batch.positives.clamp(min=0)
        if self.item_tower != "causal":
            items = batch.target[positives]
            flat = items.flatten()
            vectors = self.encode_items(batch.content, flat)
            return user_vectors, vectors.unflatten(0, items.shape)
        item_vectors = self.encoder(
            batch.content, batch.target, batch.target_lengths, read=positives
        )
        return user_vectors, item_vectors

    def encode_items(self, content: Tensor, items: Tensor) -> Tensor:
        """Encode items alone: sequences of length 1, or the content itself.

        Args:
            content: [U, C].
            items: int64 [N], index into `content`.

        Returns:
            float32 [N, D], unit vectors.
        """
        if self.item_tower == "content":
            return F.normalize(self.encoder.standardized(content)[items], dim=-1)
        vectors: Tensor = self.encoder(content, items, torch.ones_like(items))
        return vectors


class TwinTowerTrain(nn.Module):
    """The training task: `forward(batch)` gives what TorchRec's pipelines expect.

    Args:
        towers: the model.
        loss: settings of the loss.
        item_log_q: float32 [N], log of each catalogue item's share of the training
            events, needed for the sampling correction.
    """

    item_log_q: Tensor | None

    def __init__(
        self, towers: TwinTower, loss: LossConfig, item_log_q: Tensor | None = None
    ) -> None:
        super().__init__()
        if loss.sampling_correction and item_log_q is None:
            raise ValueError("sampling_correction needs item_log_q")
        self.towers = towers
        self.loss = loss
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(loss.temperature)),
            requires_grad=loss.learn_temperature,
        )
        self.register_buffer("item_log_q", item_log_q, persistent=False)

    def forward(self, batch: TowerBatch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the loss and, detached, (loss, user numbers)."""
        user_vectors, item_vectors = self.towers(batch)
        padding = batch.positives < 0
        token_items = batch.item_rows[batch.target]
        items = token_items[batch.positives.clamp(min=0)].masked_fill(padding, -1)
        offsets = None
        if self.loss.sampling_correction and self.item_log_q is not None:
            offsets = -self.item_log_q[items.clamp(min=0)]
        loss = dense_all_action_loss(
            user_vectors,
            item_vectors,
            batch.anchors >= 0,
            items,
            temperature=self.temperature(),
            offsets=offsets,
            targets=(_users_of(batch.target_lengths), token_items),
        )
        return loss, (loss.detach(), batch.users)

    def temperature(self) -> Tensor:
        """The temperature in use: fixed, or learned and kept from collapsing."""
        return self.log_temperature.exp().clamp(min=_LEAST_TEMPERATURE)


def _users_of(lengths: Tensor) -> Tensor:
    """Number within the batch of each token's user, int64 [sum of lengths]."""
    users = torch.arange(lengths.shape[0], device=lengths.device)
    return users.repeat_interleave(lengths)


def averaged_content(content: Tensor) -> Tensor:
    """The paper's Baseline-v1: the unit mean of content vectors, [n, C] -> [C]."""
    return F.normalize(content.float().mean(0), dim=0)
