"""The twin towers.

Dimension letters: B users, N_h anchors and N_t positives of a user, D vector dim.
"""

from dataclasses import field
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from learn_torchrec.config import configuration, require
from learn_torchrec.datasets.sequences import NO_ACTION
from learn_torchrec.towers.batch import TowerBatch
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.ids import ItemIds
from learn_torchrec.towers.popularity import Popularity
from learn_torchrec.towers.repeat import RepeatConsumption, RepeatedItems

Inputs = Literal["content", "id", "content+id"]
ItemTower = Literal["causal", "self", "content", "projection"]

# TorchRec's pipelines trace the model up to the sharded table; this stays opaque.
torch.fx.wrap("arange_like")


@configuration
class TowersModelConfig:
    """Shape of the twin towers.

    Attributes:
        encoder: shared by both towers.
        inputs: what represents an item: its `content` (the paper), its `id` (the
            paper's ID row) or the sum of both (`content+id`).
        id_shrinkage: count-based shrinkage of the ID vectors: the number of training
            events at which the factor is 1/2, see `ItemIds`; 0 disables it.
        item_tower: what the item side reads in training (paper: table "item tower").
            `causal` (variant 1): the target sequence, each item in the context of
            the earlier targets; `self` (variant 2): each target item alone;
            `content` (variant 3): the item's content vector itself, so that
            encoder.vector_dim must be the content's; `projection` (not in the paper):
            the item's embedding through the vector projection alone.
            At inference an item is always encoded alone.
        repeat: learn a score for repeat consumption (not in the paper), see
            `RepeatConsumption`. Retrieval adds it to the similarity of history items;
            exported vectors do not contain it.
        repeat_length: latest events of a user that this score reads.
        popularity: let validation choose how much an item's popularity adds to its
            score in retrieval (not in the paper), see `Popularity`; exported vectors do
            not contain it.
        standardize: standardize every content dimension over the catalogue. Raw
            language-model vectors lie in a narrow cone, which towers learn little
            from; the authors' public code does not standardize.
        residual: learn what to add to the content's principal components instead of a
            vector of its own (not in the paper), so that the similarity starts as the
            content's: see `PreferenceEncoder`. A few hundred users teach too little to
            rank rare items from nothing.
    """

    encoder: EncoderShape = field(default_factory=EncoderShape)
    inputs: Inputs = "content"
    id_shrinkage: NonNegativeFloat = 0.0
    item_tower: ItemTower = "causal"
    repeat: bool = False
    repeat_length: PositiveInt = 400
    popularity: bool = False
    standardize: bool = True
    residual: bool = False

    def __post_init__(self) -> None:
        require(
            self.inputs == "content" or self.item_tower != "content",
            "item_tower: content cannot use ids; set towers.model.inputs=content or "
            "another item_tower",
        )
        require(
            not self.residual or self.reads_standardized_content,
            "residual: learns on top of standardized content; set "
            "towers.model.residual=false, or leave inputs=id, item_tower=content and "
            "standardize=false out",
        )

    @property
    def reads_standardized_content(self) -> bool:
        """Whether both towers learn from standardized content, as a residual must."""
        reads = self.inputs != "id" and self.item_tower != "content"
        return reads and self.standardize


class TwinTower(nn.Module):
    """User and item tower with shared weights, independent of the loss.

    Args:
        encoder: shared by both.
        item_tower: see `TowersModelConfig`.
        ids: trainable item vectors; None for content alone.
        repeat: score of history items; None for the similarity alone.
        popularity: what items add by it; None for nothing.
    """

    def __init__(
        self,
        encoder: PreferenceEncoder,
        item_tower: ItemTower,
        ids: ItemIds | None = None,
        repeat: RepeatConsumption | None = None,
        popularity: Popularity | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.item_tower = item_tower
        self.ids = ids
        self.repeat = repeat
        self.popularity = popularity

    def forward(self, batch: TowerBatch) -> tuple[Tensor, Tensor]:
        """Encode histories and targets.

        Returns:
            User vectors [B, N_h, D] at the anchors and item vectors [B, N_t, D] of the
            positives, unit norm; rows of padding hold some other token's vector.
        """
        if batch.content is None:
            raise ValueError("the batch has no content; see attach_content")
        id_vectors = self.id_vectors(batch.item_ids)
        positives = batch.positives.clamp(min=0)
        if self.item_tower in ("content", "projection"):
            items = batch.target[positives]
            vectors = self.encode_items(batch.content, items.flatten(), id_vectors)
            user_vectors = self.encode_anchors(batch, id_vectors)
            return user_vectors, vectors.unflatten(0, items.shape)
        # One pass for both towers, so that every weight gets its gradient once.
        items, lengths = batch.target, batch.target_lengths
        times, actions = batch.target_times, batch.target_actions
        if self.item_tower == "self":  # each item alone, without time and action
            items = batch.target[positives].flatten()
            lengths, times = torch.ones_like(items), torch.zeros_like(items)
            actions = torch.full_like(items, NO_ACTION, dtype=actions.dtype)
            positives = arange_like(items).view_as(positives)
        read = [batch.anchors.clamp(min=0), positives + batch.history.shape[0]]
        vectors = self.encoder(
            batch.content,
            torch.cat([batch.history, items]),
            torch.cat([batch.history_lengths, lengths]),
            read=torch.cat(read, dim=1),
            id_vectors=id_vectors,
            times=torch.cat([batch.history_times, times]),
            actions=torch.cat([batch.history_actions, actions]),
        )
        anchors = batch.anchors.shape[1]
        return vectors[:, :anchors], vectors[:, anchors:]

    def id_vectors(self, item_ids: KeyedJaggedTensor | None) -> Tensor | None:
        """Look up the ID vectors of U distinct items, [U, W]; None without a table."""
        return None if self.ids is None else self.ids(item_ids)

    def encode_anchors(self, batch: TowerBatch, id_vectors: Tensor | None) -> Tensor:
        """Encode the histories and read them at the anchors, [B, N_h, D]."""
        return self.encoder(
            batch.content,
            batch.history,
            batch.history_lengths,
            read=batch.anchors.clamp(min=0),
            id_vectors=id_vectors,
            times=batch.history_times,
            actions=batch.history_actions,
        )

    def encode_items(
        self, content: Tensor, items: Tensor, id_vectors: Tensor | None = None
    ) -> Tensor:
        """Encode N items alone to unit vectors, float32 [N, D].

        Args:
            content: [U, C].
            items: int64 [N], index into `content`.
            id_vectors: float32 [U, W].
        """
        if self.item_tower == "content":
            return F.normalize(self.encoder.standardized(content)[items], dim=-1)
        if self.item_tower == "projection":
            return self.encoder.encode_alone(content, items, id_vectors)
        alone = torch.ones_like(items)
        return self.encoder(content, items, alone, id_vectors=id_vectors)

    def repeated_items(self, batch: TowerBatch) -> RepeatedItems | None:
        """Score the items in the anchors' past; None without a repeat score."""
        if self.repeat is None:
            return None
        past = batch.past
        if past is None:
            raise ValueError("the batch has no past; see collate")
        return self.repeat(past.items, past.times, past.lengths, past.anchors)


def arange_like(rows: Tensor) -> Tensor:
    """Return 0, 1, ... of the length of `rows`."""
    return torch.arange(rows.shape[0], device=rows.device)
