"""Stage 3, training: impressions, ID tables and LEARN's vectors to a CVR ranker."""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from tqdm import tqdm

from learn_torchrec.errors import UserError
from learn_torchrec.ranker.batch import RankingBatch, training_batches
from learn_torchrec.ranker.build import build_ranker, ranker_optimizer
from learn_torchrec.ranker.config import RankerConfig, RankerTrainingConfig
from learn_torchrec.ranker.managed_history import history_of, restore_history
from learn_torchrec.ranker.metrics import TrainingMetrics
from learn_torchrec.ranker.model import RankerOutput
from learn_torchrec.ranker.rows import RankingRows, RowsReport
from learn_torchrec.ranker.stream import StreamedRows
from learn_torchrec.ranker.warm_start import WarmStart, warm_start
from learn_torchrec.training.checkpoint import Checkpoints, fast_forward
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.loop import RunningMean, train_epoch
from learn_torchrec.training.optim import warmup_decay
from learn_torchrec.training.run_log import RunLog

logger = logging.getLogger(__name__)


def train_ranker(
    config: RankerConfig,
    rows: RankingRows | StreamedRows,
    device: torch.device,
    log: RunLog,
    on_plan: Callable[[str], None] | None = None,
    checkpoints: Checkpoints | None = None,
    earlier: WarmStart | None = None,
) -> tuple[DistributedModelParallel, dict[str, Any]]:
    """Train on all ranks.

    With checkpoints it goes on from the last one, to the same weights and losses; NE
    and calibration of the log, which look back over a window, then start anew, and a
    stream counts what is missing in the rows that it read itself.

    Returns:
        The trained model and facts for the manifest.

    Raises:
        UserError: settings that do not fit the rows or the number of ranks, a plan
            that the backend cannot run, or a loss that is not finite.
    """
    vector_dim = None if rows.vectors is None else rows.vectors.dim
    if config.model.learn == "off":
        vector_dim = None
    if vector_dim is None and not config.features.dense:
        raise UserError(
            "ranker.features.dense: DLRM without LEARN needs at least one number "
            "column; name one"
        )
    training = config.training
    model = build_ranker(config, vector_dim, device, on_plan)
    if earlier is not None:
        warm_start(model, config.features, earlier)
    optimizer = ranker_optimizer(model, config)
    steps = training.epochs * (len(rows) // training.batch_size)
    schedule = warmup_decay(optimizer, steps, config.optimizer.warmup, training.decay)
    pipeline: TrainPipelineSparseDist[RankingBatch, Any] = TrainPipelineSparseDist(
        model, optimizer, device
    )
    progress = _Progress(steps, training.batch_size, device, log)
    saved = None if checkpoints is None else checkpoints.latest()
    if saved is not None:
        saved.restore(model, optimizer)
        restore_history(model, saved.local())
        progress.restore(saved.progress, device)
        fast_forward(schedule, progress.step)

    def on_step(output: RankerOutput) -> None:
        bar.update()
        progress.add(output)
        if checkpoints is not None:
            checkpoints.after_step(
                progress.step,
                lambda: {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "local": history_of(model),
                },
                progress.state,
            )

    model.train()
    per_epoch = len(rows) // training.batch_size
    first_epoch, taken = divmod(progress.step, max(per_epoch, 1))
    with tqdm(
        total=steps, initial=progress.step, desc="ranker", disable=_bar_is_off()
    ) as bar:
        for epoch in range(first_epoch, training.epochs):
            batches = _batches(rows, training, epoch, taken)
            train_epoch(
                pipeline,
                batches,
                schedule,
                on_step,
                watchdog=checkpoints.watchdog if checkpoints else None,
            )
            taken = 0
    pipeline.detach()
    report = _report(rows)
    if is_writer():
        report.log()
    logger.info("trained on %d rows in %d steps", len(rows), steps)
    return model, {"steps": steps, **report.facts()}


def _batches(
    rows: RankingRows | StreamedRows,
    training: RankerTrainingConfig,
    epoch: int,
    start: int,
) -> Iterator[RankingBatch]:
    order = {"batch_size": training.batch_size, "seed": training.seed}
    order |= {"epoch": epoch, "start": start}
    if isinstance(rows, StreamedRows):
        return rows.batches(**order)
    return training_batches(rows, **order)


def _report(rows: RankingRows | StreamedRows) -> RowsReport:
    if isinstance(rows, RankingRows):
        return rows.report()
    return rows.report.of_all_ranks()  # each rank read its own rows


class _Progress:
    """Logs loss, NE and calibration of the training steps, some fifty times."""

    def __init__(
        self, steps: int, batch_size: int, device: torch.device, log: RunLog
    ) -> None:
        self._steps, self._log = steps, log
        self._interval = max(1, steps // 50)
        per_rank = max(1, batch_size // torch.distributed.get_world_size())
        self._metrics = TrainingMetrics(per_rank, device)
        self._loss, self._auxiliary = RunningMean(), RunningMean()
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, for JSON; every rank takes part.

        Raises:
            UserError: a loss since the last line of the log was not finite.
        """
        loss = self._loss.state()
        # Weights that are no numbers any more must not replace the last good ones.
        _finite(sum(total for total, _ in loss), self.step)
        return {
            "step": self.step,
            "loss": loss,
            "auxiliary_loss": self._auxiliary.state(),
            "log_position": self._log.position(),
        }

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint's state."""
        self.step = state["step"]
        self._loss.restore(state["loss"], device)
        self._auxiliary.restore(state["auxiliary_loss"], device)
        self._log.resume(state["log_position"])

    def add(self, output: RankerOutput) -> None:
        """Take one step's output; every rank takes part."""
        self.step += 1
        self._loss.add(output.loss)
        self._auxiliary.add(output.auxiliary_loss)
        self._metrics.add(output)
        if self.step % self._interval == 0 or self.step == self._steps:
            self._log.write(
                step=self.step,
                total=self._steps,
                loss=_finite(self._loss.result(), self.step),
                auxiliary_loss=self._auxiliary.result(),
                **self._metrics.result(),
            )


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise UserError(
            f"the ranker's loss is {loss} at or before step {step}; lower "
            "ranker.optimizer.learning_rate or ranker.tables.learning_rate, or "
            "scale the features of ranker.features.dense"
        )
    return loss


def _bar_is_off() -> bool | None:
    return None if is_writer() else True
