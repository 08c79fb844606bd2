"""Normalised entropy and calibration while training, by `torchrec.metrics`."""

import math

import torch
import torch.distributed as dist
from torchrec.metrics.calibration import CalibrationMetric
from torchrec.metrics.metrics_config import RecTaskInfo
from torchrec.metrics.ne import NEMetric
from torchrec.metrics.rec_metric import RecMetric

from learn_torchrec.ranker.model import RankerOutput

_TASK = "cvr"
_WINDOW_BATCHES = 100


class TrainingMetrics:
    """Metrics of the main logits over the latest rows of all ranks.

    They are of rows that the model had not learned from yet, where a row is seen
    for the first time.

    Args:
        batch_size: rows of a rank's batch.
        device: this rank's.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        world_size = dist.get_world_size()
        self._metrics: dict[str, RecMetric] = {
            name: kind(
                world_size=world_size,
                my_rank=dist.get_rank(),
                batch_size=batch_size,
                tasks=[RecTaskInfo(name=_TASK)],
                window_size=_WINDOW_BATCHES * batch_size * world_size,
                compute_on_all_ranks=True,
            ).to(device)
            for name, kind in (("ne", NEMetric), ("calibration", CalibrationMetric))
        }

    def add(self, output: RankerOutput) -> None:
        """Take one step's detached output."""
        scores = output.logits.sigmoid()
        for metric in self._metrics.values():
            metric.update(
                predictions={_TASK: scores},
                labels={_TASK: output.labels},
                weights={_TASK: output.weights},
            )

    def result(self) -> dict[str, float]:
        """Return the windowed metrics that are defined; every rank takes part."""
        result = {}
        for name, metric in self._metrics.items():
            values = metric.compute()
            key = next(k for k in values if k.rpartition("|")[2] == f"window_{name}")
            value = float(values[key])
            if math.isfinite(value):
                result[name] = value
        return result
