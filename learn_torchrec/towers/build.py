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
from learn_torchrec.towers.repeat import RepeatConsumption
from learn_torchrec.towers.sampling import SamplingConfig
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
    mean: Tensor,
    std: Tensor,
    event_counts: Tensor,
    device: torch.device | None = None,
    repeat_log_odds: Tensor | None = None,
) -> TwinTower:
    """Return freshly initialized towers.

    Args:
        config: of the model.
        mean: float32 [C], subtracted from the content vectors.
        std: float32 [C], divides them.
        event_counts: int64 [N], training events of each catalogue item.
        device: of the item-ID table; "meta" where TorchRec shards and fills it.
        repeat_log_odds: float32 [N], see `towers.repeat`; None for zeros.
    """
    shape = config.encoder
    ids = None
    if config.inputs != "content":
        ids = ItemIds(event_counts, shape.width, config.id_shrinkage, device)
    encoder = PreferenceEncoder(mean, std, shape, reads_content=config.inputs != "id")
    repeat = None
    if config.repeat:
        if repeat_log_odds is None:
            repeat_log_odds = torch.zeros(len(event_counts))
        repeat = RepeatConsumption(repeat_log_odds, config.repeat_length)
    return TwinTower(encoder, config.item_tower, ids, repeat)


def build_objective(config: TowersConfig, event_counts: Tensor) -> Objective:
    """Return the configured objective; event_counts is int64 [N], by item."""
    make = _OBJECTIVES[config.loss.objective]
    past_length = config.model.repeat_length if config.model.repeat else 0
    return make(config.loss, config.sampling, event_counts, past_length)


def build_task(
    config: TowersConfig,
    mean: Tensor,
    std: Tensor,
    event_counts: Tensor,
    initial: InitialTowers | None = None,
    repeat_log_odds: Tensor | None = None,
) -> TwinTowerTrain:
    """Return a fresh training task; its ID table, if any, is on "meta".

    See `build_towers` for the arguments. `initial` replaces the initial weights of
    everything but the ID table.

    Raises:
        UserError: the initial weights have another shape.
    """
    torch.manual_seed(config.training.seed)
    if not config.model.standardize:
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    towers = build_towers(
        *(config.model, mean, std, event_counts, torch.device("meta"), repeat_log_odds)
    )
    if initial is not None:
        load_encoder(towers.encoder, initial.encoder)
        if towers.repeat is not None and initial.repeat is not None:
            load_repeat(towers.repeat, initial.repeat)
    towers.encoder.precision = DTYPES[config.training.precision]
    task = TwinTowerTrain(towers, build_objective(config, event_counts), config.loss)
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
