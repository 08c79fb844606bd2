"""Building the towers, their objective, and what trains them on all ranks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torchrec.distributed.train_pipeline import (
    TrainPipeline,
    TrainPipelineBase,
    TrainPipelineSparseDist,
)
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter

from learn_torchrec.towers.batch import TowerBatch
from learn_torchrec.towers.config import TowersConfig
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.ids import ItemIds
from learn_torchrec.towers.model import TowersModelConfig, TwinTower
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.objectives.dense_all_action import DenseAllAction
from learn_torchrec.towers.objectives.next_item import NextItem
from learn_torchrec.towers.popularity import Popularity
from learn_torchrec.towers.repeat import RepeatConsumption
from learn_torchrec.towers.sampling import SamplingConfig
from learn_torchrec.towers.statistics import TowerStatistics
from learn_torchrec.towers.task import Objective, TwinTowerTrain
from learn_torchrec.towers.warm_start import (
    TEMPERATURE,
    InitialTowers,
    load_encoder,
    load_ids,
    load_optimizer_state,
    load_repeat,
)
from learn_torchrec.training.optim import dense_optimizer, warmup_decay
from learn_torchrec.training.precision import DTYPES
from learn_torchrec.training.sharding import init_tables, shard_tables
from learn_torchrec.training.table_optimizer import TableOptimizerConfig

_OBJECTIVES: dict[
    str, Callable[[LossConfig, SamplingConfig, Tensor, int], Objective]
] = {
    "dense_all_action": DenseAllAction,
    "next_item": NextItem,
}


def build_towers(
    config: TowersModelConfig,
    statistics: TowerStatistics,
    device: torch.device | None = None,
) -> TwinTower:
    """Return freshly initialized towers.

    Args:
        config: of the model.
        statistics: of the catalogue and the log.
        device: of the item-ID table; "meta" where TorchRec shards and fills it.
    """
    shape, counts = config.encoder, statistics.event_counts
    ids = None
    if config.inputs != "content":
        ids = ItemIds(counts, shape.width, config.id_shrinkage, device)
    encoder = PreferenceEncoder(
        statistics.mean,
        statistics.std,
        shape,
        reads_content=config.inputs != "id",
        components=statistics.components,
    )
    repeat = None
    if config.repeat:
        known = statistics.repeat
        log_odds = torch.zeros(len(counts)) if known is None else known.log_odds
        repeat = RepeatConsumption(log_odds, config.repeat_length)
    popularity = Popularity(counts) if config.popularity else None
    return TwinTower(encoder, config.item_tower, ids, repeat, popularity)


def build_objective(config: TowersConfig, event_counts: Tensor) -> Objective:
    """Return the configured objective; event_counts is int64 [N], by item."""
    make = _OBJECTIVES[config.loss.objective]
    past_length = config.model.repeat_length if config.model.repeat else 0
    return make(config.loss, config.sampling, event_counts, past_length)


def build_task(
    config: TowersConfig,
    statistics: TowerStatistics,
    initial: InitialTowers | None = None,
) -> TwinTowerTrain:
    """Return a fresh training task; its ID table, if any, is on "meta".

    `initial` replaces the initial weights of everything but the ID table.

    Raises:
        UserError: the initial weights have another shape.
    """
    torch.manual_seed(config.training.seed)
    towers = build_towers(config.model, statistics, torch.device("meta"))
    if towers.repeat is not None and statistics.repeat is not None:
        towers.repeat.start(statistics.repeat.prior, config.loss.temperature)
    if initial is not None:
        load_encoder(towers.encoder, initial.encoder)
        if towers.repeat is not None and initial.repeat is not None:
            load_repeat(towers.repeat, initial.repeat)
    towers.encoder.precision = DTYPES[config.training.precision]
    objective = build_objective(config, statistics.event_counts)
    task = TwinTowerTrain(towers, objective, config.loss)
    if initial is not None and config.loss.learn_temperature:
        learned = initial.optimizer.get(TEMPERATURE, task.log_temperature)
        task.log_temperature.data.copy_(learned)
    return task


@dataclass(frozen=True)
class Trainer:
    """A task wrapped for all ranks, with its optimizer, pipeline and schedule.

    Attributes:
        task: the task inside `model`, with the sharded table.
        model: DDP, or DMP where there is an ID table.
    """

    task: TwinTowerTrain
    model: nn.Module
    optimizer: KeyedOptimizer | CombinedOptimizer
    pipeline: TrainPipeline[TowerBatch, Any]
    schedule: LambdaLR


def build_trainer(
    task: TwinTowerTrain,
    config: TowersConfig,
    steps: int,
    device: torch.device,
    initial: InitialTowers | None = None,
) -> Trainer:
    """Move a fresh task to this rank's device and wrap it for all ranks.

    `steps` are those of the whole training; the ID table starts from `initial`.
    """
    # TorchRec places the table; everything else moves here.
    task._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
    model: nn.Module
    optimizer: KeyedOptimizer | CombinedOptimizer
    pipeline: TrainPipeline[TowerBatch, Any]
    if task.towers.ids is None:
        optimizer = dense_optimizer(task.named_parameters(), config.optimizer)
        # Buffers are equal on every rank and never change.
        model = DistributedDataParallel(task, broadcast_buffers=False)
        pipeline = TrainPipelineBase(model, optimizer, device)
    else:
        tables = TableOptimizerConfig(learning_rate=config.training.table_learning_rate)
        model = shard_tables(task, device, tables)
        init_tables(model, config.training.seed)
        if initial is not None:
            load_ids(model, initial)
        rest = in_backward_optimizer_filter(model.named_parameters())
        dense = dense_optimizer(rest, config.optimizer)
        optimizer = CombinedOptimizer([model.fused_optimizer, dense])
        pipeline = TrainPipelineSparseDist(model, optimizer, device)
        assert isinstance(model.module, TwinTowerTrain)
        task = model.module
    if initial is not None:
        load_optimizer_state(optimizer, initial)
    schedule = warmup_decay(optimizer, steps, config.optimizer.warmup)
    return Trainer(task, model, optimizer, pipeline, schedule)
