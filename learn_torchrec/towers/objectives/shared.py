"""What the objectives share: sums over ranks, log q, logits of repeated items."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from learn_torchrec.towers.repeat import RepeatedItems


def item_log_q(counts: Tensor) -> Tensor:
    """Log share of each item among the training events; unseen items count once.

    Args:
        counts: int64 [N], training events of each catalogue item.

    Returns:
        float32 [N].
    """
    counts = counts.clamp(min=1).double()
    return (counts / counts.sum()).log().float()


class ExtraLogits(NamedTuple):
    """Logits to add: rows ascending, columns and values, [hits] each."""

    row: Tensor
    column: Tensor
    value: Tensor


def extra_logits(
    seen: RepeatedItems | None, candidates: Tensor, temperature: float | Tensor
) -> ExtraLogits | None:
    """Find the columns of the candidates that are items an anchor has met."""
    if seen is None:
        return None
    query, column = columns_of(seen.item, candidates)
    return ExtraLogits(seen.anchor[query], column, seen.score[query] / temperature)


def with_extra(logits: Tensor, start: int, extra: ExtraLogits | None) -> Tensor:
    """Add to the logits [n, K] of rows `start` to `start + n` what belongs to them."""
    if extra is None:
        return logits
    bounds = torch.tensor([start, start + len(logits)], device=logits.device)
    first, last = torch.searchsorted(extra.row, bounds)
    rows = extra.row[first:last] - start
    index = (rows, extra.column[first:last])
    return logits.index_put(index, extra.value[first:last], accumulate=True)


def columns_of(item: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Find each item among the candidates, in the order of the items.

    Sorts the candidates once: work and memory follow the number of hits, not items x
    candidates.

    Returns:
        int64 [hits] each: which item, and in which place of the candidates.
    """
    ordered, order = candidates.sort()
    first = torch.searchsorted(ordered, item)
    counts = torch.searchsorted(ordered, item, right=True) - first
    starts = counts.cumsum(0) - counts
    total = int(counts.sum())
    within = torch.arange(total, device=item.device) - starts.repeat_interleave(counts)
    columns = order[first.repeat_interleave(counts) + within]
    numbers = torch.arange(len(item), device=item.device)
    return numbers.repeat_interleave(counts), columns


def world_size() -> int:
    """Ranks of the job; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def over_ranks(count: Tensor) -> Tensor:
    """Sum a count over ranks."""
    if world_size() == 1:
        return count
    total = count.clone()
    dist.all_reduce(total)
    return total
