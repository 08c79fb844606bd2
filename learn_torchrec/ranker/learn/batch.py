"""What LEARN knows of the rows of a batch, in the form that its modules take.

Letters: N rows, B rows of a batch, V history items of a batch, M distinct items of a
batch, D vector dim, R reduced content dim.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from learn_torchrec.arrays import Float16Array, Float32Array, Int64Array
from learn_torchrec.training.batch import PipelineableBatch


@dataclass(frozen=True, kw_only=True)
class LearnRows:
    """Where LEARN's inputs of some rows are.

    Attributes:
        item_rows: int64 [N], rows of the item vectors, -1 where missing.
        user_rows: int64 [N], rows of the user vectors, likewise; None without any.
        times: int64 [N], unix seconds.
        history: int64 [N, 2], bounds of the events before the row; None if no part
            needs them.
        neighbour_rates: float32 [N, tasks + 1], see `neighbours`; None without.
        statistics: float32 [N, F], see `statistics`; None if the model computes them.
        history_means: float16 [N, R], of the histories' content; likewise.
    """

    item_rows: Int64Array
    user_rows: Int64Array | None
    times: Int64Array
    history: Int64Array | None = None
    neighbour_rates: Float32Array | None = None
    statistics: Float32Array | None = None
    history_means: Float16Array | None = None

    @functools.cached_property
    def columns(self) -> dict[str, Any]:
        """The arrays that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    def __len__(self) -> int:
        return len(self.item_rows)

    def take(self, rows: Int64Array | slice) -> "LearnRows":
        """Return the rows with these indices."""
        taken: dict[str, Any] = {n: value[rows] for n, value in self.columns.items()}
        return LearnRows(**{"user_rows": None, **taken})

    @classmethod
    def concatenate(cls, parts: Sequence["LearnRows"]) -> "LearnRows":
        """Concatenate parts that have the same columns."""
        joined: dict[str, Any] = {
            name: np.concatenate([part.columns[name] for part in parts])
            for name in parts[0].columns
        }
        return cls(**{"user_rows": None, **joined})


@dataclass
class HistoryBatch(PipelineableBatch):
    """Candidates and histories as rows of the batch's distinct items.

    Row 0 of every space's vectors is zero: the row of what has no vector.

    Attributes:
        candidates: int64 [B], rows of `vectors`.
        items: int64 [V], likewise, history after history, the latest item last.
        lengths: int64 [B].
        counts: float32 [V], events of the item so far.
        ages: float32 [V], days since the item's last event.
        vectors: float16 [M + 1, R or D] of unit length, by space.
        longest: items of the longest history, known without asking the device.
    """

    candidates: Tensor
    items: Tensor
    lengths: Tensor
    counts: Tensor
    ages: Tensor
    vectors: dict[str, Tensor]
    longest: int

    def padded(self, values: Tensor, padding: float) -> Tensor:
        """Return values [V] of the history items as [B, longest]."""
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(self.lengths)
        result: Tensor = torch.ops.fbgemm.jagged_to_padded_dense(
            values.unsqueeze(1), [offsets], [self.longest], padding
        )
        return result.squeeze(2)


@dataclass
class LearnBatch(PipelineableBatch):
    """LEARN's inputs of a batch.

    Attributes:
        has_vectors: bool [B, 2], whether the user and the item have one.
        user_vectors: float16 [B, D], zeros where missing; None without towers.
        item_vectors: float16 [B, D], likewise.
        candidates: float16 [B, R], the items' content, likewise; None without content.
        neighbour_rates: float32 [B, tasks + 1]; None without.
        history: what the candidates meet; None if no part needs it.
        item_ids: the items' rows in the id table, of the "candidate" (none or one)
            and of the "history"; None if attention needs no ids.
        statistics: float32 [B, F] and
        history_means: float16 [B, R], where they were computed with the rows.
    """

    has_vectors: Tensor
    user_vectors: Tensor | None = None
    item_vectors: Tensor | None = None
    candidates: Tensor | None = None
    neighbour_rates: Tensor | None = None
    history: HistoryBatch | None = None
    item_ids: KeyedJaggedTensor | None = None
    statistics: Tensor | None = None
    history_means: Tensor | None = None
