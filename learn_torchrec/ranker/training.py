"""Stage 3, training: impressions, ID tables and LEARN's vectors to a CVR ranker."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter
from tqdm import tqdm

from learn_torchrec.config import require
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.auxiliary import AuxiliaryNetwork
from learn_torchrec.ranker.batch import (
    RankingBatch,
    evaluation_batches,
    rank_rows,
    training_batches,
)
from learn_torchrec.ranker.features import LearnFeatures
from learn_torchrec.ranker.model import LearnRanker, LearnRankerTrain
from learn_torchrec.ranker.rows import FeaturesConfig, RankingRows
from learn_torchrec.ranker.tables import embedding_bag_collection
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.loop import RunningMean, train_epoch
from learn_torchrec.training.optim import (
    OptimizerConfig,
    dense_optimizer,
    warmup_cosine,
)
from learn_torchrec.training.run_log import RunLog
from learn_torchrec.training.sharding import init_tables, shard

logger = logging.getLogger(__name__)

KIND_RANKER = "ranker"
MODEL_DIRECTORY = "model"


@dataclass(frozen=True, kw_only=True)
class RankerModelConfig:
    """Shape of the ranker.

    Attributes:
        embedding_dim: of every ID feature; a multiple of 4.
        dense_layers: hidden sizes of the bottom MLP, before the embedding dim.
        over_layers: hidden sizes of the top MLP, before the logit.
        fusion_hidden_dim: between the auxiliary network's two linear layers.
        fusion_dim: of the fusion embedding.
        auxiliary_weight: lambda, of the auxiliary network's CVR loss.
    """

    embedding_dim: int = 32
    dense_layers: tuple[int, ...] = (128,)
    over_layers: tuple[int, ...] = (128, 64)
    fusion_hidden_dim: int = 128
    fusion_dim: int = 64
    auxiliary_weight: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.embedding_dim > 0 and self.embedding_dim % 4 == 0,
            "ranker.model.embedding_dim: a multiple of 4",
        )
        sizes = (*self.dense_layers, *self.over_layers)
        sizes += (self.fusion_hidden_dim, self.fusion_dim)
        require(min(sizes) > 0, "ranker.model: layer sizes of at least 1")
        require(len(self.over_layers) > 0, "ranker.model.over_layers: at least one")
        require(self.auxiliary_weight >= 0, "ranker.model.auxiliary_weight: at least 0")


@dataclass(frozen=True, kw_only=True)
class RankerTrainingConfig:
    """How long and in what pieces the ranker trains.

    Attributes:
        epochs: passes over the training rows.
        batch_size: rows in a global batch, over all ranks.
        table_learning_rate: of the ID tables' row-wise Adagrad.
        seed: of weights and order.
    """

    epochs: int = 1
    batch_size: int = 2048
    table_learning_rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) > 0, f"ranker.training.{name}: at least 1")
        require(
            self.table_learning_rate > 0, "ranker.training.table_learning_rate: above 0"
        )


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Everything that decides the ranker, given impressions and vectors."""

    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    model: RankerModelConfig = field(default_factory=RankerModelConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3)
    )
    training: RankerTrainingConfig = field(default_factory=RankerTrainingConfig)


def build_ranker(
    config: RankerConfig, vector_dim: int | None, device: torch.device
) -> DistributedModelParallel:
    """Return a fresh ranker, sharded over the ranks.

    Args:
        config: of the ranker.
        vector_dim: D with LEARN on, None for the baseline.
        device: this rank's.
    """
    torch.manual_seed(config.training.seed)
    shape = config.model
    learn = None
    if vector_dim is not None:
        network = AuxiliaryNetwork(
            vector_dim, shape.fusion_hidden_dim, shape.fusion_dim, device=device
        )
        learn = LearnFeatures(vector_dim, network, device=device)
    ranker = LearnRanker(
        embedding_bag_collection(config.features.sparse, shape.embedding_dim),
        dense_in_features=len(config.features.dense),
        dense_arch_layer_sizes=[*shape.dense_layers, shape.embedding_dim],
        over_arch_layer_sizes=[*shape.over_layers, 1],
        learn=learn,
        device=device,
    )
    task = LearnRankerTrain(ranker, shape.auxiliary_weight)
    model = shard(task, device, config.training.table_learning_rate)
    init_tables(model, config.training.seed)
    return model


def train_ranker(
    config: RankerConfig, rows: RankingRows, device: torch.device, log: RunLog
) -> tuple[DistributedModelParallel, dict[str, Any]]:
    """Train on all ranks.

    Returns:
        The trained model and facts for the manifest.

    Raises:
        UserError: settings that do not fit the rows or the number of ranks, or a
            loss that is not finite.
    """
    vector_dim = None if rows.vectors is None else rows.vectors.dim
    if vector_dim is None and not config.features.dense:
        raise UserError(
            "ranker.features.dense: DLRM without LEARN needs at least one number "
            "column; name one"
        )
    model = build_ranker(config, vector_dim, device)
    dense = dense_optimizer(
        in_backward_optimizer_filter(model.named_parameters()), config.optimizer
    )
    optimizer = CombinedOptimizer([model.fused_optimizer, dense])
    training = config.training
    steps = training.epochs * (len(rows) // training.batch_size)
    schedule = warmup_cosine(optimizer, steps, config.optimizer.warmup)
    pipeline: TrainPipelineSparseDist[RankingBatch, Any] = TrainPipelineSparseDist(
        model, optimizer, device
    )
    loss = RunningMean()
    step = 0
    with tqdm(total=steps, desc="ranker", disable=_bar_is_off()) as bar:

        def on_step(output: tuple[Tensor, Tensor, Tensor]) -> None:
            nonlocal step
            loss.add(output[0])
            step += 1
            bar.update()
            if step % _log_interval(steps) == 0 or step == steps:
                log.write(step=step, total=steps, loss=_finite(loss.result(), step))

        model.train()
        for epoch in range(training.epochs):
            batches = training_batches(
                rows, batch_size=training.batch_size, seed=training.seed, epoch=epoch
            )
            train_epoch(pipeline, batches, schedule, on_step)
    pipeline.detach()
    facts = {"rows": len(rows), "steps": steps, "coverage": rows.coverage()}
    logger.info("trained on %d rows in %d steps", len(rows), steps)
    return model, facts


@torch.no_grad()
def score(
    model: DistributedModelParallel,
    rows: RankingRows,
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Score this rank's share of the rows (see `rank_rows`).

    Args:
        model: sharded over the ranks.
        rows: all of them.
        batch_size: rows of a rank's batch.
        device: this rank's.
        on_progress: called with the number of rows done and of this rank's.

    Returns:
        Probabilities, float32 [this rank's rows] on the CPU.
    """
    model.eval()
    parts = [torch.empty(0)]
    mine = len(rank_rows(len(rows)))
    for batch in _moved(evaluation_batches(rows, batch_size), device):
        _, (_, logits, _) = model(batch)
        parts.append(torch.sigmoid(logits).cpu())
        if on_progress is not None:
            on_progress(min(sum(map(len, parts)), mine), mine)
    return torch.cat(parts)[:mine]


def save_ranker(model: DistributedModelParallel, directory: Path) -> None:
    """Write the sharded weights; every rank takes part."""
    dcp.save(
        {"model": model.state_dict()}, checkpoint_id=str(directory / MODEL_DIRECTORY)
    )


def load_ranker(model: DistributedModelParallel, directory: Path) -> None:
    """Load weights that any number of ranks saved; every rank takes part."""
    state = {"model": model.state_dict()}
    path = directory / MODEL_DIRECTORY
    try:
        dcp.load(
            state,
            checkpoint_id=str(path),
            planner=dcp.DefaultLoadPlanner(flatten_sharded_tensors=False),
        )
    except (dcp.api.CheckpointException, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{path}: cannot be read ({reason}); train the ranker again"
        ) from None
    model.load_state_dict(state["model"])


def _moved(
    batches: Iterator[RankingBatch], device: torch.device
) -> Iterator[RankingBatch]:
    for batch in batches:
        yield batch.to(device)


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise UserError(
            f"the ranker's loss is {loss} at or before step {step}; lower "
            "ranker.optimizer.learning_rate or ranker.training.table_learning_rate, or "
            "scale the features of ranker.features.dense"
        )
    return loss


def _log_interval(steps: int) -> int:
    return max(1, steps // 50)


def _bar_is_off() -> bool | None:
    return None if is_writer() else True
