"""Normalized entropy and calibration while training, by `torchrec.metrics`."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torchrec.metrics.calibration import CalibrationMetric
from torchrec.metrics.metrics_config import RecTaskInfo
from torchrec.metrics.ne import NEMetric
from torchrec.metrics.rec_metric import RecMetric

from learn_torchrec.ranker.model import RankerOutput
from learn_torchrec.ranker.tasks import TaskConfig, joint_logits

_WINDOW_BATCHES = 100


class TrainingMetrics:
    """Metrics of each task over the latest rows of all ranks.

    In the first epoch a row is scored before the model learns from it. Predictions are
    the probabilities of the labels: for a conditional task, the joint probability.
    `batch_size` is that of a rank. With the `offsets` of sampled negatives they are
    those among the rows, as in the loss.
    """

    def __init__(
        self,
        tasks: Sequence[TaskConfig],
        batch_size: int,
        device: torch.device,
        offsets: Mapping[str, float] | None = None,
    ) -> None:
        self._tasks, self._offsets = tasks, offsets
        world_size = dist.get_world_size()
        self._metrics: dict[str, RecMetric] = {
            name: kind(
                world_size=world_size,
                my_rank=dist.get_rank(),
                batch_size=batch_size,
                tasks=[RecTaskInfo(name=task.name) for task in tasks],
                window_size=_WINDOW_BATCHES * batch_size * world_size,
                compute_on_all_ranks=True,
            ).to(device)
            for name, kind in (("ne", NEMetric), ("calibration", CalibrationMetric))
        }

    def add(self, output: RankerOutput) -> None:
        """Add one step's detached output."""
        joint = joint_logits(self._tasks, output.logits, self._offsets)
        predictions = {name: logits.sigmoid() for name, logits in joint.items()}
        labels = {task.name: output.labels[task.label] for task in self._tasks}
        weights = dict.fromkeys(labels, output.weights)
        for metric in self._metrics.values():
            metric.update(predictions=predictions, labels=labels, weights=weights)

    def result(self) -> dict[str, float]:
        """Return the finite windowed metrics; every rank takes part.

        They are `ne` and `calibration` for one task, `ne_<task>` and so on for several.
        """
        result = {}
        for name, metric in self._metrics.items():
            values = metric.compute()
            for task in self._tasks:
                value = float(values[f"{name}-{task.name}|window_{name}"])
                suffix = "" if len(self._tasks) == 1 else f"_{task.name}"
                if math.isfinite(value):
                    result[name + suffix] = value
        return result
