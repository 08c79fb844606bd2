"""The ranker: TorchRec's DLRM or DLRM_DCN, and LEARN's part of its logit.

Dimension letters: B rows, F dense features, S ID features.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection, KeyedJaggedTensor
from torchrec.models.dlrm import (
    DenseArch,
    InteractionDCNArch,
    OverArch,
)
from torchrec.modules.crossnet import LowRankCrossNet

from learn_torchrec.ranker.batch import RankingBatch
from learn_torchrec.ranker.interaction import DotProducts
from learn_torchrec.ranker.learn.auxiliary import weighted_bce
from learn_torchrec.ranker.learn.batch import LearnBatch
from learn_torchrec.ranker.learn.paper import LearnFeatures
from learn_torchrec.ranker.learn.residual import LearnResidual
from learn_torchrec.ranker.sparse import SparseArch
from learn_torchrec.ranker.tasks import TaskConfig, joint_logits
from learn_torchrec.training.precision import autocast


class RankerLogits(NamedTuple):
    """The logits of a batch, [B] by task.

    Attributes:
        logits: of the ranker.
        auxiliary: of the auxiliary network; empty without one.
        baseline: before LEARN adds its part, where the baseline has a loss of its own.
    """

    logits: dict[str, Tensor]
    auxiliary: dict[str, Tensor]
    baseline: dict[str, Tensor] | None = None


class LearnRanker(nn.Module):
    """A DLRM of TorchRec's own parts; without LEARN, for one task, it equals DLRM.

    With `dcn` it equals DLRM_DCN: a cross network (DCN-v2) takes the place of DLRM's
    dot products.

    Several tasks share everything but the over-arch (shared bottom). Without any dense
    input the bottom MLP gets a constant 1: a learned vector takes its output's place,
    and the interactions with it are the ID features' own effects.

    Args:
        embedding_bag_collection: the ID features, all of one embedding dim; or a
            `SparseArch` for those that need more.
        dense_in_features: F, 0 without dense features.
        dense_arch_layer_sizes: of the bottom MLP; the last is the embedding dim.
        over_arch_layer_sizes: of a task's top MLP; the last is 1.
        learn: LEARN's part: a residual, which is added to the logit and zero at first,
            or dense features, the paper's form; None for the baseline.
        device: of the dense parameters.
        tasks: names; each has an over-arch.
        dcn: layers and rank of the cross network; None for dot products.

    Attributes:
        history_ids: the table of a residual whose attention reads ids, else None.
        precision: of the matrix products while training, float32 or bfloat16
            (autocast), but for a residual's. Weights and logits are float32, and so is
            everything in evaluation: in bfloat16 different scores would tie.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection | SparseArch,
        dense_in_features: int,
        dense_arch_layer_sizes: list[int],
        over_arch_layer_sizes: list[int],
        learn: LearnFeatures | LearnResidual | None = None,
        device: torch.device | None = None,
        tasks: Sequence[str] = ("cvr",),
        dcn: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        embedding_dim = dense_arch_layer_sizes[-1]
        self.sparse_arch = _sparse_arch(embedding_bag_collection, embedding_dim)
        self.tasks = tuple(tasks)
        self.learn: LearnFeatures | None = None
        self.residual: LearnResidual | None = None
        self.history_ids: EmbeddingCollection | None = None
        self.precision = torch.float32
        # Where the pipeline traces the model, its tensors have no device.
        self._device_type = (device or torch.device("cpu")).type
        self.alone = False
        self.auxiliary_tasks: tuple[str, ...] = ()  # those with an auxiliary head
        if isinstance(learn, LearnResidual):
            self.residual, self.alone = learn, learn.alone
        elif learn is not None:
            self.learn = learn
            dense_in_features += learn.out_features
            if learn.auxiliary is not None:
                self._heads_named = learn.auxiliary.tasks is not None
                self.auxiliary_tasks = tuple(learn.auxiliary.tasks or self.tasks[:1])
        self.has_dense = dense_in_features > 0
        self.dense_arch = DenseArch(
            max(1, dense_in_features), dense_arch_layer_sizes, device
        )
        num_features = len(self.sparse_arch.names)
        self.inter_arch, interactions = _interaction(num_features, embedding_dim, dcn)
        self.inter_arch.to(device)
        archs = {
            task: OverArch(interactions, over_arch_layer_sizes, device)
            for task in self.tasks
        }
        # With one task, parameters have DLRM's names.
        one = len(archs) == 1
        self.over_arch = archs[self.tasks[0]] if one else nn.ModuleDict(archs)

    def forward(
        self,
        dense_features: Tensor,
        sparse_features: KeyedJaggedTensor,
        learn: LearnBatch | None = None,
        managed_features: KeyedJaggedTensor | None = None,
        sequence_features: KeyedJaggedTensor | None = None,
    ) -> RankerLogits:
        """Score rows.

        Args:
            dense_features: float [B, F].
            sparse_features: KJT over B rows.
            learn: LEARN's inputs, required with LEARN on.
            managed_features: KJT over B rows, see `SparseArch`.
            sequence_features: KJT over B rows, likewise.
        """
        dtype = self.precision if self.training else torch.float32
        with autocast(dtype, self._device_type):
            logits, auxiliary_logits, embedded_dense = self._baseline(
                dense_features,
                sparse_features,
                learn,
                managed_features,
                sequence_features,
            )
        if self.residual is None:
            return RankerLogits(logits, auxiliary_logits)
        ids = None
        if self.history_ids is not None:
            assert learn is not None
            ids = self.history_ids(learn.item_ids)
        added = self.residual(learn, embedded_dense.float(), ids)
        kept = {task: value.detach() for task, value in logits.items()}
        total = {
            task: (kept if self.alone else logits)[task] + added[task]
            for task in self.tasks
        }
        return RankerLogits(total, auxiliary_logits, logits if self.alone else None)

    def _baseline(
        self,
        dense_features: Tensor,
        sparse_features: KeyedJaggedTensor,
        learn: LearnBatch | None,
        managed_features: KeyedJaggedTensor | None,
        sequence_features: KeyedJaggedTensor | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return the logits, the auxiliary ones and the embedded dense features."""
        auxiliary_logits: dict[str, Tensor] = {}
        if self.learn is not None:
            assert learn is not None
            features, heads = self.learn(
                learn.user_vectors, learn.item_vectors, learn.has_vectors
            )
            for task in self.auxiliary_tasks:
                head = heads[task] if self._heads_named else heads
                auxiliary_logits[task] = head.float()
            dense_features = torch.cat([dense_features, features], dim=1)
        if not self.has_dense:
            dense_features = dense_features.new_ones(dense_features.shape[0], 1)
        embedded_dense = self.dense_arch(dense_features)
        embedded_sparse = self.sparse_arch(
            sparse_features, managed_features, sequence_features
        )
        interactions = self.inter_arch(embedded_dense, embedded_sparse)
        logits = {
            task: arch(interactions).squeeze(-1).float()
            for task, arch in self._over_archs()
        }
        return logits, auxiliary_logits, embedded_dense

    def _over_archs(self) -> Iterable[tuple[str, nn.Module]]:
        if isinstance(self.over_arch, nn.ModuleDict):
            return self.over_arch.items()
        return [(self.tasks[0], self.over_arch)]


def _sparse_arch(
    tables: EmbeddingBagCollection | SparseArch, embedding_dim: int
) -> SparseArch:
    if isinstance(tables, SparseArch):
        return tables
    dims = {config.embedding_dim for config in tables.embedding_bag_configs()}
    if dims != {embedding_dim}:
        raise ValueError(
            f"embedding dims {sorted(dims)} and the dense arch's last layer "
            f"{embedding_dim} must be equal"
        )
    return SparseArch(tables, embedding_dim)


def _interaction(
    num_features: int, dim: int, dcn: tuple[int, int] | None
) -> tuple[nn.Module, int]:
    """Return the interaction arch of S features, and the width of its output."""
    if dcn is None:
        pairs = num_features * (num_features + 1) // 2
        return DotProducts(num_features), dim + pairs
    width = (num_features + 1) * dim
    return InteractionDCNArch(num_features, LowRankCrossNet(width, *dcn)), width


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
        logits, auxiliary_logits, baseline = self.ranker(
            batch.dense_features,
            batch.sparse_features,
            batch.learn,
            batch.managed_features,
            batch.sequence_features,
        )
        loss = torch.zeros((), device=batch.weights.device)
        auxiliary = torch.zeros_like(loss)
        for part in (logits, baseline) if self.ranker.alone else (logits,):
            joint = joint_logits(self.tasks, part, self.offsets)
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
