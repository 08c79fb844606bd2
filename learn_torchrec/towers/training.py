"""Stage 2, training: histories and content vectors in, trained towers out."""

import copy
import logging
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torchrec.distributed.train_pipeline import TrainPipelineBase
from tqdm import tqdm

from learn_torchrec.config import require
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.errors import UserError
from learn_torchrec.towers.batch import TowerBatch, attach_content, epoch_batches
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.holdout import (
    RetrievalConfig,
    RetrievalTask,
    evaluate_towers,
)
from learn_torchrec.towers.loss import LossConfig
from learn_torchrec.towers.model import TowersModelConfig, TwinTower, TwinTowerTrain
from learn_torchrec.towers.sampling import SamplingConfig
from learn_torchrec.training.distributed import from_writer, is_writer
from learn_torchrec.training.loop import RunningMean, train_epoch
from learn_torchrec.training.optim import (
    OptimizerConfig,
    dense_optimizer,
    warmup_cosine,
)
from learn_torchrec.training.run_log import RunLog

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TowersTrainingConfig:
    """How long and in what pieces the towers train.

    Attributes:
        epochs: passes over the training users at most.
        patience: passes without a better validation recall before stopping.
        batch_size: users in a global batch, over all ranks.
        seed: of weights, sampling and order.
    """

    epochs: int = 10
    patience: int = 10
    batch_size: int = 240
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size"):
            require(getattr(self, name) > 0, f"towers.training.{name}: at least 1")


@dataclass(frozen=True, kw_only=True)
class TowersConfig:
    """Everything that decides the towers, given data, split and content."""

    model: TowersModelConfig = field(default_factory=TowersModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TowersTrainingConfig = field(default_factory=TowersTrainingConfig)


@dataclass(frozen=True, kw_only=True)
class TrainedTowers:
    """The result: weights of the best epoch, and how training went."""

    state: dict[str, Tensor]
    facts: dict[str, Any]


def build_towers(config: TowersModelConfig, mean: Tensor, std: Tensor) -> TwinTower:
    """Return fresh towers; `mean` and `std` standardise the content, [C] each."""
    return TwinTower(PreferenceEncoder(mean, std, config.encoder), config.item_tower)


def train_towers(
    config: TowersConfig,
    train: SequenceSet,
    validation: RetrievalTask,
    store: ContentStore,
    retrieval: RetrievalConfig,
    device: torch.device,
    log: RunLog,
) -> TrainedTowers:
    """Train on all ranks and keep the weights with the best validation recall.

    One rank and several compute the same, dropout apart: its masks follow from
    (seed, epoch, rank).

    Args:
        config: of the towers.
        train: users and events to learn from.
        validation: users to choose the best epoch by.
        store: of the content vectors.
        retrieval: how validation is judged; its first cut-off's recall decides.
        device: this rank's.
        log: gets a line for each epoch.

    Raises:
        UserError: settings that do not fit the data or the number of ranks, or a
            loss that is not finite, with the users of the batch.
    """
    _check(config, train, store)
    training, metric = config.training, f"r@{retrieval.ks[0]}"
    task, pipeline, schedule = _prepare(config, train, store, device)
    best, loss = _Best(training.patience, metric), RunningMean()

    def watch(output: tuple[Tensor, Tensor]) -> None:
        value, users = output
        _refuse_non_finite(value, users, train)
        loss.add(value)

    for epoch in _progress(training.epochs):
        speed = _Speed()
        batches = epoch_batches(
            train,
            config.sampling,
            batch_size=training.batch_size,
            seed=training.seed,
            epoch=epoch,
        )
        task.train()
        _seed_dropout(training.seed, epoch)
        train_epoch(
            pipeline, attach_content(speed.count(batches), store), schedule, watch
        )
        line = {"loss": loss.result(), "temperature": float(task.temperature())}
        line |= speed.result()
        length = config.sampling.history_length
        metrics = evaluate_towers(
            task.towers, store, validation, length, device, retrieval
        )
        log.write(step=epoch + 1, total=training.epochs, **line, **metrics)
        logger.info(
            "epoch %d: loss %.4f, validation %s %.4f, %.0f users/s",
            *(epoch + 1, line["loss"], metric, metrics[metric], line["users_per_s"]),
        )
        # Rank 0 decides: ranks may differ in the last digit of a metric.
        if from_writer(best.take(epoch + 1, metrics, task.towers)):
            break
    facts = {
        "train_users": len(train),
        "best_epoch": best.epoch,
        "validation": best.metrics,
        "parameters": sum(p.numel() for p in task.towers.parameters()),
    }
    return TrainedTowers(state=best.state, facts=facts)


def _prepare(
    config: TowersConfig, train: SequenceSet, store: ContentStore, device: torch.device
) -> tuple[TwinTowerTrain, TrainPipelineBase[TowerBatch, Any], LRScheduler]:
    """Return the fresh task, its pipeline over all ranks and the schedule."""
    torch.manual_seed(config.training.seed)
    mean, std = (torch.from_numpy(x).float() for x in (store.mean, store.std))
    if not config.model.standardize:
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    towers = build_towers(config.model, mean, std)
    task = TwinTowerTrain(towers, config.loss, _log_q(train, len(store))).to(device)
    optimizer = dense_optimizer(task.named_parameters(), config.optimizer)
    pipeline: TrainPipelineBase[TowerBatch, Any] = TrainPipelineBase(
        DistributedDataParallel(task), optimizer, device
    )
    steps = config.training.epochs * (len(train) // config.training.batch_size)
    return task, pipeline, warmup_cosine(optimizer, steps, config.optimizer.warmup)


def _progress(epochs: int) -> Iterator[int]:
    is_off = None if is_writer() else True  # None: off where there is no terminal
    yield from tqdm(range(epochs), desc="towers", unit="epoch", disable=is_off)


class _Speed:
    """Users and tokens that pass this rank in a second, and the memory's peak."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._users = 0
        self._tokens = 0

    def count(self, batches: Iterator[TowerBatch]) -> Iterator[TowerBatch]:
        """Pass batches on and count what is in them."""
        for batch in batches:
            self._users += len(batch.users)
            self._tokens += len(batch.history) + len(batch.target)
            yield batch

    def result(self) -> dict[str, float]:
        """Rates of all ranks together, as one rank sees them."""
        scale = dist.get_world_size() / (time.monotonic() - self._start)
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "users_per_s": round(self._users * scale, 1),
            "tokens_per_s": round(self._tokens * scale, 1),
            "peak_memory_mb": round(peak, 1),
        }


class _Best:
    """Keeps the weights of the best epoch and says when to stop waiting."""

    def __init__(self, patience: int, metric: str) -> None:
        self.patience = patience
        self.metric = metric
        self.epoch = 0
        self.metrics: Mapping[str, float] = {metric: -1.0}
        self.state: dict[str, Tensor] = {}

    def take(self, epoch: int, metrics: Mapping[str, float], model: nn.Module) -> bool:
        """Consider an epoch; true when training should stop."""
        if metrics[self.metric] > self.metrics[self.metric]:
            self.epoch, self.metrics = epoch, metrics
            self.state = {
                name: value.detach().cpu().clone()
                for name, value in copy.copy(model.state_dict()).items()
            }
        return epoch - self.epoch >= self.patience


def _check(config: TowersConfig, train: SequenceSet, store: ContentStore) -> None:
    vector_dim = config.model.encoder.vector_dim
    if config.model.item_tower == "content" and vector_dim != store.dim:
        raise UserError(
            f"towers.model.item_tower=content compares with content vectors of dim "
            f"{store.dim}; set towers.model.encoder.vector_dim to it (now {vector_dim})"
        )
    if train.lengths.min() <= config.sampling.min_history:
        raise UserError(
            f"towers.sampling.min_history={config.sampling.min_history}: a training "
            f"user has {train.lengths.min()} events and needs one more than that; "
            "raise split.min_events or lower it"
        )
    longest = max(config.sampling.history_length, config.sampling.target_length)
    if 0 < config.model.encoder.max_positions < longest:
        raise UserError(
            f"towers.model.encoder.max_positions={config.model.encoder.max_positions} "
            f"is less than the longest sequence, {longest}; raise it"
        )


def _log_q(train: SequenceSet, num_items: int) -> Tensor:
    """Log share of each item among the training events; unseen items count once."""
    counts = np.maximum(np.bincount(train.items, minlength=num_items), 1)
    return torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32))


def _seed_dropout(seed: int, epoch: int) -> None:
    numbers = np.random.SeedSequence([seed, epoch, dist.get_rank()])
    torch.manual_seed(int(numbers.generate_state(1)[0]))


def _refuse_non_finite(loss: Tensor, users: Tensor, train: SequenceSet) -> None:
    if not torch.isfinite(loss):
        ids = train.user_ids.take(pa.array(users.cpu().numpy())).to_pylist()
        raise UserError(
            f"the loss is {loss.item()} in a batch with the users {ids}; lower "
            "towers.optimizer.learning_rate, or look at their items' content"
        )
