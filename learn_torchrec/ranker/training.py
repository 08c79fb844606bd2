"""Stage 3, training: impressions, ID tables and LEARN's vectors to a CVR ranker."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
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
from learn_torchrec.ranker.metrics import TrainingMetrics
from learn_torchrec.ranker.model import LearnRanker, LearnRankerTrain, RankerOutput
from learn_torchrec.ranker.rows import FeaturesConfig, RankingRows, RowsReport
from learn_torchrec.ranker.stream import StreamConfig, StreamedRows
from learn_torchrec.ranker.tables import (
    ShardingConfig,
    embedding_bag_collection,
    managed_collection,
    refuse_managed,
    sharding_kinds,
)
from learn_torchrec.ranker.warm_start import WarmStart, warm_start
from learn_torchrec.training.checkpoint import Checkpoints, fast_forward
from learn_torchrec.training.distributed import gather_objects, is_writer
from learn_torchrec.training.loop import RunningMean, train_epoch
from learn_torchrec.training.optim import (
    Decay,
    OptimizerConfig,
    dense_optimizer,
    warmup_decay,
)
from learn_torchrec.training.run_log import RunLog
from learn_torchrec.training.sharding import init_tables, shard_tables, table_of
from learn_torchrec.training.table_optimizer import (
    TableOptimizerConfig,
    replicated_optimizer,
)
from learn_torchrec.training.tensors import load_tensors, save_tensors

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
        learn: what the ranker gets where it is given vectors: "all", the "vectors"
            without an auxiliary network, the "fusion" embedding only, or nothing
            ("off": the baseline).
        fusion_hidden_dim: between the auxiliary network's two linear layers.
        fusion_dim: of the fusion embedding.
        auxiliary_weight: lambda, of the auxiliary network's CVR loss.
        stop_gradient: keep the main loss from shaping the fusion embedding.
    """

    embedding_dim: int = 32
    dense_layers: tuple[int, ...] = (128,)
    over_layers: tuple[int, ...] = (128, 64)
    learn: Literal["all", "vectors", "fusion", "off"] = "all"
    fusion_hidden_dim: int = 128
    fusion_dim: int = 64
    auxiliary_weight: float = 1.0
    stop_gradient: bool = False

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
        decay: of all learning rates, tables' too, after their warm-up.
        eviction_interval: steps between two moments at which `managed_collision`
            features may give up rare ids for new ones.
        stream: how rows are read.
        seed: of weights and order.
    """

    epochs: int = 1
    batch_size: int = 2048
    decay: Decay = "cosine"
    eviction_interval: int = 100
    stream: StreamConfig = field(default_factory=StreamConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eviction_interval"):
            require(getattr(self, name) > 0, f"ranker.training.{name}: at least 1")


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Everything that decides the ranker, given impressions and vectors.

    Attributes:
        features: the columns it reads.
        model: its shape.
        optimizer: of everything but the tables; its warm-up is theirs too.
        tables: the tables' optimizer.
        sharding: of the tables.
        training: how long.
    """

    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    model: RankerModelConfig = field(default_factory=RankerModelConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3)
    )
    tables: TableOptimizerConfig = field(default_factory=TableOptimizerConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    training: RankerTrainingConfig = field(default_factory=RankerTrainingConfig)


def build_task(
    config: RankerConfig, vector_dim: int | None, device: torch.device
) -> LearnRankerTrain:
    """Return a fresh ranker before it is sharded: its tables hold no values yet.

    Args:
        config: of the ranker.
        vector_dim: D with LEARN on, None for the baseline.
        device: this rank's.
    """
    torch.manual_seed(config.training.seed)
    shape, features = config.model, config.features
    learn = None
    if vector_dim is not None and shape.learn != "off":
        network = None
        if shape.learn != "vectors":
            network = AuxiliaryNetwork(
                vector_dim, shape.fusion_hidden_dim, shape.fusion_dim, device=device
            )
        learn = LearnFeatures(
            vector_dim, network, shape.learn, shape.stop_gradient, device=device
        )
    ranker = LearnRanker(
        embedding_bag_collection(features.sparse, shape.embedding_dim),
        dense_in_features=len(features.dense),
        dense_arch_layer_sizes=[*shape.dense_layers, shape.embedding_dim],
        over_arch_layer_sizes=[*shape.over_layers, 1],
        learn=learn,
        managed_collection=managed_collection(
            features.sparse,
            shape.embedding_dim,
            config.training.eviction_interval,
            device,
        ),
        device=device,
    )
    return LearnRankerTrain(ranker, shape.auxiliary_weight)


def build_ranker(
    config: RankerConfig,
    vector_dim: int | None,
    device: torch.device,
    on_plan: Callable[[str], None] | None = None,
) -> DistributedModelParallel:
    """Return a fresh ranker, sharded over the ranks.

    Args:
        config: of the ranker.
        vector_dim: D with LEARN on, None for the baseline.
        device: this rank's.
        on_plan: called with the sharding plan as text.

    Raises:
        UserError: tables, or their optimizer, that the backend cannot run.
    """
    sparse = config.features.sparse
    refuse_managed(sparse, config.tables, device)
    task = build_task(config, vector_dim, device)
    kinds = sharding_kinds(sparse, config.sharding)
    model = shard_tables(task, device, config.tables, kinds, on_plan)
    init_tables(model, config.training.seed)
    return model


def ranker_optimizer(
    model: DistributedModelParallel, config: RankerConfig
) -> CombinedOptimizer:
    """Return the optimizers of the tables and of all else, stepped as one.

    Tables step inside the backward pass; replicated ones with the others.
    """
    rest = dict(in_backward_optimizer_filter(model.named_parameters()))
    replicated = {name: value for name, value in rest.items() if table_of(name)}
    others = ((name, value) for name, value in rest.items() if name not in replicated)
    parts = [model.fused_optimizer, dense_optimizer(others, config.optimizer)]
    if replicated:
        parts.append(replicated_optimizer(replicated, config.tables))
    return CombinedOptimizer(parts)


def train_ranker(
    config: RankerConfig,
    rows: RankingRows | StreamedRows,
    device: torch.device,
    log: RunLog,
    on_plan: Callable[[str], None] | None = None,
    checkpoints: Checkpoints | None = None,
    earlier: WarmStart | None = None,
) -> tuple[DistributedModelParallel, dict[str, Any]]:
    """Train on all ranks.

    With checkpoints it goes on from the last one, to the same weights and losses; NE
    and calibration of the log, which look back over a window, then start anew, and a
    stream counts what is missing in the rows that it read itself.

    Returns:
        The trained model and facts for the manifest.

    Raises:
        UserError: settings that do not fit the rows or the number of ranks, a plan
            that the backend cannot run, or a loss that is not finite.
    """
    vector_dim = None if rows.vectors is None else rows.vectors.dim
    if config.model.learn == "off":
        vector_dim = None
    if vector_dim is None and not config.features.dense:
        raise UserError(
            "ranker.features.dense: DLRM without LEARN needs at least one number "
            "column; name one"
        )
    training = config.training
    model = build_ranker(config, vector_dim, device, on_plan)
    if earlier is not None:
        warm_start(model, config.features, earlier)
    optimizer = ranker_optimizer(model, config)
    steps = training.epochs * (len(rows) // training.batch_size)
    schedule = warmup_decay(optimizer, steps, config.optimizer.warmup, training.decay)
    pipeline: TrainPipelineSparseDist[RankingBatch, Any] = TrainPipelineSparseDist(
        model, optimizer, device
    )
    progress = _Progress(steps, training.batch_size, device, log)
    saved = None if checkpoints is None else checkpoints.latest()
    if saved is not None:
        saved.restore(model, optimizer)
        progress.restore(saved.progress, device)
        fast_forward(schedule, progress.step)

    def on_step(output: RankerOutput) -> None:
        bar.update()
        progress.add(output)
        if checkpoints is not None:
            checkpoints.after_step(
                progress.step,
                lambda: {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
                progress.state,
            )

    model.train()
    per_epoch = len(rows) // training.batch_size
    first_epoch, taken = divmod(progress.step, max(per_epoch, 1))
    with tqdm(
        total=steps, initial=progress.step, desc="ranker", disable=_bar_is_off()
    ) as bar:
        for epoch in range(first_epoch, training.epochs):
            batches = _batches(rows, training, epoch, taken)
            train_epoch(
                pipeline,
                batches,
                schedule,
                on_step,
                hang_seconds=checkpoints.hang_seconds if checkpoints else 0.0,
            )
            taken = 0
    pipeline.detach()
    report = _report(rows)
    if is_writer():
        report.log()
    logger.info("trained on %d rows in %d steps", len(rows), steps)
    return model, {"steps": steps, **report.facts()}


def _batches(
    rows: RankingRows | StreamedRows,
    training: RankerTrainingConfig,
    epoch: int,
    start: int,
) -> Iterator[RankingBatch]:
    order = {"batch_size": training.batch_size, "seed": training.seed}
    order |= {"epoch": epoch, "start": start}
    if isinstance(rows, StreamedRows):
        return rows.batches(**order)
    return training_batches(rows, **order)


def _report(rows: RankingRows | StreamedRows) -> RowsReport:
    if isinstance(rows, RankingRows):
        return rows.report()
    first, *others = gather_objects(rows.report)  # each rank read its own rows
    for other in others:
        first = first + other
    result: RowsReport = first
    return result


class _Progress:
    """Logs loss, NE and calibration of the training steps, some fifty times."""

    def __init__(
        self, steps: int, batch_size: int, device: torch.device, log: RunLog
    ) -> None:
        self._steps, self._log = steps, log
        self._interval = max(1, steps // 50)
        per_rank = max(1, batch_size // torch.distributed.get_world_size())
        self._metrics = TrainingMetrics(per_rank, device)
        self._loss, self._auxiliary = RunningMean(), RunningMean()
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, for JSON; every rank takes part.

        Raises:
            UserError: a loss since the last line of the log was not finite.
        """
        loss = self._loss.state()
        # Weights that are no numbers any more must not replace the last good ones.
        _finite(sum(total for total, _ in loss), self.step)
        return {
            "step": self.step,
            "loss": loss,
            "auxiliary_loss": self._auxiliary.state(),
            "log_position": self._log.position(),
        }

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint's state."""
        self.step = state["step"]
        self._loss.restore(state["loss"], device)
        self._auxiliary.restore(state["auxiliary_loss"], device)
        self._log.go_on(state["log_position"])

    def add(self, output: RankerOutput) -> None:
        """Take one step's output; every rank takes part."""
        self.step += 1
        self._loss.add(output.loss)
        self._auxiliary.add(output.auxiliary_loss)
        self._metrics.add(output)
        if self.step % self._interval == 0 or self.step == self._steps:
            self._log.write(
                step=self.step,
                total=self._steps,
                loss=_finite(self._loss.result(), self.step),
                auxiliary_loss=self._auxiliary.result(),
                **self._metrics.result(),
            )


@torch.no_grad()
def score(
    model: DistributedModelParallel,
    rows: RankingRows,
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Score this rank's share of the rows (see `rank_rows`), through the pipeline.

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
    # In evaluation mode the pipeline neither goes backward nor steps.
    pipeline: TrainPipelineSparseDist[RankingBatch, Any] = TrainPipelineSparseDist(
        model, model.fused_optimizer, device
    )
    parts = [torch.empty(0)]
    mine = len(rank_rows(len(rows)))
    batches = evaluation_batches(rows, batch_size)
    done = 0
    while True:
        try:
            output = pipeline.progress(batches)
        except StopIteration:
            break
        parts.append(torch.sigmoid(output.logits).cpu())
        done = min(done + len(parts[-1]), mine)
        if on_progress is not None:
            on_progress(done, mine)
    pipeline.detach()
    return torch.cat(parts)[:mine]


def save_ranker(model: DistributedModelParallel, directory: Path) -> None:
    """Write the sharded weights; every rank takes part."""
    save_tensors({"model": model.state_dict()}, directory / MODEL_DIRECTORY)


def load_ranker(model: DistributedModelParallel, directory: Path) -> None:
    """Load weights that any number of ranks saved; every rank takes part.

    Raises:
        UserError: weights that cannot be read, or are not this model's.
    """
    state = {"model": model.state_dict()}
    load_tensors(state, directory / MODEL_DIRECTORY)
    model.load_state_dict(state["model"])


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise UserError(
            f"the ranker's loss is {loss} at or before step {step}; lower "
            "ranker.optimizer.learning_rate or ranker.tables.learning_rate, or "
            "scale the features of ranker.features.dense"
        )
    return loss


def _bar_is_off() -> bool | None:
    return None if is_writer() else True
