"""Stage 3, training: impressions, ID tables and LEARN's vectors to a ranker."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from learn_torchrec.errors import UserError
from learn_torchrec.progress import progress_bar
from learn_torchrec.ranker.batch import RankingBatch
from learn_torchrec.ranker.build import build_ranker, ranker_optimizer
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.managed_history import input_history, restore_input_history
from learn_torchrec.ranker.metrics import TrainingMetrics
from learn_torchrec.ranker.model import RankerOutput
from learn_torchrec.ranker.tasks import describe_tasks
from learn_torchrec.ranker.warm_start import WarmStart, warm_start
from learn_torchrec.training.checkpoint import Checkpoints
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.loop import train_epoch
from learn_torchrec.training.optim import warmup_decay
from learn_torchrec.training.run_log import RunLog
from learn_torchrec.training.train_state import TrainState

logger = logging.getLogger(__name__)


def train_ranker(
    config: RankerConfig,
    impressions: Impressions,
    device: torch.device,
    log: RunLog,
    on_plan: Callable[[str], None] | None = None,
    checkpoints: Checkpoints | None = None,
    earlier: WarmStart | None = None,
) -> tuple[DistributedModelParallel, dict[str, Any]]:
    """Train on all ranks.

    A resumed training gives the same weights and losses as an uninterrupted one; but NE
    and calibration in the log, which have a window, restart, and the facts count only
    rows read since the resume.

    Returns:
        The trained model and facts for the manifest.

    Raises:
        UserError: settings that do not fit the rows or the number of ranks, a plan
            that the backend cannot run, or a non-finite loss.
    """
    training, per_epoch = config.training, impressions.loader.steps
    steps = training.epochs * per_epoch
    shape = None if impressions.learn is None else impressions.learn.shape
    model = build_ranker(config, shape, device, on_plan)
    if earlier is not None:
        warm_start(model, config.features, earlier)
    optimizer = ranker_optimizer(model, config)
    schedule = warmup_decay(optimizer, steps, config.optimizer.warmup, training.decay)
    pipeline: TrainPipelineSparseDist[RankingBatch, Any] = TrainPipelineSparseDist(
        model, optimizer, device
    )
    state = TrainState(
        model,
        optimizer,
        schedule,
        steps_per_epoch=per_epoch,
        log=log,
        checkpoints=checkpoints,
        means=("loss", "auxiliary_loss"),
    )
    saved = state.resume(device)
    if saved is not None:
        restore_input_history(model, saved.local())
    per_rank = max(1, training.batch_size // dist.get_world_size())
    metrics = TrainingMetrics(config.tasks, per_rank, device)

    def on_step(output: RankerOutput) -> None:
        bar.update()
        state.advance(loss=output.loss, auxiliary_loss=output.auxiliary_loss)
        metrics.add(output)
        if state.step % max(1, steps // 50) == 0 or state.step == steps:
            _write_line(log, state, metrics, steps)
        state.save(local=lambda: input_history(model), check=_refuse_non_finite)

    model.train()
    with progress_bar("ranker", steps, state.step, shown=is_writer()) as bar:
        for epoch, taken in state.epochs(training.epochs):
            batches = impressions.batches(epoch, start=taken)
            train_epoch(pipeline, batches, schedule, on_step, watchdog=state.watchdog)
    pipeline.detach()
    return model, {"steps": steps, **_facts(config, impressions)}


def _facts(config: RankerConfig, impressions: Impressions) -> dict[str, Any]:
    """Return facts on the rows for the manifest; every rank takes part."""
    report = impressions.report.of_all_ranks()
    if is_writer():
        report.log()
    logger.info("trained on %d of %d rows an epoch", report.rows, len(impressions))
    return {"tasks": describe_tasks(config.tasks), **report.facts()}


def _write_line(
    log: RunLog, state: TrainState, metrics: TrainingMetrics, steps: int
) -> None:
    """Log the means since the last line and the metrics; every rank takes part."""
    means = {name: mean.result() for name, mean in state.means.items()}
    _refuse_non_finite(means["loss"], state.step)
    log.write(step=state.step, total=steps, **means, **metrics.result())


def _refuse_non_finite(loss: float, step: int) -> None:
    """Refuse a non-finite loss before its weights are saved."""
    if not math.isfinite(loss):
        raise UserError(
            f"the ranker's loss is {loss} at or before step {step}; lower "
            "ranker.optimizer.learning_rate or ranker.tables.learning_rate, or "
            "rescale the columns of ranker.features.dense"
        )
