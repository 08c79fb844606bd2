"""The ranker: TorchRec's DLRM, with LEARN's features among the dense ones.

Dimension letters: B rows, F dense features, D vector dim, S ID features.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.models.dlrm import DenseArch, InteractionArch, OverArch, SparseArch
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from learn_torchrec.ranker.auxiliary import weighted_bce
from learn_torchrec.ranker.batch import RankingBatch
from learn_torchrec.ranker.learn_features import LearnFeatures
from learn_torchrec.ranker.tasks import TaskConfig, joint_logits


class ManagedSparseArch(nn.Module):
    """TorchRec's `SparseArch` for managed-collision tables of one embedding dim."""

    def __init__(self, collection: ManagedCollisionEmbeddingBagCollection) -> None:
        super().__init__()
        self.collection = collection
        configs = collection._embedding_module.embedding_bag_configs()
        self.names = [name for config in configs for name in config.feature_names]
        self.embedding_dim: int = configs[0].embedding_dim

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Return the embeddings [B, S, embedding_dim] of `features` over B rows."""
        embedded, _ = self.collection(features)
        by_name = embedded.to_dict()
        together = torch.cat([by_name[name] for name in self.names], dim=1)
        return together.reshape(-1, len(self.names), self.embedding_dim)


class LearnRanker(nn.Module):
    """A DLRM of TorchRec's own parts; without `learn`, for one task, it equals DLRM.

    Several tasks share everything but the over-arch (shared bottom). Without any dense
    input the bottom MLP gets a constant 1: a learned vector takes its output's place,
    and the interactions with it are the ID features' own effects.

    Args:
        embedding_bag_collection: the ID features, all of one embedding dim.
        dense_in_features: F, 0 without dense features.
        dense_arch_layer_sizes: of the bottom MLP; the last is the embedding dim.
        over_arch_layer_sizes: of a task's top MLP; the last is 1.
        learn: LEARN's features; None for the baseline.
        managed_collection: further ID features, of the same embedding dim.
        device: of the dense parameters.
        tasks: names; each has an over-arch.

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
        managed_collection: ManagedCollisionEmbeddingBagCollection | None = None,
        device: torch.device | None = None,
        tasks: Sequence[str] = ("cvr",),
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
        self.learn, self.tasks = learn, tuple(tasks)
        self.auxiliary_tasks: tuple[str, ...] = ()  # those with an auxiliary head
        if learn is not None and learn.auxiliary is not None:
            self._heads_named = learn.auxiliary.tasks is not None
            self.auxiliary_tasks = tuple(learn.auxiliary.tasks or self.tasks[:1])
        self.sparse_arch = SparseArch(embedding_bag_collection)
        num_features = len(self.sparse_arch.sparse_feature_names)
        self.managed_arch: ManagedSparseArch | None = None
        if managed_collection is not None:
            self.managed_arch = ManagedSparseArch(managed_collection)
            num_features += len(self.managed_arch.names)
        if learn is not None:
            dense_in_features += learn.out_features
        self.has_dense = dense_in_features > 0
        self.dense_arch = DenseArch(
            max(1, dense_in_features), dense_arch_layer_sizes, device
        )
        self.inter_arch = InteractionArch(num_features)
        pairs = num_features * (num_features - 1) // 2
        archs = {
            task: OverArch(
                embedding_dim + pairs + num_features, over_arch_layer_sizes, device
            )
            for task in self.tasks
        }
        # With one task, parameters have DLRM's names.
        one = len(archs) == 1
        self.over_arch = archs[self.tasks[0]] if one else nn.ModuleDict(archs)

    def forward(
        self,
        dense_features: Tensor,
        sparse_features: KeyedJaggedTensor,
        user_vectors: Tensor | None = None,
        item_vectors: Tensor | None = None,
        has_vectors: Tensor | None = None,
        managed_features: KeyedJaggedTensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Score rows.

        Args:
            dense_features: float [B, F].
            sparse_features: KJT over B rows.
            user_vectors: float [B, D], required by `learn`.
            item_vectors: float [B, D], required by `learn`.
            has_vectors: float [B, 2], see `LearnFeatures`.
            managed_features: KJT over B rows, required by `managed_collection`.

        Returns:
            Logits [B] by task, and the auxiliary network's by task.
        """
        auxiliary_logits: dict[str, Tensor] = {}
        if self.learn is not None:
            features, heads = self.learn(user_vectors, item_vectors, has_vectors)
            for task in self.auxiliary_tasks:
                auxiliary_logits[task] = heads[task] if self._heads_named else heads
            dense_features = torch.cat([dense_features, features], dim=1)
        if not self.has_dense:
            dense_features = dense_features.new_ones(dense_features.shape[0], 1)
        embedded_dense = self.dense_arch(dense_features)
        embedded_sparse = self.sparse_arch(sparse_features)
        if self.managed_arch is not None:
            managed = self.managed_arch(managed_features)
            embedded_sparse = torch.cat([embedded_sparse, managed], dim=1)
        interactions = self.inter_arch(embedded_dense, embedded_sparse)
        logits = {
            task: arch(interactions).squeeze(-1) for task, arch in self._over_archs()
        }
        return logits, auxiliary_logits

    def _over_archs(self) -> Iterable[tuple[str, nn.Module]]:
        if isinstance(self.over_arch, nn.ModuleDict):
            return self.over_arch.items()
        return [(self.tasks[0], self.over_arch)]


class RankerOutput(NamedTuple):
    """The detached output of a training step.

    Attributes:
        loss: main plus auxiliary, a scalar.
        logits: [B] by task.
        labels: [B] by column.
        weights: [B].
        auxiliary_loss: a scalar, the sum over heads before lambda; 0 without a head.
    """

    loss: Tensor
    logits: dict[str, Tensor]
    labels: dict[str, Tensor]
    weights: Tensor
    auxiliary_loss: Tensor


class LearnRankerTrain(nn.Module):
    """The training task: all main and auxiliary losses in one backward pass.

    TorchRec's fused table optimizers step in every backward pass, so two passes would
    update the tables twice. `tasks` are the ranker's, in its order. `offsets` by task
    are added to the logit in the loss, see `sampling`.
    """

    def __init__(
        self,
        ranker: LearnRanker,
        tasks: Sequence[TaskConfig] = (TaskConfig(),),
        offsets: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.ranker, self.tasks = ranker, tuple(tasks)
        self.offsets = dict(offsets or {})

    def forward(self, batch: RankingBatch) -> tuple[Tensor, RankerOutput]:
        """Return the loss and the detached output.

        A task's loss is the weighted mean binary cross-entropy of `tasks.joint_logits`
        against its label.
        """
        logits, auxiliary_logits = self.ranker(
            batch.dense_features,
            batch.sparse_features,
            batch.user_vectors,
            batch.item_vectors,
            batch.has_vectors,
            batch.managed_features,
        )
        joint = joint_logits(self.tasks, logits, self.offsets)
        loss = torch.zeros((), device=batch.weights.device)
        auxiliary = torch.zeros_like(loss)
        for task in self.tasks:
            labels = batch.labels[task.label]
            main = weighted_bce(joint[task.name], labels, batch.weights)
            loss = loss + task.weight * main
        for task in self.tasks:
            if task.name in self.ranker.auxiliary_tasks:
                labels = batch.labels[task.auxiliary_label or task.label]
                head = weighted_bce(auxiliary_logits[task.name], labels, batch.weights)
                loss = loss + task.auxiliary_weight * head
                auxiliary = auxiliary + head
        return loss, RankerOutput(
            loss=loss.detach(),
            logits={name: value.detach() for name, value in logits.items()},
            labels=batch.labels,
            weights=batch.weights,
            auxiliary_loss=auxiliary.detach(),
        )
