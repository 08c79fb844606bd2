"""Stage 2, training: histories and content vectors in, trained towers out."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
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
    _check(config, train)
    metric = f"r@{retrieval.ks[0]}"
    training = config.training
    torch.manual_seed(training.seed)
    mean, std = (torch.from_numpy(x).float() for x in (store.mean, store.std))
    towers = build_towers(config.model, mean, std)
    task = TwinTowerTrain(towers, config.loss, _log_q(train, len(store))).to(device)
    optimizer = dense_optimizer(task.named_parameters(), config.optimizer)
    pipeline: TrainPipelineBase[TowerBatch, Any] = TrainPipelineBase(
        DistributedDataParallel(task), optimizer, device
    )
    steps = len(train) // training.batch_size
    schedule = warmup_cosine(
        optimizer, training.epochs * steps, config.optimizer.warmup
    )
    best = _Best(training.patience, metric)
    loss = RunningMean()

    def watch(output: tuple[Tensor, Tensor]) -> None:
        value, users = output
        _refuse_non_finite(value, users, train)
        loss.add(value)

    bar = tqdm(
        total=training.epochs, desc="towers", unit="epoch", disable=_bar_is_off()
    )
    for epoch in range(training.epochs):
        batches = epoch_batches(
            train,
            config.sampling,
            batch_size=training.batch_size,
            seed=training.seed,
            epoch=epoch,
        )
        task.train()
        _seed_dropout(training.seed, epoch)
        train_epoch(pipeline, attach_content(batches, store), schedule, watch)
        metrics = evaluate_towers(
            towers,
            store,
            validation,
            config.sampling.history_length,
            device,
            retrieval,
        )
        line = {"loss": loss.result(), **metrics}
        log.write(step=epoch + 1, total=training.epochs, **line)
        logger.info(
            "epoch %d: loss %.4f, validation %s %.4f",
            epoch + 1,
            line["loss"],
            metric,
            metrics[metric],
        )
        bar.update()
        # Rank 0 decides: ranks may differ in the last digit of a metric.
        if from_writer(best.take(epoch + 1, metrics, towers)):
            break
    bar.close()
    return TrainedTowers(
        state=best.state,
        facts={
            "train_users": len(train),
            "best_epoch": best.epoch,
            "validation": best.metrics,
            "parameters": sum(p.numel() for p in task.parameters()),
        },
    )


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


def _check(config: TowersConfig, train: SequenceSet) -> None:
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


def _bar_is_off() -> bool | None:
    return None if is_writer() else True
