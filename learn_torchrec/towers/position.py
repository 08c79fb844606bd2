"""How far the towers' training is: the best epoch so far, and what a checkpoint keeps.

The best weights travel with every checkpoint, so that a run that goes on from one ends
with the same towers.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchrec.distributed.train_pipeline import TrainPipeline
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from learn_torchrec.towers.batch import TowerBatch
from learn_torchrec.towers.model import TwinTowerTrain
from learn_torchrec.training.checkpoint import Checkpoints, Saved, fast_forward
from learn_torchrec.training.distributed import from_writer, is_writer
from learn_torchrec.training.loop import RunningMean
from learn_torchrec.training.run_log import RunLog
from learn_torchrec.training.sharding import whole_state

_BEST = "best.safetensors"


@dataclass(frozen=True)
class Parts:
    """What a training consists of; `model` wraps `task` for all ranks."""

    task: TwinTowerTrain
    model: nn.Module
    optimizer: KeyedOptimizer | CombinedOptimizer
    pipeline: TrainPipeline[TowerBatch, Any]
    schedule: LambdaLR


class Best:
    """Keeps the weights of the best epoch and says when to stop waiting."""

    def __init__(self, patience: int, metric: str) -> None:
        self.patience = patience
        self.metric = metric
        self.epoch = 0
        self.metrics: Mapping[str, float] = {metric: -1.0}
        self.state: dict[str, Tensor] = {}

    def take(self, epoch: int, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Consider an epoch, on all ranks."""
        # Rank 0 decides: ranks may differ in the last digit of a metric.
        if from_writer(metrics[self.metric] > self.metrics[self.metric]):
            self.epoch, self.metrics = epoch, metrics
            self.state = whole_state(model)

    def is_over(self, epochs: int) -> bool:
        """Whether after so many epochs the wait for a better one is over."""
        return epochs - self.epoch >= self.patience


class Position:
    """How far the training is, and how it is saved and found again."""

    def __init__(
        self,
        parts: Parts,
        best: Best,
        loss: RunningMean,
        log: RunLog,
    ) -> None:
        self.step = 0
        self._parts, self._best = parts, best
        self._loss, self._log = loss, log

    def save(self, checkpoints: Checkpoints) -> None:
        """Save where it is time to; every rank takes part."""
        checkpoints.after_step(
            self.step,
            lambda: {
                "model": self._parts.model.state_dict(),
                "optimizer": self._parts.optimizer.state_dict(),
            },
            lambda: {
                "step": self.step,
                "loss": self._loss.state(),
                "best_epoch": self._best.epoch,
                "best_metrics": dict(self._best.metrics),
                "log_position": self._log.position(),
            },
            functools.partial(_write_best, self._best.state),
        )

    def restore(self, saved: Saved, device: torch.device) -> None:
        """Go on from a checkpoint; every rank takes part."""
        progress = saved.progress
        saved.restore(self._parts.model, self._parts.optimizer)
        self.step = progress["step"]
        fast_forward(self._parts.schedule, self.step)
        self._loss.restore(progress["loss"], device)
        self._best.epoch = progress["best_epoch"]
        self._best.metrics = progress["best_metrics"]
        if self._best.epoch and is_writer():
            self._best.state = load_file(saved.directory / _BEST)
        self._log.go_on(progress["log_position"])


def _write_best(state: dict[str, Tensor], directory: Path) -> None:
    if state:
        save_file(state, directory / _BEST)
