"""Dropout with cheap masks on the CPU.

PyTorch draws one random number per element on the CPU, which took 7 % of a training
step of the paper's towers. Here 64 random bits serve four elements, and they come from
NumPy's SFC64, several times as fast as PyTorch's Mersenne Twister. The drop probability
is rounded to a multiple of 1 / 65536.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16  # of 16 random bits


class _Masked(torch.autograd.Function):
    """x * keep * scale, which saves only the one-byte mask for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return x.mul(keep).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return gradients[0].mul(keep).mul_(ctx.scale), None, None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero elements of `x` with probability `p` and scale the rest by 1 / (1 - p).

    Seeded by PyTorch's generator, like `torch.nn.functional.dropout`, but with other
    masks.
    """
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    threshold = round(p * _LEVELS)
    seed = int(torch.randint(torch.iinfo(torch.int64).max, ()))
    words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))
    bits = torch.from_numpy(words).view(torch.int16)[: x.numel()].view(x.shape)
    keep = bits >= threshold - _LEVELS // 2
    return _Masked.apply(x, keep, _LEVELS / (_LEVELS - threshold))


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]."""
        return dropout(x, self.p, self.training)
