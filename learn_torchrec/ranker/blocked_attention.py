"""Target attention on a CPU: in blocks of rows whose entries stay in the cache.

The plain form writes a dozen tensors as large as all histories to memory, and reads
them again for the gradients. Here a block's are made, used and dropped, and made again
for the gradients.

Letters: B rows, V history entries of all rows, K dims, H hidden size; b and v are those
of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_ENTRIES = 5_000  # of a cache of 1 MB


@dataclass(frozen=True)
class Scoring:
    """The MLP that weighs the entries, taken apart.

    Attributes:
        of_key: [H, K], of the hidden layer.
        of_product: [H, K], likewise.
        score: [H], of the last layer.
        bias: [1], likewise.
    """

    of_key: Tensor
    of_product: Tensor
    score: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Block:
    """Consecutive rows and their entries.

    Attributes:
        rows: of the batch.
        entries: of all histories.
        owners: int64 [v], the row of the block for each entry.
        offsets: int64 [b], each row's first entry in the block.
    """

    rows: slice
    entries: slice
    owners: Tensor
    offsets: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """Repeat the block's of `values` [B, D] for each of their entries, [v, D]."""
        return values[self.rows].index_select(0, self.owners)

    def sums(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the weighted sum of each row's values [v, D], [b, D]."""
        places = torch.arange(len(values))
        return F.embedding_bag(
            places, values, self.offsets, mode="sum", per_sample_weights=weights
        )


def _blocks(lengths: Tensor) -> Iterator[_Block]:
    """Yield blocks of about the same number of entries, at least a row each."""
    ends = lengths.cumsum(0)
    of_block = (ends - lengths) // _BLOCK_ENTRIES  # by a row's first entry
    start = first = 0
    for rows in of_block.unique_consecutive(return_counts=True)[1].tolist():
        stop = start + rows
        last = int(ends[stop - 1])
        own = lengths[start:stop]
        yield _Block(
            rows=slice(start, stop),
            entries=slice(first, last),
            owners=torch.arange(rows).repeat_interleave(own, output_size=last - first),
            offsets=own.cumsum(0) - own,
        )
        start, first = stop, last


def _weigh(
    keys: Tensor, queries: Tensor, hidden: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights [v], the activated hidden layer [v, H] and key * query [v, K]."""
    products = keys * queries
    hidden.addmm_(keys, scoring.of_key.T).addmm_(products, scoring.of_product.T)
    activated = hidden.relu_()
    return activated @ scoring.score + scoring.bias, activated, products


class BlockedAttention(torch.autograd.Function):
    """The weighted sums of histories; arguments as those of `pooled`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Tensor:
        """Return the sums, [B, K]."""
        keys, query, hidden, lengths, *parts = arguments
        ctx.save_for_backward(*arguments)
        ctx.blocks = list(_blocks(lengths))
        scoring, result = Scoring(*parts), torch.empty_like(query)
        for block in ctx.blocks:
            own = keys[block.entries]
            weights, _, _ = _weigh(
                own, block.spread(query), block.spread(hidden), scoring
            )
            result[block.rows] = block.sums(own, weights)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the arguments."""
        keys, query, hidden, _, *parts = ctx.saved_tensors
        scoring = Scoring(*parts)
        of_keys, of_query, of_hidden = (
            torch.empty_like(part) for part in (keys, query, hidden)
        )
        of_parts = Scoring(*(torch.zeros_like(part) for part in parts))
        for block in ctx.blocks:
            own, queries = keys[block.entries], block.spread(query)
            weights, activated, products = _weigh(
                own, queries, block.spread(hidden), scoring
            )
            given = block.spread(gradient)
            of_weights = (given * own).sum(1)
            of_parts.bias.add_(of_weights.sum())
            of_parts.score.addmv_(activated.T, of_weights)
            inner = torch.outer(of_weights, scoring.score)
            inner = torch.ops.aten.threshold_backward(inner, activated, 0)
            of_parts.of_key.addmm_(inner.T, own)
            of_parts.of_product.addmm_(inner.T, products)
            of_hidden[block.rows] = block.sums(inner)
            of_products = inner @ scoring.of_product
            of_query[block.rows] = block.sums(of_products * own)
            of_own = given.mul_(weights.unsqueeze(1)).addmm_(inner, scoring.of_key)
            of_keys[block.entries] = of_own.addcmul_(of_products, queries)
        parts = [of_parts.of_key, of_parts.of_product, of_parts.score, of_parts.bias]
        return of_keys, of_query, of_hidden, None, *parts


def pooled(
    keys: Tensor, query: Tensor, hidden: Tensor, lengths: Tensor, scoring: Scoring
) -> Tensor:
    """Return the weighted sums of histories, [B, K].

    Args:
        keys: [V, K], the entries, history after history.
        query: [B, K].
        hidden: [B, H], what the query and the bias add to the hidden layer.
        lengths: int [B], entries of each row.
        scoring: of the entries.
    """
    parts = (scoring.of_key, scoring.of_product, scoring.score, scoring.bias)
    result: Tensor = BlockedAttention.apply(keys, query, hidden, lengths.long(), *parts)
    return result
