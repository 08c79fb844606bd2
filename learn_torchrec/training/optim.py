"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import KeyedOptimizer, KeyedOptimizerWrapper

from learn_torchrec.config import configuration

Decay = Literal["cosine", "linear", "constant"]
DecayRate = Annotated[float, Field(ge=0, lt=1)]


@configuration
class OptimizerConfig:
    """AdamW with warm-up and decay; the defaults are the authors'.

    Attributes:
        learning_rate: peak.
        warmup: share of all steps over which the rate rises to its peak.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled; not applied to biases and norms.
        max_grad_norm: gradients are clipped to this global norm; 0 is off.
    """

    learning_rate: PositiveFloat = 5e-5
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    beta1: DecayRate = 0.9
    beta2: DecayRate = 0.98
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: NonNegativeFloat = 1.0


def dense_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> KeyedOptimizer:
    """Return AdamW over named parameters, with gradient clipping if configured."""
    named = {name: value for name, value in parameters if value.requires_grad}

    def adamw(values: list[nn.Parameter]) -> torch.optim.Optimizer:
        matrices = [value for value in values if value.ndim > 1]
        vectors = [value for value in values if value.ndim <= 1]  # biases and norms
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    optimizer = KeyedOptimizerWrapper(named, adamw)
    if not config.max_grad_norm:
        return optimizer
    return GradientClippingOptimizer(
        optimizer,
        clipping=GradientClipping.NORM,
        max_gradient=config.max_grad_norm,
    )


def warmup_decay(
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    warmup: float,
    decay: Decay = "cosine",
) -> LambdaLR:
    """Return a schedule that warms up over a share of the steps, then decays.

    It scales the rate of every parameter group, those of tables in a
    `CombinedOptimizer` included.
    """
    warmup_steps = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return _DECAYS[decay](min(progress, 1.0))

    return LambdaLR(optimizer, factor)


_DECAYS: dict[Decay, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}
