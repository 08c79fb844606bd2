"""Batches of the towers: jagged ids travel, vectors join them where they are used.

Dimension letters: B users, U distinct items of the batch, S history tokens of all
users together, R target tokens, C content dim.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torchrec import KeyedJaggedTensor

from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.errors import UserError
from learn_torchrec.towers.ids import keyed
from learn_torchrec.towers.sampling import (
    SamplingConfig,
    UserSample,
    next_item_sample,
    sample_user,
)
from learn_torchrec.training.batch import PipelineableBatch

Ints = NDArray[np.int64]
PADDING = -1


@dataclass
class TowerBatch(PipelineableBatch):
    """One rank's share of a global batch.

    Attributes:
        item_rows: int64 [U], the distinct items' rows in the content store.
        history: int64 [S], indices into `item_rows`, user after user.
        history_lengths: int64 [B].
        target: int64 [R].
        target_lengths: int64 [B].
        anchors: int64 [B, N_h], token indices into `history`; PADDING where a user
            has fewer.
        positives: int64 [B, N_t], token indices into `target`; PADDING likewise.
        users: int64 [B], numbers in the sequence set.
        candidates: int64 [K], indices into `item_rows` of the items that stand for
            the catalogue; None where the positives of the batch do.
        content: float16 [U, C], the distinct items' content vectors; None until
            `attach_content`.
        item_ids: the distinct items' rows again, in the form that TorchRec's tables
            read; None until `attach_content`, and where the towers have no table.
    """

    item_rows: Tensor
    history: Tensor
    history_lengths: Tensor
    target: Tensor
    target_lengths: Tensor
    anchors: Tensor
    positives: Tensor
    users: Tensor
    candidates: Tensor | None = None
    content: Tensor | None = None
    item_ids: KeyedJaggedTensor | None = None


def epoch_batches(
    sequences: SequenceSet,
    sampling: SamplingConfig,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    cuts: Ints | None = None,
    start: int = 0,
) -> Iterator[TowerBatch]:
    """Yield this rank's share of every global batch of one pass over the users.

    The order of the users follows from (seed, epoch) alone. The last, incomplete
    global batch is left out, so every rank takes the same number of steps.

    Args:
        sequences: the training users.
        sampling: see `SamplingConfig`.
        batch_size: users in a global batch; a multiple of the number of ranks.
        seed: of the run.
        epoch: number of the pass.
        cuts: int64 [users], events of the history, 0 for a random number.
        start: steps that are left out, an earlier run having taken them.
    """
    for _, users in _epoch_users(sequences, batch_size, seed, epoch, start):
        samples = [
            sample_user(
                sequences.of(user),
                sampling,
                seed,
                epoch,
                int(user),
                0 if cuts is None else int(cuts[user]),
            )
            for user in users
        ]
        yield collate(
            users, samples, sampling.num_history_samples, sampling.num_target_samples
        )


def next_item_batches(
    sequences: SequenceSet,
    history_length: int,
    num_items: int,
    *,
    num_candidates: int,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
) -> Iterator[TowerBatch]:
    """Yield batches in which each event is an anchor and the next one its positive.

    A user gives the last `history_length` pairs of their events. The candidates of a
    step follow from (seed, epoch, step): they are the same on every rank.

    Args:
        sequences: the training users.
        history_length: most events the tower reads.
        num_items: N, of the catalogue.
        num_candidates: items drawn from the catalogue; 0 for all.
        batch_size: users in a global batch; a multiple of the number of ranks.
        seed: of the run.
        epoch: number of the pass.
        start: steps that are left out, an earlier run having taken them.
    """
    drawn = num_candidates or num_items
    for step, users in _epoch_users(sequences, batch_size, seed, epoch, start):
        candidates = np.arange(num_items)
        if drawn < num_items:
            random = np.random.default_rng([seed, epoch, step])
            candidates = random.choice(num_items, drawn, replace=False, shuffle=False)
        samples = [
            next_item_sample(sequences.of(user), history_length) for user in users
        ]
        yield collate(users, samples, history_length, history_length, candidates)


def attach_content(
    batches: Iterable[TowerBatch], store: ContentStore, with_ids: bool = False
) -> Iterator[TowerBatch]:
    """Gather each batch's vectors, once for each distinct item, in half precision.

    Args:
        batches: of ids.
        store: of the content vectors.
        with_ids: give the rows to a table of item ids as well.
    """
    for batch in batches:
        rows = batch.item_rows
        yield dataclasses.replace(
            batch,
            content=torch.from_numpy(store.gather(rows.numpy())),
            item_ids=keyed(rows) if with_ids else None,
        )


def collate(
    users: Ints,
    samples: list[UserSample],
    num_anchors: int,
    num_positives: int,
    candidates: Ints | None = None,
) -> TowerBatch:
    """Pack samples into a batch of ids.

    Args:
        users: int64 [B].
        samples: of these users.
        num_anchors: N_h, most anchors of a user.
        num_positives: N_t, most positives of a user.
        candidates: int64 [K], store rows of the items that stand for the catalogue.
    """
    history = np.concatenate([sample.history for sample in samples])
    target = np.concatenate([sample.target for sample in samples])
    others = np.zeros(0, np.int64) if candidates is None else candidates
    rows, index = np.unique(np.r_[history, target, others], return_inverse=True)
    tokens = len(history) + len(target)
    history_lengths = np.array([len(sample.history) for sample in samples])
    target_lengths = np.array([len(sample.target) for sample in samples])
    return TowerBatch(
        item_rows=torch.from_numpy(rows),
        history=torch.from_numpy(index[: len(history)]),
        history_lengths=torch.from_numpy(history_lengths),
        target=torch.from_numpy(index[len(history) : tokens]),
        target_lengths=torch.from_numpy(target_lengths),
        anchors=_positions(
            [sample.anchors for sample in samples],
            history_lengths,
            num_anchors,
        ),
        positives=_positions(
            [sample.positives for sample in samples],
            target_lengths,
            num_positives,
        ),
        users=torch.from_numpy(np.asarray(users, np.int64)),
        candidates=None if candidates is None else torch.from_numpy(index[tokens:]),
    )


def _positions(chosen: list[Ints], lengths: Ints, width: int) -> Tensor:
    """Turn positions within each user's sequence into token indices, padded."""
    starts = np.cumsum(lengths) - lengths
    padded = np.full((len(chosen), width), PADDING, np.int64)
    for row, (positions, start) in enumerate(zip(chosen, starts, strict=True)):
        padded[row, : len(positions)] = positions + start
    return torch.from_numpy(padded)


def _epoch_users(
    sequences: SequenceSet, batch_size: int, seed: int, epoch: int, start: int
) -> Iterator[tuple[int, Ints]]:
    """Yield steps and this rank's users of their batch, int64 [batch_size / ranks]."""
    share = _rank_share(batch_size, len(sequences))
    order = np.random.default_rng([seed, epoch]).permutation(len(sequences))
    for step in range(start, len(sequences) // batch_size):
        yield step, order[step * batch_size : (step + 1) * batch_size][share]


def _rank_share(batch_size: int, num_users: int) -> slice:
    world_size, rank = dist.get_world_size(), dist.get_rank()
    if batch_size % world_size:
        raise UserError(
            f"towers.training.batch_size={batch_size} must be a multiple of the "
            f"number of ranks, {world_size}"
        )
    if num_users < batch_size:
        raise UserError(
            f"towers.training.batch_size={batch_size} is more than the {num_users} "
            "training users; make it smaller"
        )
    per_rank = batch_size // world_size
    return slice(rank * per_rank, (rank + 1) * per_rank)
