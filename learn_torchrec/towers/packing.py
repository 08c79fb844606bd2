"""Packed sequences, grouped by length so that attention pads little.

Sequences are sorted by length and cut into groups; within a group the longest is less
than twice as long as the shortest, and each group is padded to its own longest.

Dimension letters: S tokens of all sequences together, B sequences, L longest one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Sequences of similar length that are padded together.

    Attributes:
        num_tokens: S of the group.
        num_sequences: B of the group.
        longest: L of the group.
        slots: int64 [S], indices of the tokens in the padded grid [B * L]; None where
            there is no padding.
    """

    num_tokens: int
    num_sequences: int
    longest: int
    slots: Tensor | None

    def pad(self, tokens: Tensor) -> Tensor:
        """[S, ...] -> [B, L, ...]; padding is zero."""
        if self.slots is not None:
            rows = self.num_sequences * self.longest
            grid = tokens.new_zeros((rows, *tokens.shape[1:]))
            tokens = grid.index_copy_(0, self.slots, tokens)
        return tokens.unflatten(0, (self.num_sequences, self.longest))

    def unpad(self, padded: Tensor) -> Tensor:
        """[B, L, ...] -> [S, ...]."""
        flat = padded.flatten(0, 1)
        if self.slots is None:
            return flat
        return _SelectRows.apply(flat, self.slots)


class Packing:
    """The permutation that sorts packed sequences by length, and the length groups.

    Args:
        lengths: int64 [B], tokens of each sequence, all at least 1.

    Attributes:
        order: int64 [S], index of the packed token at each sorted position.
        inverse: int64 [S], sorted position of each packed token.
        positions: int64 [S], position within its sequence of each sorted token.
        longest: L.
        groups: of the sorted sequences, in order.
    """

    def __init__(self, lengths: Tensor) -> None:
        ordered, sequences = lengths.sort(stable=True)
        starts = ordered.cumsum(0) - ordered
        packed_starts = lengths.cumsum(0) - lengths
        sizes = ordered.tolist()  # the only question to the device
        sequence = torch.arange(len(lengths), device=lengths.device)
        sequence = sequence.repeat_interleave(ordered, output_size=sum(sizes))
        index = torch.arange(sequence.shape[0], device=lengths.device)
        self.positions = index - starts[sequence]
        self.order = packed_starts[sequences][sequence] + self.positions
        self.inverse = torch.empty_like(self.order)
        self.inverse[self.order] = index
        self.longest: int = sizes[-1]
        self.groups = [
            self._group(sizes[first:stop], sum(sizes[:first]), sequence - first)
            for first, stop in _group_bounds(sizes)
        ]

    def split(self, tokens: Tensor) -> Iterator[tuple[Group, Tensor]]:
        """Yield every group with its own tokens; `tokens` [S, ...] are sorted."""
        sizes = [group.num_tokens for group in self.groups]
        return zip(self.groups, tokens.split(sizes), strict=True)

    def _group(self, sizes: list[int], start: int, sequence: Tensor) -> Group:
        stop, longest, slots = start + sum(sizes), sizes[-1], None
        if sizes[0] < longest:
            slots = sequence[start:stop] * longest + self.positions[start:stop]
        return Group(stop - start, len(sizes), longest, slots)


def _group_bounds(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Cut ascending sizes wherever one is at least twice the first of its group."""
    first = 0
    for index, size in enumerate(sizes):
        if size >= 2 * sizes[first]:
            yield first, index
            first = index
    yield first, len(sizes)


class _SelectRows(torch.autograd.Function):
    """Select distinct rows; backward copies gradients instead of accumulating."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (rows,), (gradient,) = ctx.saved_tensors, gradients
        result = gradient.new_zeros((ctx.count, *gradient.shape[1:]))
        return result.index_copy_(0, rows, gradient), None
