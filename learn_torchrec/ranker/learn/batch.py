"""What LEARN knows of the rows of a batch, in the form that its modules take.

Letters: N rows, B rows of a batch, V history items of a batch, M distinct items of a
batch, D vector dim, R reduced content dim.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import fbgemm_gpu  # noqa: F401  # the operators
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learn_torchrec.arrays import Float16Array, Float32Array, Int64Array
from learn_torchrec.movable import Movable

warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")


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


class Meeting(Protocol):
    """What statistics read of histories: `HistoryBatch`, or what serving has."""

    candidates: Tensor
    items: Tensor
    lengths: Tensor
    counts: Tensor
    ages: Tensor
    vectors: dict[str, Tensor]

    def padded(self, values: Tensor, padding: float) -> Tensor:
        """Return values of the history items for each row, padded."""

    def cosines(self, space: str, padding: float) -> Tensor:
        """Return the cosines of candidates and history items for each row, padded."""


@dataclass
class HistoryBatch(Movable):
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

    @classmethod
    def of(
        cls,
        candidates: Sequence[int] | Tensor,
        items: Sequence[int] | Tensor,
        lengths: Sequence[int] | Tensor,
        ages: Sequence[float] | Tensor,
        vectors: Tensor,
    ) -> Self:
        """Make a batch of plain lists or tensors and content vectors.

        Items without a vector have row -1. Such events are left out, as are those that
        are not strictly before the row, and those of an item are counted.

        Args:
            candidates: int [B], rows of `vectors`.
            items: int [E], likewise, of each history's events, the latest last.
            lengths: int [B], events of each history.
            ages: float [E], days from the event to the row.
            vectors: float [N, R], of all items; only those of the batch are copied.

        Raises:
            ValueError: lengths that do not fit the others.

        Example:
            >>> content = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
            >>> history = HistoryBatch.of([2, 0], [0, 1, 0], [3, 0], [9, 5, 2], content)
            >>> history.lengths.tolist(), history.counts.tolist()
            ([2, 0], [1.0, 2.0])
        """
        device = vectors.device
        wanted, met, sizes = (
            torch.as_tensor(values, dtype=torch.int64, device=device)
            for values in (candidates, items, lengths)
        )
        days = torch.as_tensor(ages, dtype=torch.float32, device=device)
        if len(sizes) != len(wanted) or not len(met) == len(days) == sizes.sum():
            raise ValueError(
                f"{len(wanted)} candidates and {len(sizes)} lengths, which sum to "
                f"{int(sizes.sum())}, of {len(met)} items and {len(days)} ages"
            )
        owners = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
        kept = (met >= 0) & (days > 0)
        met, days, owners = met[kept], days[kept], owners[kept]
        pairs, groups, counts = torch.stack([owners, met]).unique(
            dim=1, return_inverse=True, return_counts=True
        )
        last = torch.zeros_like(counts).scatter_reduce_(
            0, groups, torch.arange(len(met), device=device), "amax"
        )
        last, order = last.sort()
        sizes = pairs[0].bincount(minlength=len(sizes))
        used, places = torch.cat([wanted.clamp(min=-1), met[last]]).unique(
            return_inverse=True
        )
        known = used >= 0
        places = places + int(known.all())  # row 0 is that of -1
        unit = F.normalize(vectors[used[known]].float(), dim=1).half()
        return cls(
            candidates=places[: len(wanted)],
            items=places[len(wanted) :],
            lengths=sizes,
            counts=counts[order].float(),
            ages=days[last],
            vectors={"content": torch.cat([unit.new_zeros(1, unit.shape[1]), unit])},
            longest=max(1, int(sizes.max())) if len(sizes) else 1,
        )

    def padded(self, values: Tensor, padding: float) -> Tensor:
        """Return values [V] of the history items as [B, longest]."""
        result: Tensor = torch.ops.fbgemm.jagged_to_padded_dense(
            values.unsqueeze(1), [self._offsets], [self.longest], padding
        )
        return result.squeeze(2)

    def cosines(self, space: str, padding: float) -> Tensor:
        """Return the cosines of candidates and history items, float32 [B, L].

        They are rounded to half precision, as are the vectors: twins stay equal on any
        device.
        """
        vectors = self.vectors[space]
        wanted = vectors.index_select(0, self.candidates)
        compare = self._batched if vectors.is_cuda else self._sampled
        return compare(wanted, vectors, padding)

    def _batched(self, wanted: Tensor, vectors: Tensor, padding: float) -> Tensor:
        """Return the padded products of `wanted` [B, R] and the vectors they meet."""
        items = self.padded(self.items, 0)
        met = vectors.index_select(0, items.flatten()).unflatten(0, items.shape)
        found = torch.bmm(met, wanted.unsqueeze(2)).squeeze(2).float()
        places = torch.arange(self.longest, device=vectors.device)
        return torch.where(places < self.lengths.unsqueeze(1), found, padding)

    def _sampled(self, wanted: Tensor, vectors: Tensor, padding: float) -> Tensor:
        """Return the same, reading the vectors where they are.

        A CPU spends most of a batched product's time on copying and in half precision.
        """
        met = torch.sparse_csr_tensor(
            self._offsets,
            self.items,
            torch.zeros(len(self.items)),
            (len(wanted), len(vectors)),
            check_invariants=False,
        )
        found = torch.sparse.sampled_addmm(
            met, wanted.float(), vectors.float().T, beta=0.0
        )
        return self.padded(found.values().half().float(), padding)

    @functools.cached_property
    def _offsets(self) -> Tensor:
        offsets: Tensor = torch.ops.fbgemm.asynchronous_complete_cumsum(self.lengths)
        return offsets


@dataclass
class LearnBatch(Movable):
    """LEARN's inputs of a batch.

    Attributes:
        has_vectors: bool [B, 2], whether the user and the item have one.
        user_vectors: float16 [B, D], zeros where missing; None without towers.
        item_vectors: float16 [B, D], likewise.
        candidates: float16 [B, R], the items' content, likewise; None without content.
        neighbour_rates: float32 [B, tasks + 1]; None without.
        history: what the candidates meet; None if no part needs it.
        item_ids: a `KeyedJaggedTensor` of the items' rows in the id table, of the
            "candidate" (none or one) and of the "history"; None if attention needs no
            ids.
        statistics: float32 [B, F] and
        history_means: float16 [B, R], where they were computed with the rows.
    """

    has_vectors: Tensor
    user_vectors: Tensor | None = None
    item_vectors: Tensor | None = None
    candidates: Tensor | None = None
    neighbour_rates: Tensor | None = None
    history: HistoryBatch | None = None
    item_ids: Any = None
    statistics: Tensor | None = None
    history_means: Tensor | None = None

    @classmethod
    def of(
        cls,
        history: HistoryBatch,
        user_vectors: Tensor | None = None,
        item_vectors: Tensor | None = None,
    ) -> Self:
        """Make a batch of histories and, with towers, both vectors.

        Args:
            history: what the candidates meet.
            user_vectors: float [B, D], zeros where missing.
            item_vectors: float [B, D], likewise.
        """
        has_item = history.candidates > 0
        has_user = torch.zeros_like(has_item)
        if user_vectors is not None:
            has_user = (user_vectors != 0).any(dim=1)
        candidates = None
        if "content" in history.vectors:
            candidates = history.vectors["content"][history.candidates]
        return cls(
            has_vectors=torch.stack([has_user, has_item], dim=1),
            user_vectors=user_vectors,
            item_vectors=item_vectors,
            candidates=candidates,
            history=history,
        )
