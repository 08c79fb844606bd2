"""Stage 2, training: histories and content vectors in, trained towers out."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import (
    TrainPipeline,
    TrainPipelineBase,
    TrainPipelineSparseDist,
)
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter
from tqdm import tqdm

from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.errors import UserError
from learn_torchrec.towers.batch import (
    TowerBatch,
    attach_content,
    epoch_batches,
    next_item_batches,
)
from learn_torchrec.towers.config import TowersConfig
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.holdout import RetrievalConfig, TowersSplit, evaluate_towers
from learn_torchrec.towers.ids import ItemIds
from learn_torchrec.towers.model import TowersModelConfig, TwinTower, TwinTowerTrain
from learn_torchrec.towers.repeat import RepeatScore
from learn_torchrec.towers.warm_start import InitialTowers, load_encoder, load_ids
from learn_torchrec.training.checkpoint import Checkpoints
from learn_torchrec.training.distributed import is_writer
from learn_torchrec.training.loop import train_epoch
from learn_torchrec.training.optim import dense_optimizer, warmup_cosine
from learn_torchrec.training.run_log import RunLog
from learn_torchrec.training.sharding import init_tables, shard
from learn_torchrec.training.throughput import Throughput, gemm_flops_per_second
from learn_torchrec.training.train_state import EarlyStopping, TrainState

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class TrainedTowers:
    """The result: weights of the best epoch, and how training went."""

    state: dict[str, Tensor]
    facts: dict[str, Any]


def build_towers(
    config: TowersModelConfig,
    mean: Tensor,
    std: Tensor,
    event_counts: Tensor,
    device: torch.device | None = None,
) -> TwinTower:
    """Return fresh towers.

    Args:
        config: of the model.
        mean: float32 [C], subtracted from the content.
        std: float32 [C], the content is divided by it.
        event_counts: int64 [N], training events of each catalogue item.
        device: of the table of item ids; "meta" where TorchRec shards and fills it.
    """
    shape = config.encoder
    ids = None
    if config.inputs != "content":
        ids = ItemIds(event_counts, shape.width, config.id_half_trust, device)
    reads_content = config.inputs != "id"
    encoder = PreferenceEncoder(mean, std, shape, reads_content)
    repeat = RepeatScore() if config.repeat else None
    return TwinTower(encoder, config.item_tower, ids, repeat)


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
    (seed, step, rank). With checkpoints it goes on from the last one, to the same
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
    train, cuts = _trained_on(config, data, store)
    training, metric = config.training, f"r@{retrieval.ks[0]}"
    parts = _prepare(config, train, store, device, initial)
    task, pipeline = parts.task, parts.pipeline
    peak = gemm_flops_per_second(device, _DTYPES[training.precision])
    best = EarlyStopping(training.patience, metric)
    state = TrainState(
        parts.model,
        parts.optimizer,
        parts.schedule,
        steps_per_epoch=len(train) // training.batch_size,
        log=log,
        checkpoints=checkpoints,
        early_stopping=best,
    )
    state.resume(device)
    epoch = 0

    def on_step(output: tuple[Tensor, Tensor]) -> None:
        value, users = output
        task.bound_temperature()
        _refuse_non_finite(value, users, epoch, train, log)
        state.advance(loss=value)
        if not state.is_epoch_end:  # the end of an epoch is saved once validated
            state.save()

    for epoch, taken in _progress_bar(state.epochs(training.epochs), training.epochs):
        speed = Throughput(peak)
        batches = attach_content(
            _epoch_batches(config, train, cuts, len(store), epoch, taken),
            store,
            with_ids=task.towers.ids is not None,
        )
        task.train()
        train_epoch(
            pipeline,
            _counted(batches, speed, task.towers),
            parts.schedule,
            on_step,
            lambda: _seed_dropout(training.seed, state.step),
            watchdog=state.watchdog,
        )
        line = {
            "loss": state.means["loss"].result(),
            "temperature": task.temperature().item(),
            **speed.result(),
        }
        length = config.sampling.history_length
        if isinstance(pipeline, TrainPipelineSparseDist):
            pipeline.detach()  # otherwise lookups outside of it are refused
        metrics = evaluate_towers(
            task.towers, store, data.validation, length, device, retrieval
        )
        log.write(step=epoch + 1, total=training.epochs, **line, **metrics)
        logger.info(
            "epoch %d: loss %.4f, validation %s %.4f, %.0f users/s",
            *(epoch + 1, line["loss"], metric, metrics[metric], line["users_per_s"]),
        )
        best.update(epoch + 1, metrics, task.towers)
        state.save()
    facts = {
        "train_users": len(train),
        "best_epoch": best.best_epoch,
        "validation": best.metrics,
        "parameters": sum(p.numel() for p in task.towers.encoder.parameters()),
    }
    return TrainedTowers(state=best.weights, facts=facts)


@dataclass(frozen=True)
class _Parts:
    """What a training consists of; `model` wraps `task` for all ranks."""

    task: TwinTowerTrain
    model: nn.Module
    optimizer: KeyedOptimizer | CombinedOptimizer
    pipeline: TrainPipeline[TowerBatch, Any]
    schedule: LambdaLR


def _prepare(
    config: TowersConfig,
    train: SequenceSet,
    store: ContentStore,
    device: torch.device,
    initial: InitialTowers | None,
) -> _Parts:
    """Return the fresh task, and what trains it on all ranks."""
    training = config.training
    torch.manual_seed(training.seed)
    mean, std = (torch.from_numpy(x).float() for x in (store.mean, store.std))
    if not config.model.standardize:
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    counts = torch.from_numpy(np.bincount(train.items, minlength=len(store)))
    towers = build_towers(config.model, mean, std, counts, torch.device("meta"))
    if initial is not None:
        load_encoder(towers.encoder, initial.encoder)
        if towers.repeat is not None and initial.repeat is not None:
            towers.repeat.load_state_dict(dict(initial.repeat))
    towers.encoder.precision = _DTYPES[training.precision]
    log_q = _log_q(counts) if config.loss.needs_log_q else None
    task = TwinTowerTrain(towers, config.loss, log_q)
    # Everything but the table, which TorchRec places.
    task._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
    steps = training.epochs * (len(train) // training.batch_size)
    if towers.ids is None:
        optimizer = dense_optimizer(task.named_parameters(), config.optimizer)
        # Buffers are built alike on every rank and never change.
        model = DistributedDataParallel(task, broadcast_buffers=False)
        return _Parts(
            task,
            model,
            optimizer,
            TrainPipelineBase(model, optimizer, device),
            warmup_cosine(optimizer, steps, config.optimizer.warmup),
        )
    sharded = shard(task, device, training.table_learning_rate)
    init_tables(sharded, training.seed)
    if initial is not None:
        load_ids(sharded, initial)
    dense = dense_optimizer(
        in_backward_optimizer_filter(sharded.named_parameters()), config.optimizer
    )
    combined = CombinedOptimizer([sharded.fused_optimizer, dense])
    return _Parts(
        _task_of(sharded),
        sharded,
        combined,
        TrainPipelineSparseDist(sharded, combined, device),
        warmup_cosine(combined, steps, config.optimizer.warmup),
    )


def _task_of(model: DistributedModelParallel) -> TwinTowerTrain:
    """The task inside the sharded model, its table the sharded one."""
    task = model.module
    if not isinstance(task, TwinTowerTrain):
        raise TypeError(f"expected the towers' task, found {type(task).__name__}")
    return task


def _epoch_batches(
    config: TowersConfig,
    train: SequenceSet,
    cuts: NDArray[np.int64] | None,
    num_items: int,
    epoch: int,
    start: int,
) -> Iterator[TowerBatch]:
    training = config.training
    if config.loss.objective == "next_item":
        return next_item_batches(
            train,
            config.sampling.history_length,
            num_items,
            num_candidates=config.loss.candidates,
            batch_size=training.batch_size,
            seed=training.seed,
            epoch=epoch,
            start=start,
        )
    return epoch_batches(
        train,
        config.sampling,
        batch_size=training.batch_size,
        seed=training.seed,
        epoch=epoch,
        cuts=cuts,
        start=start,
    )


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
    weights = sum(p.numel() for p in towers.encoder.layers.parameters())
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


def _trained_on(
    config: TowersConfig, data: TowersSplit, store: ContentStore
) -> tuple[SequenceSet, NDArray[np.int64] | None]:
    """Check settings against the data; return the users to train on and their cuts."""
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
    if config.loss.objective == "next_item":
        if model.item_tower == "causal":
            raise UserError(
                "towers.loss.objective=next_item compares with items alone; set "
                "towers.model.item_tower to self or projection"
            )
        return data.train, None
    shortest = data.train.lengths.min()
    if shortest <= sampling.min_history:
        raise UserError(
            f"towers.sampling.min_history={sampling.min_history}: a training user "
            f"has {shortest} events and needs one more than that; raise "
            "split.min_events or lower it"
        )
    if sampling.cut == "random":
        return data.train, None
    if data.cuts is None:
        raise UserError(
            "towers.sampling.cut=split: only split.holdout=time parts training users' "
            "events at a moment; set towers.sampling.cut=random"
        )
    # Users with events on one side of the moment alone are cut at random.
    fits = (data.cuts >= sampling.min_history) & (data.cuts < data.train.lengths)
    return data.train, np.where(fits, data.cuts, 0)


def _log_q(counts: Tensor) -> Tensor:
    """Log share of each item among the training events; unseen items count once."""
    counts = counts.clamp(min=1).double()
    return (counts / counts.sum()).log().float()


def _seed_dropout(seed: int, step: int) -> None:
    """Make the masks of a step follow from it, so that no random state need be kept."""
    numbers = np.random.SeedSequence([seed, step, dist.get_rank()])
    torch.manual_seed(int(numbers.generate_state(1)[0]))


def _refuse_non_finite(
    loss: Tensor, users: Tensor, epoch: int, train: SequenceSet, log: RunLog
) -> None:
    if torch.isfinite(loss):
        return
    ids = train.user_ids.take(pa.array(users.cpu().numpy())).to_pylist()
    path = log.path.with_suffix(f".non_finite.{dist.get_rank()}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"loss": str(loss.item()), "epoch": epoch, "users": ids})
    )
    raise UserError(
        f"the loss is {loss.item()} in a batch of {len(ids)} users, the first of them "
        f"{ids[0]!r} (all in {path}); lower towers.optimizer.learning_rate, or look at "
        "their items' content"
    )
