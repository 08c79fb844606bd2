"""Packed sequences, and how attention, which alone sees padding, pads them little.

Sequences are put in order of their lengths and cut into groups: within one the longest
is less than twice as long as the shortest, and each group is padded to its own longest.

Dimension letters: S tokens of all sequences together, B sequences, L longest one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences of like length.

    Attributes:
        num_tokens: S of the group.
        num_sequences: B of the group.
        longest: L of the group.
        slots: int64 [S], the tokens' places in the padded grid [B * L]; None where
            they fill it.
    """

    num_tokens: int
    num_sequences: int
    longest: int
    slots: Tensor | None

    def pad(self, tokens: Tensor) -> Tensor:
        """[S, ...] -> [B, L, ...]; the empty slots hold zeros."""
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
        return _Take.apply(flat, self.slots)


class Packing:
    """Where packed tokens go when their sequences are put in order of length.

    Args:
        lengths: int64 [B], tokens of each sequence, all at least 1.

    Attributes:
        order: int64 [S], the packed token at each place of the new order.
        places: int64 [S], the place of each packed token in it.
        positions: int64 [S], of the token at each place within its sequence.
        longest: L.
        groups: what is padded together.
    """

    def __init__(self, lengths: Tensor) -> None:
        ordered, sequences = lengths.sort(stable=True)
        starts = ordered.cumsum(0) - ordered
        packed_starts = lengths.cumsum(0) - lengths
        sequence = torch.arange(len(lengths), device=lengths.device)
        sequence = sequence.repeat_interleave(ordered)
        places = torch.arange(sequence.shape[0], device=lengths.device)
        self.positions = places - starts[sequence]
        self.order = packed_starts[sequences][sequence] + self.positions
        self.places = torch.empty_like(self.order)
        self.places[self.order] = places
        sizes = ordered.tolist()
        self.longest: int = sizes[-1]
        self.groups = [
            self._group(sizes[first:stop], sum(sizes[:first]), sequence - first)
            for first, stop in _runs(sizes)
        ]

    def split(self, tokens: Tensor) -> Iterator[tuple[Group, Tensor]]:
        """Yield every group and its tokens [S, ...] of all groups' tokens, in order."""
        sizes = [group.num_tokens for group in self.groups]
        return zip(self.groups, tokens.split(sizes), strict=True)

    def _group(self, sizes: list[int], start: int, sequence: Tensor) -> Group:
        stop, longest, slots = start + sum(sizes), sizes[-1], None
        if sizes[0] < longest:
            slots = sequence[start:stop] * longest + self.positions[start:stop]
        return Group(stop - start, len(sizes), longest, slots)


def _runs(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Cut ascending sizes where one is twice the first of its run, or longer."""
    first = 0
    for place, size in enumerate(sizes):
        if size >= 2 * sizes[first]:
            yield first, place
            first = place
    yield first, len(sizes)


class _Take(torch.autograd.Function):
    """Rows of distinct indices: their gradients are put back, none are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        (gradient,) = gradients
        whole = gradient.new_zeros((ctx.count, *gradient.shape[1:]))
        return whole.index_copy_(0, rows, gradient), None
