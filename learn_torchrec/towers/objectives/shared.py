"""Helpers that the objectives share: log q, repeat logits, sums over ranks."""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from learn_torchrec.towers.repeat import RepeatedItems


def item_log_q(counts: Tensor) -> Tensor:
    """Return the log share of each item of the training events, float32 [N].

    `counts` are int64 [N], training events of each item; unseen items count as 1.
    """
    counts = counts.clamp(min=1).double()
    return (counts / counts.sum()).log().float()


class RepeatLogits(NamedTuple):
    """Logits to add: rows, ascending, columns and values, [hits] each."""

    row: Tensor
    column: Tensor
    value: Tensor


def repeat_logits(
    repeated: RepeatedItems | None, candidates: Tensor, temperature: float | Tensor
) -> RepeatLogits | None:
    """Find the candidates that are in the history of an anchor."""
    if repeated is None:
        return None
    query, column = columns_of(repeated.item, candidates)
    value = repeated.score[query] / temperature
    return RepeatLogits(repeated.anchor[query], column, value)


def repeats_by_chunk(
    repeats: RepeatLogits | None, rows: int, size: int
) -> list[RepeatLogits | None]:
    """Divide them among chunks of `size` of the `rows`, numbered anew in each."""
    if repeats is None:
        return [None] * -(-rows // size)
    return [
        RepeatLogits(repeats.row[part] - chunk * size, *(x[part] for x in repeats[1:]))
        for chunk, part in enumerate(slices_of_chunks(repeats.row, rows, size))
    ]


def slices_of_chunks(ascending: Tensor, rows: int, size: int) -> list[slice]:
    """Return where each chunk of `size` of the `rows` lies in `ascending` row numbers.

    The device is asked once for all chunks.
    """
    firsts = torch.arange(0, rows + size, size, device=ascending.device)
    bounds = torch.searchsorted(ascending, firsts).tolist()
    return [slice(first, last) for first, last in pairwise(bounds)]


def add_repeat_logits(logits: Tensor, repeats: RepeatLogits | None) -> Tensor:
    """Add to a chunk's logits [n, K] its own."""
    if repeats is None:
        return logits
    index = repeats.row, repeats.column
    return logits.index_put(index, repeats.value, accumulate=True)


def columns_of(item: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Find each item among the candidates, in the order of the items.

    Sorts the candidates once: time and memory grow with the number of hits, not with
    items x candidates.

    Returns:
        int64 [hits] each: index of the item, and of the candidate.
    """
    ordered, order = candidates.sort()
    first = torch.searchsorted(ordered, item)
    counts = torch.searchsorted(ordered, item, right=True) - first
    starts = counts.cumsum(0) - counts
    total = int(counts.sum())
    numbers = torch.arange(len(item), device=item.device)
    query = numbers.repeat_interleave(counts, output_size=total)
    within = torch.arange(total, device=item.device) - starts[query]
    return query, order[first[query] + within]


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(count: Tensor) -> Tensor:
    """Sum a count over ranks."""
    if world_size() == 1:
        return count
    total = count.clone()
    dist.all_reduce(total)
    return total
