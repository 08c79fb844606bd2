"""The CVR ranker: TorchRec's DLRM, with LEARN's vectors among its dense features.

Dimension letters: B rows, F dense features, D vector dim.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.models.dlrm import DenseArch, InteractionArch, OverArch, SparseArch

from learn_torchrec.ranker.batch import RankingBatch
from learn_torchrec.ranker.features import LearnFeatures


class LearnRanker(nn.Module):
    """A DLRM that composes TorchRec's own parts; without `learn` it is TorchRec's.

    Args:
        embedding_bag_collection: the ID features, all of one embedding dim.
        dense_in_features: F, at least 1.
        dense_arch_layer_sizes: of the bottom MLP; the last is the embedding dim.
        over_arch_layer_sizes: of the top MLP; the last is 1.
        learn: LEARN's features, or None for the baseline.
        device: of the dense parameters.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        dense_in_features: int,
        dense_arch_layer_sizes: list[int],
        over_arch_layer_sizes: list[int],
        learn: LearnFeatures | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        embedding_dim = dense_arch_layer_sizes[-1]
        dims = {
            c.embedding_dim for c in embedding_bag_collection.embedding_bag_configs()
        }
        if dims != {embedding_dim}:
            raise ValueError(
                f"embedding dims {sorted(dims)} and the dense arch's last layer "
                f"{embedding_dim} must be equal"
            )
        self.learn = learn
        self.sparse_arch = SparseArch(embedding_bag_collection)
        num_features = len(self.sparse_arch.sparse_feature_names)
        if learn is not None:
            dense_in_features += learn.out_features
        self.dense_arch = DenseArch(dense_in_features, dense_arch_layer_sizes, device)
        self.inter_arch = InteractionArch(num_features)
        pairs = num_features * (num_features - 1) // 2
        self.over_arch = OverArch(
            embedding_dim + pairs + num_features, over_arch_layer_sizes, device
        )

    def forward(
        self,
        dense_features: Tensor,
        sparse_features: KeyedJaggedTensor,
        user_vectors: Tensor | None = None,
        item_vectors: Tensor | None = None,
        has_vectors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Score rows.

        Args:
            dense_features: float [B, F].
            sparse_features: KJT over B rows.
            user_vectors: float [B, D], needed with `learn`.
            item_vectors: float [B, D], needed with `learn`.
            has_vectors: float [B, 2], see `LearnFeatures`.

        Returns:
            Logits [B], and the auxiliary network's logits [B] or None.
        """
        auxiliary_logits = None
        if self.learn is not None:
            features, auxiliary_logits = self.learn(
                user_vectors, item_vectors, has_vectors
            )
            dense_features = torch.cat([dense_features, features], dim=1)
        embedded_dense = self.dense_arch(dense_features)
        embedded_sparse = self.sparse_arch(sparse_features)
        interactions = self.inter_arch(embedded_dense, embedded_sparse)
        return self.over_arch(interactions).squeeze(-1), auxiliary_logits


class LearnRankerTrain(nn.Module):
    """The training task: main plus auxiliary CVR loss, summed before one backward.

    TorchRec's fused table optimizers step in every backward pass, so two passes
    would update the tables twice.

    Args:
        ranker: the model.
        auxiliary_weight: of the auxiliary network's loss.
    """

    def __init__(self, ranker: LearnRanker, auxiliary_weight: float = 1.0) -> None:
        super().__init__()
        self.ranker = ranker
        self.auxiliary_weight = auxiliary_weight

    def forward(
        self, batch: RankingBatch
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the loss and, detached, (loss, logits, labels).

        The loss is the mean over rows of weight times binary cross-entropy.
        """
        logits, auxiliary_logits = self.ranker(
            batch.dense_features,
            batch.sparse_features,
            batch.user_vectors,
            batch.item_vectors,
            batch.has_vectors,
        )
        loss = _weighted_bce(logits, batch.labels, batch.weights)
        if auxiliary_logits is not None:
            auxiliary = _weighted_bce(auxiliary_logits, batch.labels, batch.weights)
            loss = loss + self.auxiliary_weight * auxiliary
        return loss, (loss.detach(), logits.detach(), batch.labels)


def _weighted_bce(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    losses = functional.binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    )
    return (weights * losses).mean()
