"""Stage 2, training: histories and content vectors in, trained towers out."""

import functools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from tqdm import tqdm

from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.errors import UserError
from learn_torchrec.towers.batch import TowerBatch, attach_content
from learn_torchrec.towers.build import DTYPES, Trainer, build_task, build_trainer
from learn_torchrec.towers.config import TowersConfig
from learn_torchrec.towers.holdout import TowersSplit
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.retrieval import RetrievalConfig, evaluate_towers
from learn_torchrec.towers.warm_start import InitialTowers
from learn_torchrec.training.checkpoint import Checkpoints
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.loop import train_epoch
from learn_torchrec.training.run_log import RunLog
from learn_torchrec.training.throughput import Throughput, gemm_flops_per_second
from learn_torchrec.training.train_state import EarlyStopping, TrainState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainedTowers:
    """The result: weights of the best epoch, and how training went."""

    state: dict[str, Tensor]
    facts: dict[str, Any]


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

    One rank and several compute the same, dropout apart: its masks follow from
    (seed, step, rank). With checkpoints it resumes from the newest one, to the same
    weights and losses.

    Args:
        config: of the towers.
        data: what to learn from, and the validation that chooses the best epoch.
        store: of the content vectors.
        retrieval: how validation is judged; its first cut-off's recall decides.
        device: this rank's.
        log: gets a line for each epoch.
        initial: weights to start from, an earlier run's or the authors'.
        checkpoints: of an earlier, unfinished run, and to be written.

    Raises:
        UserError: settings that do not fit the data or the number of ranks, or a
            loss that is not finite; the batch's users are written beside the log.
    """
    training, length = config.training, config.sampling.history_length
    trainer = _prepare(config, data, store, device, initial)
    task = trainer.task
    best = EarlyStopping(training.patience, f"r@{retrieval.ks[0]}")
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
        _train_epoch(
            trainer,
            state,
            _counted(batches, speed, task.towers),
            training.seed,
            functools.partial(_refuse_non_finite, epoch, data.train, log),
        )
        line = {
            "loss": state.means["loss"].result(),
            "temperature": task.temperature().item(),
            **speed.result(),
        }
        metrics = evaluate_towers(
            task.towers, store, data.validation, length, device, retrieval
        )
        log.write(step=epoch + 1, total=training.epochs, **line, **metrics)
        logger.info(
            "epoch %d: loss %.4f, validation %s %.4f, %.0f users/s",
            *(epoch + 1, line["loss"], best.metric, metrics[best.metric]),
            line["users_per_s"],
        )
        best.update(epoch + 1, metrics, task.towers)
        state.save()
    facts = {
        "train_users": len(data.train),
        "actions": data.train.action_names,
        "best_epoch": best.best_epoch,
        "validation": best.metrics,
        "parameters": sum(p.numel() for p in task.towers.encoder.parameters()),
    }
    return TrainedTowers(state=best.weights, facts=facts)


def _prepare(
    config: TowersConfig,
    data: TowersSplit,
    store: ContentStore,
    device: torch.device,
    initial: InitialTowers | None,
) -> Trainer:
    """Check settings against the data; return the fresh task and what trains it."""
    _refuse_unfit_shape(config, store)
    counts = torch.from_numpy(np.bincount(data.train.items, minlength=len(store)))
    mean, std = (torch.from_numpy(x).float() for x in (store.mean, store.std))
    task = build_task(config, mean, std, counts, initial)
    task.objective.check(task.towers, data)
    steps = config.training.epochs * (len(data.train) // config.training.batch_size)
    return build_trainer(task, config, steps, device, initial)


def _refuse_unfit_shape(config: TowersConfig, store: ContentStore) -> None:
    model, sampling = config.model, config.sampling
    vector_dim = model.encoder.vector_dim
    if model.item_tower == "content" and vector_dim != store.dim:
        raise UserError(
            f"towers.model.item_tower=content compares with content vectors of dim "
            f"{store.dim}; set towers.model.encoder.vector_dim to it (now {vector_dim})"
        )
    longest = max(sampling.history_length, sampling.target_length)
    if 0 < model.encoder.max_positions < longest:
        raise UserError(
            f"towers.model.encoder.max_positions={model.encoder.max_positions} "
            f"is less than the longest sequence, {longest}; raise it"
        )


def _train_epoch(
    trainer: Trainer,
    state: TrainState,
    batches: Iterator[TowerBatch],
    seed: int,
    refuse_non_finite: Callable[[Tensor, Tensor], None],
) -> None:
    """Take the steps of one epoch, all of them saved but the last.

    The end of an epoch is saved once it is validated.
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
        pipeline.detach()  # otherwise lookups outside of it are refused


def _progress_bar(
    epochs: Iterator[tuple[int, int]], count: int
) -> Iterator[tuple[int, int]]:
    is_off = None if is_writer() else True  # None: off where there is no terminal
    with tqdm(total=count, desc="towers", unit="epoch", disable=is_off) as bar:
        for epoch, taken in epochs:
            bar.update(epoch - bar.n)
            yield epoch, taken
            bar.update()


def _counted(
    batches: Iterator[TowerBatch], speed: Throughput, towers: TwinTower
) -> Iterator[TowerBatch]:
    """Pass batches on and count their users, tokens and arithmetic."""
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
        # Two FLOPs a weight and token, and twice as many again in the backward pass;
        # attention and the projections, small beside it, are left out.
        speed.add(len(batch.users), tokens, 6.0 * weights * tokens)
        yield batch


def _seed_dropout(seed: int, step: int) -> None:
    """Make the masks of a step follow from it, so that no random state need be kept."""
    numbers = np.random.SeedSequence([seed, step, dist.get_rank()])
    torch.manual_seed(int(numbers.generate_state(1)[0]))


def _refuse_non_finite(
    epoch: int, train: SequenceSet, log: RunLog, loss: Tensor, users: Tensor
) -> None:
    """Refuse a loss that is not finite, and write down the users of its batch."""
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
        "or look at their items' content"
    )
