"""Ranking batches: this rank's rows, as TorchRec's pipelines want them.

Dimension letters: B rows, F dense features, D vector dim.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torchrec import KeyedJaggedTensor

from learn_torchrec.errors import UserError
from learn_torchrec.ranker.rows import JaggedIds, RankingRows
from learn_torchrec.training.batch import PipelineableBatch

Ints = NDArray[np.int64]


@dataclass
class RankingBatch(PipelineableBatch):
    """One rank's share of a global batch.

    Attributes:
        dense_features: float32 [B, F].
        sparse_features: an ID feature each, in the order of the configuration;
            weighted where one of them is.
        labels: float32 [B].
        weights: float32 [B]; 0 in padding.
        user_vectors: float16 [B, D], zeros where missing; None with LEARN off.
        item_vectors: float16 [B, D], likewise.
        has_vectors: bool [B, 2], whether the user's, the item's vector is there.
        auxiliary_labels: float32 [B], of the auxiliary network; None for `labels`.
        managed_features: ID features whose rows TorchRec finds; None without any.
    """

    dense_features: Tensor
    sparse_features: KeyedJaggedTensor
    labels: Tensor
    weights: Tensor
    user_vectors: Tensor | None = None
    item_vectors: Tensor | None = None
    has_vectors: Tensor | None = None
    auxiliary_labels: Tensor | None = None
    managed_features: KeyedJaggedTensor | None = None


def training_batches(
    rows: RankingRows, *, batch_size: int, seed: int, epoch: int, start: int = 0
) -> Iterator[RankingBatch]:
    """Yield this rank's share of every global batch of one shuffled pass.

    `start` leaves out the first steps, which an earlier run has taken.

    The order follows from (seed, epoch) alone; the last, incomplete global batch is
    left out, so every rank takes the same number of steps.

    Raises:
        UserError: a batch size that does not fit the ranks or the rows.
    """
    check_batch_size(batch_size, len(rows))
    world_size, rank = dist.get_world_size(), dist.get_rank()
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    per_rank = batch_size // world_size
    for step in range(start, len(rows) // batch_size):
        first = step * batch_size + rank * per_rank
        yield collate(rows, order[first : first + per_rank])


def check_batch_size(batch_size: int, rows: int) -> None:
    """Refuse a batch size that does not fit the ranks or the rows."""
    if batch_size % dist.get_world_size():
        raise UserError(
            f"ranker.training.batch_size={batch_size} must be a multiple of the "
            f"number of ranks, {dist.get_world_size()}"
        )
    if batch_size > rows:
        raise UserError(
            f"ranker.training.batch_size={batch_size} is more than the {rows} "
            "training rows; make it smaller"
        )


def evaluation_batches(
    rows: RankingRows, width: int, batch_size: int
) -> Iterator[RankingBatch]:
    """Yield the rows in order, each exactly once.

    What is missing to `width` rows, the same on every rank, is filled with row 0 at
    weight 0: every rank yields as many batches of the same size.
    """
    for first in range(0, width, batch_size):
        places = np.arange(first, min(first + batch_size, width))
        is_padding = places >= len(rows)
        batch = collate(rows, np.where(is_padding, 0, places))
        batch.weights[torch.from_numpy(is_padding)] = 0.0
        yield batch


def rank_rows(count: int) -> Ints:
    """Return this rank's contiguous share of `count` rows to score."""
    per_rank = -(-count // dist.get_world_size())
    first = dist.get_rank() * per_rank
    return np.arange(min(first, count), min(first + per_rank, count))


def collate(rows: RankingRows, index: Ints) -> RankingBatch:
    """Cut the rows `index` [B] out of all rows."""
    managed = {n: x for n, x in rows.sparse.items() if n in rows.managed}
    hashed = {n: x for n, x in rows.sparse.items() if n not in rows.managed}
    batch = RankingBatch(
        dense_features=torch.from_numpy(rows.dense[index]),
        sparse_features=_keyed_jagged(hashed, index),
        labels=torch.from_numpy(rows.labels[index]),
        weights=torch.from_numpy(rows.weights[index]),
    )
    if managed:
        batch.managed_features = _keyed_jagged(managed, index)
    if rows.auxiliary_labels is not None:
        batch.auxiliary_labels = torch.from_numpy(rows.auxiliary_labels[index])
    if rows.vectors is not None:
        batch.user_vectors, batch.item_vectors, batch.has_vectors = rows.vectors.gather(
            rows.user_rows[index], rows.item_rows[index]
        )
    return batch


def _keyed_jagged(features: Mapping[str, JaggedIds], index: Ints) -> KeyedJaggedTensor:
    taken = [feature.take(index) for feature in features.values()]
    weights = None
    if any(ids.weights is not None for ids in taken):
        parts = [
            np.ones(len(ids.values), np.float32) if ids.weights is None else ids.weights
            for ids in taken
        ]
        weights = torch.from_numpy(np.concatenate(parts))
    return KeyedJaggedTensor(
        keys=list(features),
        values=torch.from_numpy(np.concatenate([ids.values for ids in taken])),
        lengths=torch.from_numpy(np.concatenate([ids.lengths for ids in taken])),
        weights=weights,
    )
