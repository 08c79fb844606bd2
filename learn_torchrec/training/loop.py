"""The training loop over any TorchRec pipeline; only `progress` steps an optimizer."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torchrec.distributed.train_pipeline import TrainPipeline

from learn_torchrec.training.distributed import gather_objects
from learn_torchrec.training.watchdog import Watchdog

Batch = TypeVar("Batch")


def train_epoch(
    pipeline: TrainPipeline[Batch, Any],
    batches: Iterator[Batch],
    schedule: LRScheduler,
    on_step: Callable[[Any], bool | None],
    before_step: Callable[[], None] | None = None,
    watchdog: Watchdog | None = None,
) -> int:
    """Train until `batches` ends; return the number of steps.

    Every rank must yield the same number of batches. `before_step` is called before
    every step, `on_step` after it with the model's detached output; training ends early
    if it returns true, on every rank.
    """
    steps = 0
    pipeline.reset()
    with watchdog or Watchdog(0) as watching:
        while True:
            if before_step is not None:
                before_step()
            try:
                output = pipeline.progress(batches)
            except StopIteration:
                return steps
            schedule.step()
            steps += 1
            if on_step(output):
                return steps
            watching.beat()


class RunningMean:
    """The mean of a scalar over steps, kept on its device until it is read."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def add(self, value: Tensor) -> None:
        """Add one step's value, a detached scalar."""
        self._total = value.clone() if self._total is None else self._total + value
        self._count += 1

    def result(self) -> float:
        """Return the mean over all ranks and reset it; NaN without a value."""
        if self._total is None:
            return float("nan")
        total, count = self._total, self._count
        self._total, self._count = None, 0
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
            count *= torch.distributed.get_world_size()
        return float(total) / count

    def state(self) -> list[list[float]]:
        """Return every rank's sum and count, for JSON; every rank takes part."""
        total = 0.0 if self._total is None else float(self._total)
        return gather_objects([total, self._count])

    def restore(self, state: list[list[float]], device: torch.device) -> None:
        """Resume from a state; another number of ranks shares the sum equally."""
        world_size = torch.distributed.get_world_size()
        if len(state) == world_size:
            total, count = state[torch.distributed.get_rank()]
        else:
            total = sum(part[0] for part in state) / len(state)
            count = state[0][1]
        self._count = int(count)
        self._total = torch.tensor(total, device=device) if count else None
