"""The progress of a training besides its weights: step, running means, best epoch.

Both trainers count, save and resume with it; a resumed training gives the same weights
and losses as an uninterrupted one.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from learn_torchrec.training.checkpoint import (
    Checkpoints,
    SavedCheckpoint,
    fast_forward,
)
from learn_torchrec.training.distributed import broadcast_from_rank0, is_writer
from learn_torchrec.training.loop import RunningMean
from learn_torchrec.training.optimizer_state import full_state
from learn_torchrec.training.run_log import RunLog
from learn_torchrec.training.sharding import full_state_dict
from learn_torchrec.training.watchdog import Watchdog

_BEST, _BEST_OPTIMIZER = "best.safetensors", "best_optimizer.safetensors"


class EarlyStopping:
    """Keeps the weights of the best epoch and stops after `patience` worse ones.

    Args:
        patience: epochs without improvement before training stops.
        metric: selects the best epoch; higher is better.
        smoothing: epochs whose mean is compared: an epoch and those before it. The
            metric of few users is noisy, and the best of many is lucky. Means of
            fewer epochs no longer count once so many have been trained.

    Attributes:
        best_epoch: counted from 1; 0 before the first update.
        metrics: of the best epoch.
        weights: of the best epoch, on rank 0 with unsharded tables.
        optimizer: its state then, likewise; see `optimizer_state.named_state`.
    """

    def __init__(self, patience: int, metric: str, smoothing: int = 1) -> None:
        self.patience, self.metric, self._smoothing = patience, metric, smoothing
        self.best_epoch = 0
        self._best, self._latest = -math.inf, list[float]()
        self.metrics: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}
        self.optimizer: dict[str, Tensor] = {}

    def update(
        self,
        epoch: int,
        metrics: Mapping[str, float],
        model: nn.Module,
        optimizer: CombinedOptimizer | KeyedOptimizer | None = None,
    ) -> None:
        """Compare an epoch with the best one; every rank takes part.

        The state of the `optimizer` is kept too, if it is given.
        """
        latest = [*self._latest, metrics[self.metric]][-self._smoothing :]
        # Metrics may differ between ranks in the last digit.
        self._latest, smoothed = broadcast_from_rank0(
            (latest, statistics.fmean(latest))
        )
        if smoothed > self._best or epoch == self._smoothing:
            self.best_epoch, self.metrics = epoch, dict(metrics)
            self._best = smoothed
            self.weights = full_state_dict(model)
            if optimizer is not None:
                self.optimizer = full_state(optimizer)

    def should_stop(self, epochs: int) -> bool:
        """Whether to stop after this number of epochs."""
        return epochs - self.best_epoch >= self.patience

    def state(self) -> dict[str, Any]:
        """Return the JSON part of a checkpoint; `writer` adds the weights."""
        return {
            "best_epoch": self.best_epoch,
            "metrics": self.metrics,
            "best": self._best if self.best_epoch else None,
            "latest": self._latest,
        }

    def writer(self) -> Callable[[Path], None]:
        """Return a function that writes the current best weights, for rank 0."""
        files = {_BEST: self.weights, _BEST_OPTIMIZER: self.optimizer}

        def write(directory: Path) -> None:
            for name, tensors in files.items():
                if tensors:
                    save_file(tensors, directory / name)

        return write

    def restore(self, state: Mapping[str, Any], directory: Path) -> None:
        """Resume from `state` and the file of `writer`."""
        self.best_epoch, self.metrics = state["best_epoch"], state["metrics"]
        if self.best_epoch:
            self._best, self._latest = state["best"], state["latest"]
        if self.best_epoch and is_writer():
            self.weights = load_file(directory / _BEST)
            if (directory / _BEST_OPTIMIZER).exists():
                self.optimizer = load_file(directory / _BEST_OPTIMIZER)


class TrainState:
    """Counts the steps of a training, saves it and resumes it.

    Args:
        model: wrapped for all ranks.
        optimizer: of the model.
        schedule: of the learning rates; a function of the step alone.
        steps_per_epoch: the same for all epochs.
        log: truncated on resume to its length at the checkpoint.
        checkpoints: to resume from and to write; None for neither.
        means: names of the running means.
        early_stopping: of a training with validation.

    Attributes:
        step: steps taken since the beginning.
        earlier_steps: those of an earlier training with the same log and checkpoints,
            which are numbered on; 0 unless set.
        means: running means by name.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: CombinedOptimizer | KeyedOptimizer,
        schedule: LambdaLR,
        *,
        steps_per_epoch: int,
        log: RunLog,
        checkpoints: Checkpoints | None = None,
        means: tuple[str, ...] = ("loss",),
        early_stopping: EarlyStopping | None = None,
    ) -> None:
        self.step = self.earlier_steps = 0
        self.means = {name: RunningMean() for name in means}
        self.schedule = schedule
        self._model, self._optimizer = model, optimizer
        self._steps_per_epoch = max(steps_per_epoch, 1)
        self._log, self._checkpoints = log, checkpoints
        self._early_stopping = early_stopping

    @property
    def watchdog(self) -> Watchdog | None:
        """The checkpoints' watchdog, which is paused while they are written."""
        return self._checkpoints.watchdog if self._checkpoints else None

    @property
    def is_epoch_end(self) -> bool:
        """Whether the last step was the last of its epoch."""
        return self.step % self._steps_per_epoch == 0

    def resume(self, device: torch.device) -> SavedCheckpoint | None:
        """Restore everything from the newest checkpoint; every rank takes part.

        The arguments and errors are those of `resume_from`.

        Returns:
            The checkpoint, if there is one; its `local` is left to the caller.
        """
        saved = self._checkpoints.latest() if self._checkpoints else None
        if saved is not None:
            self.resume_from(saved, device)
        return saved

    def resume_from(self, saved: SavedCheckpoint, device: torch.device) -> None:
        """Restore everything from a checkpoint; every rank takes part.

        Args:
            saved: the checkpoint; its `local` is left to the caller.
            device: of the running means.

        Raises:
            UserError: it is of other settings, or does not fit the model.
        """
        saved.restore(self._model, self._optimizer)
        progress = saved.progress
        self.step = progress["step"]
        fast_forward(self.schedule, self.step)
        for name, mean in self.means.items():
            mean.restore(progress["means"][name], device)
        if self._early_stopping is not None:
            self._early_stopping.restore(progress["early_stopping"], saved.directory)
        self._log.resume(progress["log_position"])

    def epochs(self, count: int) -> Iterator[tuple[int, int]]:
        """Yield the epochs to train, from 0, with the steps of each already taken."""
        first, taken = divmod(self.step, self._steps_per_epoch)
        for epoch in range(first, count):
            stopping = self._early_stopping
            if stopping is not None and stopping.should_stop(epoch):
                return
            yield epoch, taken
            taken = 0

    def advance(self, **values: Tensor) -> None:
        """Count a step and add its detached scalars to the running means."""
        self.step += 1
        for name, value in values.items():
            self.means[name].add(value)

    def save(
        self,
        local: Callable[[], dict[str, Tensor]] | None = None,
        check: Callable[[float, int], object] | None = None,
        extra: Mapping[str, Any] | None = None,
        pin: bool = False,
    ) -> None:
        """Save if the checkpoints' settings ask for it; every rank takes part.

        Args:
            local: returns this rank's own tensors, for `SavedCheckpoint.local`.
            check: called before saving with the sum of all means over all ranks and
                the step; raises to keep the last good checkpoint.
            extra: further entries of `SavedCheckpoint.progress`, JSON-able.
            pin: see `Checkpoints.after_step`.

        Raises:
            Stopped: SIGTERM arrived, and the step is saved.
            UserError: the step could not be saved, and is pinned or SIGTERM arrived.
        """
        if self._checkpoints is None:
            return

        def tensors() -> dict[str, Any]:
            return {
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "local": local() if local else {},
            }

        def progress() -> dict[str, Any]:
            means = {name: mean.state() for name, mean in self.means.items()}
            if check is not None:
                total = sum(part[0] for parts in means.values() for part in parts)
                check(total, self.step)
            return {
                "step": self.step,
                "means": means,
                "log_position": self._log.position(),
                "early_stopping": stopping and stopping.state(),
                "earlier_steps": self.earlier_steps,
                **(extra or {}),
            }

        stopping = self._early_stopping
        write = None if stopping is None else stopping.writer()
        number = self.earlier_steps + self.step
        self._checkpoints.after_step(number, tensors, progress, write, pin)
