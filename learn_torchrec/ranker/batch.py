"""Ranking batches: this rank's rows in the form that TorchRec's pipelines take.

Dimension letters: B rows, F dense features.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from learn_torchrec.ranker.features.base import IdBags, joined_ids
from learn_torchrec.ranker.learn.batch import LearnBatch
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.rows import RankingRows
from learn_torchrec.training.batch import PipelineableBatch


@dataclass
class RankingBatch(PipelineableBatch):
    """One rank's share of a global batch.

    Attributes:
        dense_features: float32 [B, F].
        sparse_features: the ID features in the configured order; weighted if any of
            them is.
        labels: float32 [B], by column.
        weights: float32 [B]; 0 in padding.
        learn: LEARN's inputs; None with LEARN off.
        managed_features: ID features with managed collision; None without any.
        sequence_features: ID features whose tables attention reads; None without any.
    """

    dense_features: Tensor
    sparse_features: KeyedJaggedTensor
    labels: dict[str, Tensor]
    weights: Tensor
    learn: LearnBatch | None = None
    managed_features: KeyedJaggedTensor | None = None
    sequence_features: KeyedJaggedTensor | None = None


def collate(rows: RankingRows, learn: LearnInputs | None) -> RankingBatch:
    """Return rows as a batch; LEARN's inputs are fetched here."""
    batch = RankingBatch(
        dense_features=torch.from_numpy(rows.dense),
        sparse_features=_keyed_jagged(rows.sparse),
        labels={name: torch.from_numpy(part) for name, part in rows.labels.items()},
        weights=torch.from_numpy(rows.weights),
        managed_features=_keyed_jagged(rows.managed) if rows.managed else None,
        sequence_features=_keyed_jagged(rows.sequences) if rows.sequences else None,
    )
    if learn is not None and rows.learn is not None:
        batch.learn = learn.batch(rows.learn)
    return batch


def evaluation_batches(
    rows: RankingRows, learn: LearnInputs | None, padded_rows: int, batch_size: int
) -> Iterator[RankingBatch]:
    """Yield the rows in order, each exactly once, padded to `padded_rows`.

    Padding repeats row 0 with weight 0, so that every rank yields the same number of
    batches of the same sizes.
    """
    for first in range(0, padded_rows, batch_size):
        indices = np.arange(first, min(first + batch_size, padded_rows))
        is_padding = indices >= len(rows)
        batch = collate(rows.take(np.where(is_padding, 0, indices)), learn)
        batch.weights[torch.from_numpy(is_padding)] = 0.0
        yield batch


def _keyed_jagged(features: Mapping[str, IdBags]) -> KeyedJaggedTensor:
    """Return the features' bags; what TorchRec asks of lengths is computed here.

    Otherwise each step would wait for a GPU to add them up.
    """
    bags = list(features.values())
    values, weights = joined_ids(bags)
    lengths = np.concatenate([ids.lengths for ids in bags])
    return KeyedJaggedTensor(
        keys=list(features),
        values=torch.from_numpy(values),
        lengths=torch.from_numpy(lengths.astype(np.int32)),
        weights=None if weights is None else torch.from_numpy(weights),
    ).sync()
