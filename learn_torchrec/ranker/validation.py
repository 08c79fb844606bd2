"""Validation while a ranker trains: metrics of held-out rows, and the best step.

The metrics are the evaluation's own: exact, over the rows of all ranks.
"""

import functools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel

from learn_torchrec.arrays import Float32Array
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.evaluation.auc import RankingMetrics
from learn_torchrec.evaluation.communicator import TorchCommunicator
from learn_torchrec.evaluation.likelihood import CALIBRATION, NE
from learn_torchrec.evaluation.metric import Metric
from learn_torchrec.evaluation.pooled_auc import AUC
from learn_torchrec.evaluation.stream import MetricsStream
from learn_torchrec.evaluation.user_auc import UAUC
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.features.dense import encode_rates
from learn_torchrec.ranker.impressions import Impressions, Part
from learn_torchrec.ranker.scoring import scorer
from learn_torchrec.ranker.tasks import describe_tasks
from learn_torchrec.schema import SAMPLING_RATE, USER_ID, WEIGHT
from learn_torchrec.training.distributed import (
    broadcast_from_rank0,
    is_writer,
    raise_on_all_ranks,
)

_METRICS: tuple[Metric, ...] = (AUC, UAUC, NE, CALIBRATION)
_PART_ROWS = 131_072  # of a rank: read and scored together
_VALUE = "value"  # what selects an evaluation; higher is better

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Training rows cut in two at a moment.

    Attributes:
        earlier: to train on until the best step is known.
        latest: to validate on.
    """

    earlier: Impressions
    latest: Impressions


class Validation:
    """Evaluates a ranker in training, and says which evaluation was best.

    Args:
        config: of the ranker.
        rows: held out.
        device: this rank's.

    Attributes:
        evaluations: the finite metrics of each, its `step`, and the `value` by which
            they are compared, in order.
    """

    def __init__(
        self, config: RankerConfig, rows: Impressions, device: torch.device
    ) -> None:
        self.config, self._rows, self._device = config.validation, rows, device
        self._tasks = describe_tasks(config.tasks)
        ranks = dist.get_world_size()
        self._batch_size = max(1, config.training.batch_size // ranks)
        self.evaluations: list[dict[str, float]] = []

    def is_due(self, step: int, steps_per_epoch: int, last_step: int) -> bool:
        """Whether to evaluate after a step; always after the last."""
        every = self.config.every_steps or steps_per_epoch
        return step % every == 0 or step == last_step

    def steps_until_due(self, step: int, steps_per_epoch: int, last_step: int) -> int:
        """Return the number of steps from a step to the next one that is due."""
        every = self.config.every_steps or steps_per_epoch
        return min(every - step % every, last_step - step)

    def evaluate(self, model: DistributedModelParallel, step: int) -> dict[str, float]:
        """Evaluate a model; every rank takes part, none of its pipelines is attached.

        Returns:
            The finite metrics: `uauc` of one task, `uauc_<task>` of several, and so on.

        Raises:
            UserError: scores that are not finite, or rows that cannot be read.
        """
        streams = {
            task["name"]: MetricsStream(
                communicator=TorchCommunicator(self._device),
                metrics=_METRICS,
                names=(task["label"], task["score"]),
            )
            for task in self._tasks
        }
        with scorer(model, self._rows, self._batch_size, self._device) as score:
            for part in self._parts():
                scores = score(part.rows, self._all_parts.padded_rows)
                with raise_on_all_ranks():
                    self._add(streams, part, scores)
        model.train()
        found = {name: stream.finish() for name, stream in streams.items()}
        value = broadcast_from_rank0(self._value(found))
        metrics = _finite(found)
        self.evaluations.append({"step": step, _VALUE: value, **metrics})
        return metrics

    @property
    def best(self) -> dict[str, float]:
        """The best evaluation, the first of equals."""
        return max(self.evaluations, key=lambda one: one[_VALUE])

    @property
    def best_step(self) -> int:
        """The step of the best evaluation."""
        return int(self.best["step"])

    @property
    def last_step(self) -> int:
        """The step of the last evaluation, after which nothing was trained."""
        return int(self.evaluations[-1]["step"])

    @property
    def has_improved(self) -> bool:
        """Whether the last evaluation is the best."""
        return self.best is self.evaluations[-1]

    @property
    def is_over(self) -> bool:
        """Whether the last `patience` evaluations were no better than an earlier."""
        since = len(self.evaluations) - 1
        return bool(self.evaluations) and (
            since - self.evaluations.index(self.best) >= self.config.patience
        )

    def facts(self) -> dict[str, Any]:
        """Return entries of the manifest."""
        return {
            "rows": len(self._rows),
            "metric": self.config.metric,
            "best_step": self.best_step,
            "stopped_early": self.is_over,
            "evaluations": self.evaluations,
        }

    @functools.cached_property
    def _all_parts(self) -> Any:
        return self._rows.parts(_PART_ROWS)

    def _parts(self) -> Iterator[Part]:
        """Yield this rank's rows; a table in memory is encoded once."""
        if isinstance(self._rows.source, TableRows):
            yield from self._encoded
            return
        remaining = iter(self._all_parts)
        for _ in range(self._all_parts.count):
            with raise_on_all_ranks():
                part = next(remaining)
            yield part

    @functools.cached_property
    def _encoded(self) -> list[Part]:
        with raise_on_all_ranks():
            return list(self._all_parts)

    def _add(
        self,
        streams: Mapping[str, MetricsStream],
        part: Part,
        scores: Mapping[str, Float32Array],
    ) -> None:
        table, rows = part.table, slice(part.table.num_rows)
        if not table.num_rows:
            return
        rates = None
        if SAMPLING_RATE in table.column_names:
            rates = encode_rates(table, self._rows.source.name)
        for task in self._tasks:
            streams[task["name"]].add(
                table[USER_ID],
                part.rows.labels[task["label"]][rows],
                scores[task["score"]][rows],
                part.rows.weights[rows] if WEIGHT in table.column_names else None,
                sampling_rates=rates,
            )

    def _value(self, found: Mapping[str, RankingMetrics]) -> float:
        """Return the mean over tasks; higher is better."""
        name = self.config.metric
        if name == "uauc" and any(math.isnan(one[name]) for one in found.values()):
            if is_writer() and not self.evaluations:
                logger.info(
                    "validation: no user has both labels, so AUC decides, not UAUC"
                )
            name = "auc"
        mean = float(np.mean([one[name] for one in found.values()]))
        return -mean if name == "ne" else mean


def _finite(found: Mapping[str, RankingMetrics]) -> dict[str, float]:
    """Return `uauc` and so on for one task, `uauc_<task>` for several."""
    return {
        name if len(found) == 1 else f"{name}_{task}": metrics[name]
        for task, metrics in found.items()
        for name in (one.name for one in _METRICS)
        if math.isfinite(metrics[name])
    }
