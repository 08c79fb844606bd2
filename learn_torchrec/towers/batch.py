"""Batches of the towers: jagged item indices and each distinct content vector once.

Dimension letters: B users, U distinct items of the batch, S history tokens of all
users together, R target tokens, C content dim.
"""

from collections.abc import Iterator
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
        content: float16 [U, C], the distinct items' content vectors.
        item_rows: int64 [U], their rows in the content store.
        history: int64 [S], indices into `content`, user after user.
        history_lengths: int64 [B].
        target: int64 [R].
        target_lengths: int64 [B].
        anchors: int64 [B, N_h], token indices into `history`; PADDING where a user
            has fewer.
        positives: int64 [B, N_t], token indices into `target`; PADDING likewise.
        users: int64 [B], numbers in the sequence set.
    """

    content: Tensor
    item_rows: Tensor
    history: Tensor
    history_lengths: Tensor
    target: Tensor
    target_lengths: Tensor
    anchors: Tensor
    positives: Tensor
    users: Tensor


def epoch_batches(
    sequences: SequenceSet,
    store: ContentStore,
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
        store: where the content vectors come from.
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
        yield collate(users, samples, store, sampling)


def collate(
    users: NDArray[np.int64],
    samples: list[UserSample],
    store: ContentStore,
    sampling: SamplingConfig,
) -> TowerBatch:
    """Pack samples into a batch; each distinct item's vector is gathered once."""
    history = np.concatenate([sample.history for sample in samples])
    target = np.concatenate([sample.target for sample in samples])
    rows, index = np.unique(np.r_[history, target], return_inverse=True)
    history_lengths = np.array([len(sample.history) for sample in samples])
    target_lengths = np.array([len(sample.target) for sample in samples])
    return TowerBatch(
        content=torch.from_numpy(store.gather(rows)),
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
