"""Stage 2, training: histories and content vectors in, trained towers out."""

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.loading.prefetch import prefetch
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.errors import UserError
from learn_torchrec.progress import progress_bar
from learn_torchrec.towers.batch import TowerBatch, attach_content
from learn_torchrec.towers.build import Trainer, build_task, build_trainer
from learn_torchrec.towers.config import TowersConfig, refuse_unfit_lengths
from learn_torchrec.towers.holdout import TowersSplit
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.retrieval import RetrievalConfig
from learn_torchrec.towers.statistics import TowerStatistics
from learn_torchrec.towers.validation import validate_towers
from learn_torchrec.towers.warm_start import TEMPERATURE, InitialTowers
from learn_torchrec.training.batch import pinned
from learn_torchrec.training.checkpoint import Checkpoints
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.loop import train_epoch
from learn_torchrec.training.precision import DTYPES, tf32
from learn_torchrec.training.run_log import RunLog
from learn_torchrec.training.throughput import Throughput, gemm_flops_per_second
from learn_torchrec.training.train_state import EarlyStopping, TrainState

_TOWERS = "towers."  # in the names of the task's weights

logger = logging.getLogger(__name__)

_BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class TrainedTowers:
    """The weights of the best epoch, and facts of the training for the manifest.

    Attributes:
        state: of the towers, on rank 0.
        facts: for the manifest.
        optimizer: its state then, on rank 0, see `optimizer_state.named_state`, and
            the logarithm of the temperature; empty without `training.save_optimizer`.
    """

    state: dict[str, Tensor]
    facts: dict[str, Any]
    optimizer: dict[str, Tensor]


def train_towers(
    config: TowersConfig,
    data: TowersSplit,
    store: ContentStore,
    retrieval: RetrievalConfig,
    device: torch.device,
    log: RunLog,
    initial: InitialTowers | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainedTowers:
    """Train on all ranks and keep the weights with the best validation recall.

    Any number of ranks gives the same results except for dropout, whose masks depend on
    (seed, step, rank). A resumed training gives the same weights and losses as an
    uninterrupted one.

    Args:
        config: of the towers.
        data: training users, and the validation that selects the best epoch.
        store: of the content vectors.
        retrieval: validation metrics; recall at the first cut-off selects the epoch.
        device: this rank's.
        log: gets a line per epoch.
        initial: weights to start from, an earlier run's or the authors'.
        checkpoints: to resume from and to write.

    Raises:
        UserError: settings that do not fit the data or the number of ranks, or a
            non-finite loss; the batch's users are then written beside the log.
    """
    training, length = config.training, config.sampling.history_length
    trainer = _prepare(config, data, store, device, initial)
    task = trainer.task
    best = EarlyStopping(training.patience, f"r@{retrieval.ks[0]}", training.smoothing)
    state = TrainState(
        trainer.model,
        trainer.optimizer,
        trainer.schedule,
        steps_per_epoch=len(data.train) // training.batch_size,
        log=log,
        checkpoints=checkpoints,
        early_stopping=best,
    )
    state.resume(device)
    validation = data.validation.sample(training.validated_users)
    peak = gemm_flops_per_second(device, DTYPES[training.precision])
    for epoch, taken in _progress_bar(state.epochs(training.epochs), training.epochs):
        speed = Throughput(peak)
        batches = task.objective.batches(
            data,
            batch_size=training.batch_size,
            seed=training.seed,
            epoch=epoch,
            start=taken,
        )
        batches = attach_content(batches, store, with_ids=task.towers.ids is not None)
        reading = contextlib.closing(_read_ahead(batches, device))
        with reading as ready, tf32(training.precision):
            _train_epoch(
                trainer,
                state,
                _count_throughput(ready, speed, task.towers),
                training.seed,
                functools.partial(_refuse_non_finite, epoch, data.train, log),
            )
        line = {
            "loss": state.means["loss"].result(),
            "temperature": task.temperature().item(),
            **speed.result(),
        }
        metrics = validate_towers(
            task.towers, store, validation, length, device, retrieval
        )
        log.write(step=epoch + 1, total=training.epochs, **line, **metrics)
        logger.info(
            "epoch %d: loss %.4f, validation %s %.4f, %.0f users/s",
            *(epoch + 1, line["loss"], best.metric, metrics[best.metric]),
            line["users_per_s"],
        )
        kept = trainer.optimizer if training.save_optimizer else None
        best.update(epoch + 1, metrics, task, kept)
        state.save()
    facts = {
        "train_users": len(data.train),
        "actions": data.train.action_names,
        "best_epoch": best.best_epoch,
        "validation": best.metrics,
        "parameters": sum(p.numel() for p in task.towers.encoder.parameters()),
    }
    weights, optimizer = best.weights, dict(best.optimizer)
    if training.save_optimizer and weights:
        optimizer[TEMPERATURE] = weights[TEMPERATURE]
    return TrainedTowers(
        state={
            name.removeprefix(_TOWERS): value
            for name, value in weights.items()
            if name.startswith(_TOWERS)
        },
        facts=facts,
        optimizer=optimizer,
    )


def _prepare(
    config: TowersConfig,
    data: TowersSplit,
    store: ContentStore,
    device: torch.device,
    initial: InitialTowers | None,
) -> Trainer:
    """Check settings against the data and return a fresh trainer."""
    _refuse_unfit_shape(config, store)
    statistics = TowerStatistics.measure(config.model, store, data.counted)
    task = build_task(config, statistics, initial)
    task.objective.check(config.model, data)
    steps = config.training.epochs * (len(data.train) // config.training.batch_size)
    return build_trainer(task, config, steps, device, initial)


def _refuse_unfit_shape(config: TowersConfig, store: ContentStore) -> None:
    model = config.model
    vector_dim = model.encoder.vector_dim
    if model.item_tower == "content" and vector_dim != store.dim:
        raise UserError(
            f"towers.model.encoder.vector_dim={vector_dim}: with item_tower=content it "
            f"must equal the dim of the content vectors; set it to {store.dim}"
        )
    refuse_unfit_lengths(config)


def _read_ahead(
    batches: Iterator[TowerBatch], device: torch.device
) -> Generator[TowerBatch]:
    """Sample, gather and pin in a thread while a GPU computes.

    On a CPU the thread would only compete with what computes.
    """
    ready = pinned(batches, device)
    return prefetch(ready, _BATCHES_AHEAD) if device.type == "cuda" else ready


def _train_epoch(
    trainer: Trainer,
    state: TrainState,
    batches: Iterator[TowerBatch],
    seed: int,
    refuse_non_finite: Callable[[Tensor, Tensor], None],
) -> None:
    """Take the steps of one epoch; save all but the last.

    The last step is saved after validation.
    """
    task, pipeline = trainer.task, trainer.pipeline

    def on_step(output: tuple[Tensor, Tensor]) -> None:
        loss, users = output
        task.bound_temperature()
        refuse_non_finite(loss, users)
        state.advance(loss=loss)
        if not state.is_epoch_end:
            state.save()

    task.train()
    train_epoch(
        pipeline,
        batches,
        trainer.schedule,
        on_step,
        lambda: _seed_dropout(seed, state.step),
        watchdog=state.watchdog,
    )
    if isinstance(pipeline, TrainPipelineSparseDist):
        pipeline.detach()  # otherwise look-ups outside the pipeline fail


def _progress_bar(
    epochs: Iterator[tuple[int, int]], count: int
) -> Iterator[tuple[int, int]]:
    with progress_bar("towers", count, unit="epoch", shown=is_writer()) as bar:
        for epoch, taken in epochs:
            bar.update(epoch - bar.n)
            yield epoch, taken
            bar.update()


def _count_throughput(
    batches: Iterator[TowerBatch], speed: Throughput, towers: TwinTower
) -> Iterator[TowerBatch]:
    """Pass batches through and count their users, tokens and FLOPs."""
    weights = sum(
        module.weight.numel()
        for module in towers.encoder.get_submodule("sequence_encoder").modules()
        if isinstance(module, nn.Linear)
    )
    for batch in batches:
        tokens = len(batch.history)
        if towers.item_tower == "causal":
            tokens += len(batch.target)
        elif towers.item_tower == "self":
            positives = batch.positives if batch.candidates is None else batch.item_rows
            tokens += positives.numel()
        # Two FLOPs per weight and token, and twice as many in the backward pass;
        # attention and projections are small in comparison and not counted.
        speed.add(len(batch.users), tokens, 6.0 * weights * tokens)
        yield batch


def _seed_dropout(seed: int, step: int) -> None:
    """Derive dropout masks from the step, so that checkpoints need no random state."""
    numbers = np.random.SeedSequence([seed, step, dist.get_rank()])
    torch.manual_seed(int(numbers.generate_state(1)[0]))


def _refuse_non_finite(
    epoch: int, train: SequenceSet, log: RunLog, loss: Tensor, users: Tensor
) -> None:
    """Refuse a non-finite loss and write the users of its batch to a file."""
    if torch.isfinite(loss):
        return
    ids = train.user_ids.take(pa.array(users.cpu().numpy())).to_pylist()
    path = log.path.with_suffix(f".non_finite.{dist.get_rank()}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"loss": str(loss.item()), "epoch": epoch, "users": ids})
    )
    raise UserError(
        f"the loss is {loss.item()} in a batch of {len(ids)} users, the first of "
        f"them {ids[0]!r} (all in {path}); lower towers.optimizer.learning_rate, "
        "or check the content of their items"
    )
