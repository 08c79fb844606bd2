"""Stage 3, training: impressions, ID tables and LEARN's vectors to a ranker."""

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import (
    PrefetchTrainPipelineSparseDist,
    TrainPipelineSparseDist,
)
from torchrec.optim.keyed import CombinedOptimizer

from learn_torchrec.errors import UserError
from learn_torchrec.progress import progress_bar
from learn_torchrec.ranker.batch import RankingBatch
from learn_torchrec.ranker.build import build_ranker, ranker_optimizer
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.managed_history import input_history, restore_input_history
from learn_torchrec.ranker.metrics import TrainingMetrics
from learn_torchrec.ranker.model import RankerOutput
from learn_torchrec.ranker.sampling import logit_offsets
from learn_torchrec.ranker.tasks import describe_tasks
from learn_torchrec.ranker.validation import HeldOut, Validation
from learn_torchrec.ranker.warm_start import WarmStart, warm_start, warm_start_optimizer
from learn_torchrec.schema import SAMPLING_RATE, WEIGHT
from learn_torchrec.training.checkpoint import Checkpoints, SavedCheckpoint
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.loop import train_epoch
from learn_torchrec.training.optim import warmup_decay
from learn_torchrec.training.planning import Workload
from learn_torchrec.training.precision import tf32
from learn_torchrec.training.run_log import RunLog
from learn_torchrec.training.sharding import has_cache
from learn_torchrec.training.train_state import TrainState

logger = logging.getLogger(__name__)


class TrainedRanker(NamedTuple):
    """A trained ranker.

    Attributes:
        model: sharded over the ranks.
        facts: for the manifest.
        optimizer: as it was after the last step, for a training that goes on.
    """

    model: DistributedModelParallel
    facts: dict[str, Any]
    optimizer: CombinedOptimizer


def train_ranker(
    config: RankerConfig,
    impressions: Impressions,
    device: torch.device,
    log: RunLog,
    on_plan: Callable[[str], None] | None = None,
    checkpoints: Checkpoints | None = None,
    earlier: WarmStart | None = None,
    held_out: HeldOut | None = None,
) -> TrainedRanker:
    """Train on all ranks.

    With held-out rows a first training, on the earlier ones, stops when the latest say
    so. Then either a second one on all impressions takes as many passes
    (`ranker.validation.refit`), or the best weights are loaded from their checkpoint.

    A resumed training gives the same weights and losses as an uninterrupted one; but NE
    and calibration in the log, which have a window, restart, and the facts count only
    rows read since the resume.

    Raises:
        UserError: settings that do not fit the rows or the number of ranks, a plan
            that the backend cannot run, or a non-finite loss.
        ValueError: no checkpoints to keep the best weights in.
    """
    _log_columns(impressions)
    job = _Job(config, device, log, on_plan, checkpoints, earlier)
    saved = checkpoints.latest() if checkpoints else None
    if held_out is None:
        return _Training(job, impressions).run(saved)
    if not config.validation.refit and checkpoints is None:
        raise ValueError("validation.refit=false needs checkpoints")
    validation = Validation(config, held_out.latest, device)
    if saved is not None:
        validation.evaluations = saved.progress["evaluations"]
        if checkpoints and validation.evaluations and not config.validation.refit:
            checkpoints.pinned = validation.best_step
    # A checkpoint of the second training means that the first is over.
    if saved is None or not saved.progress["earlier_steps"]:
        first = _Training(job, held_out.earlier, validation)
        trained = first.run(saved)
        if not config.validation.refit:
            return trained._replace(facts=trained.facts | first.load_best())
        del trained, first
        saved = None
    passes = validation.best_step / held_out.earlier.loader.steps
    logger.info("training anew on all rows, for %.3g passes", passes)
    return _Training(job, impressions, validation, passes).run(saved)


def best_passes(
    config: RankerConfig, held_out: HeldOut, device: torch.device, log: RunLog
) -> tuple[float, dict[str, Any]]:
    """Return after how many passes over the earlier rows the latest are ranked best.

    `config.validation` says how evaluations are compared, and `Validation.facts` what
    the second value is. No weights are kept. Every rank takes part.
    """
    validation = Validation(config, held_out.latest, device)
    _Training(_Job(config, device, log), held_out.earlier, validation).run(None)
    return validation.best_step / held_out.earlier.loader.steps, validation.facts()


@dataclass(frozen=True)
class _Job:
    """The arguments of `train_ranker` that its trainings share."""

    config: RankerConfig
    device: torch.device
    log: RunLog
    on_plan: Callable[[str], None] | None = None
    checkpoints: Checkpoints | None = None
    earlier: WarmStart | None = None


class _Training:
    """One training of a fresh model.

    Args:
        job: what it shares with others.
        impressions: to learn from.
        validation: decides when it stops or, with `passes`, has done so before.
        passes: over the impressions; None for all epochs.
    """

    def __init__(
        self,
        job: _Job,
        impressions: Impressions,
        validation: Validation | None = None,
        passes: float | None = None,
    ) -> None:
        self._job, self._impressions, self._validation = job, impressions, validation
        self._stopping = validation if passes is None else None
        config, training = job.config, job.config.training
        self._per_epoch = impressions.loader.steps
        steps = self._last = training.epochs * self._per_epoch
        if passes is not None:
            self._last = max(1, round(passes * self._per_epoch))
        learn = None if impressions.learn is None else impressions.learn.shape
        self._offsets = logit_offsets(impressions)
        per_rank = max(1, training.batch_size // dist.get_world_size())
        self._model = build_ranker(
            *(config, learn, job.device, job.on_plan, self._offsets),
            workload=lambda: Workload(
                batch_size=per_rank, lengths=impressions.mean_lengths()
            ),
        )
        loaded = None
        if job.earlier is not None:
            loaded = warm_start(self._model, config.features, job.earlier)
        self._optimizer = ranker_optimizer(self._model, config)
        if job.earlier is not None and loaded is not None:
            warm_start_optimizer(self._optimizer, job.earlier, loaded)
        self._schedule = warmup_decay(
            self._optimizer, steps, config.optimizer.warmup, training.decay
        )
        pipeline = TrainPipelineSparseDist
        if has_cache(self._model):  # rows come from host memory before they are needed
            pipeline = PrefetchTrainPipelineSparseDist
        self._pipeline: TrainPipelineSparseDist[RankingBatch, Any] = pipeline(
            self._model, self._optimizer, job.device
        )
        self._state = TrainState(
            self._model,
            self._optimizer,
            self._schedule,
            steps_per_epoch=self._per_epoch,
            log=job.log,
            checkpoints=job.checkpoints,
            means=("loss", "auxiliary_loss"),
        )
        if validation is not None and passes is not None:
            self._state.earlier_steps = validation.last_step
        self._metrics = TrainingMetrics(
            config.tasks, per_rank, job.device, self._offsets
        )

    def run(self, saved: SavedCheckpoint | None) -> TrainedRanker:
        """Train from the beginning, or on from a checkpoint of this training."""
        state = self._state
        if saved is not None:
            state.resume_from(saved, self._job.device)
            restore_input_history(self._model, saved.local())
        self._model.train()
        with progress_bar("ranker", self._last, state.step, shown=is_writer()) as bar:

            def on_step(output: RankerOutput) -> bool:
                bar.update()
                self._after_step(output)
                return self._is_done()

            for epoch, taken in state.epochs(self._job.config.training.epochs):
                if self._is_done():
                    break
                batches = self._impressions.batches(epoch, taken, self._job.device)
                precision = self._job.config.training.precision
                with contextlib.closing(batches), tf32(precision):
                    for part in self._until_due(batches):
                        train_epoch(
                            *(self._pipeline, part, self._schedule, on_step),
                            watchdog=state.watchdog,
                        )
        self._pipeline.detach()
        facts = {"steps": state.step, **_facts(self._job.config, self._impressions)}
        if self._offsets:
            facts["logit_offsets"] = self._offsets
        if self._validation is not None:
            facts["validation"] = self._validation.facts()
        return TrainedRanker(self._model, facts, self._optimizer)

    def _until_due(self, batches: Iterator[RankingBatch]) -> Iterator[Any]:
        """Yield the batches up to each evaluation.

        The pipeline is empty then: TorchRec's loses what is in flight of an
        `EmbeddingCollection` when another pipeline takes the model over.
        """
        if self._stopping is None:
            yield batches
            return
        for first in batches:
            if self._is_done():
                return
            due = self._stopping.steps_until_due(
                self._state.step, self._per_epoch, self._last
            )
            yield itertools.chain([first], itertools.islice(batches, due - 1))

    def load_best(self) -> dict[str, Any]:
        """Load the weights of the best evaluation; return the facts that change."""
        checkpoints, stopping = self._job.checkpoints, self._stopping
        assert checkpoints is not None
        assert stopping is not None
        best = checkpoints.at(stopping.best_step)
        best.restore(self._model, self._optimizer)
        return {"steps": stopping.best_step}

    def _is_done(self) -> bool:
        is_over = self._stopping is not None and self._stopping.is_over
        return is_over or self._state.step >= self._last

    def _after_step(self, output: RankerOutput) -> None:
        state, stopping = self._state, self._stopping
        state.advance(loss=output.loss, auxiliary_loss=output.auxiliary_loss)
        self._metrics.add(output)
        if state.step % max(1, self._last // 50) == 0 or state.step == self._last:
            self._write_line()
        is_best = False
        if stopping and stopping.is_due(state.step, self._per_epoch, self._last):
            is_best = self._evaluate(stopping)
        known = self._validation
        state.save(
            local=lambda: input_history(self._model),
            check=_refuse_non_finite,
            extra={"evaluations": list(known.evaluations)} if known else None,
            pin=is_best and not self._job.config.validation.refit,
        )

    def _evaluate(self, validation: Validation) -> bool:
        """Evaluate in the middle of training; return whether it is the best so far."""
        # No batch is in flight; the pipeline takes the model over again.
        self._pipeline.detach()
        watchdog = self._state.watchdog
        with watchdog.paused() if watchdog else contextlib.nullcontext():
            metrics = validation.evaluate(self._model, self._state.step)
        self._log({f"validation_{name}": value for name, value in metrics.items()})
        logger.info(
            "step %d: validation %s%s",
            self._state.step,
            ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()),
            ", the best" if validation.has_improved else "",
        )
        return validation.has_improved

    def _write_line(self) -> None:
        """Log the means since the last line and the metrics; every rank takes part."""
        state = self._state
        means = {name: mean.result() for name, mean in state.means.items()}
        _refuse_non_finite(means["loss"], state.step)
        self._log({**means, **self._metrics.result()})

    def _log(self, values: Mapping[str, float]) -> None:
        before = self._state.earlier_steps
        step, total = before + self._state.step, before + self._last
        self._job.log.write(step=step, total=total, **values)


def _facts(config: RankerConfig, impressions: Impressions) -> dict[str, Any]:
    """Return facts on the rows for the manifest; every rank takes part."""
    report = impressions.report_of_all_ranks()
    if is_writer():
        report.log()
    logger.info("trained on %d of %d rows an epoch", report.rows, len(impressions))
    return {"tasks": describe_tasks(config.tasks), **report.facts()}


def _log_columns(impressions: Impressions) -> None:
    """Say what the columns do that are no features."""
    present = impressions.source.empty().schema.names
    if WEIGHT in present:
        logger.info("column %r weights the rows in training and in the metrics", WEIGHT)
    if SAMPLING_RATE in present:
        logger.info(
            "column %r: scores will be probabilities among all rows, not only those "
            "kept; it weights nothing in training",
            SAMPLING_RATE,
        )


def _refuse_non_finite(loss: float, step: int) -> None:
    """Refuse a non-finite loss before its weights are saved."""
    if not math.isfinite(loss):
        raise UserError(
            f"the ranker's loss is {loss} at or before step {step}; lower "
            "ranker.optimizer.learning_rate or ranker.tables.learning_rate, or "
            "rescale the columns of ranker.features.dense"
        )
