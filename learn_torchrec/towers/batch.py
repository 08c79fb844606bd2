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

from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.errors import UserError
from learn_torchrec.towers.sampling import SamplingConfig, UserSample, sample_user
from learn_torchrec.training.batch import PipelineableBatch

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
        content: float16 [U, C], the distinct items' content vectors; None until
            `attach_content`.
    """

    item_rows: Tensor
    history: Tensor
    history_lengths: Tensor
    target: Tensor
    target_lengths: Tensor
    anchors: Tensor
    positives: Tensor
    users: Tensor
    content: Tensor | None = None


def epoch_batches(
    sequences: SequenceSet,
    sampling: SamplingConfig,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
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
    """
    share = _rank_share(batch_size, len(sequences))
    order = np.random.default_rng([seed, epoch]).permutation(len(sequences))
    for step in range(len(sequences) // batch_size):
        users = order[step * batch_size : (step + 1) * batch_size][share]
        samples = [
            sample_user(sequences.of(user), sampling, seed, epoch, int(user))
            for user in users
        ]
        yield collate(users, samples, sampling)


def attach_content(
    batches: Iterable[TowerBatch], store: ContentStore
) -> Iterator[TowerBatch]:
    """Gather each batch's vectors, once for each distinct item, in half precision."""
    for batch in batches:
        content = torch.from_numpy(store.gather(batch.item_rows.numpy()))
        yield dataclasses.replace(batch, content=content)


def collate(
    users: NDArray[np.int64],
    samples: list[UserSample],
    sampling: SamplingConfig,
) -> TowerBatch:
    """Pack samples into a batch of ids."""
    history = np.concatenate([sample.history for sample in samples])
    target = np.concatenate([sample.target for sample in samples])
    rows, index = np.unique(np.r_[history, target], return_inverse=True)
    history_lengths = np.array([len(sample.history) for sample in samples])
    target_lengths = np.array([len(sample.target) for sample in samples])
    return TowerBatch(
        item_rows=torch.from_numpy(rows),
        history=torch.from_numpy(index[: len(history)]),
        history_lengths=torch.from_numpy(history_lengths),
        target=torch.from_numpy(index[len(history) :]),
        target_lengths=torch.from_numpy(target_lengths),
        anchors=_positions(
            [sample.anchors for sample in samples],
            history_lengths,
            sampling.num_history_samples,
        ),
        positives=_positions(
            [sample.positives for sample in samples],
            target_lengths,
            sampling.num_target_samples,
        ),
        users=torch.from_numpy(np.asarray(users, np.int64)),
    )


def _positions(
    chosen: list[NDArray[np.int64]], lengths: NDArray[np.int64], width: int
) -> Tensor:
    """Turn positions within each user's sequence into token indices, padded."""
    starts = np.cumsum(lengths) - lengths
    padded = np.full((len(chosen), width), PADDING, np.int64)
    for row, (positions, start) in enumerate(zip(chosen, starts, strict=True)):
        padded[row, : len(positions)] = positions + start
    return torch.from_numpy(padded)


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
