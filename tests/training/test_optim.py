"""The dense optimizer, and the rates over the steps."""

import pytest
import torch
from torch import nn

from learn_torchrec.training.optim import (
    OptimizerConfig,
    dense_optimizer,
    warmup_decay,
)


def test_weight_decay_shrinks_matrices_alone():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    dense_optimizer(model.named_parameters(), config).step()
    for name, parameter in model.named_parameters():
        is_matrix = name in ("0.weight", "1.weight")
        expected = 1 - 0.1 * 0.5 if is_matrix else 1.0
        assert parameter.unique().tolist() == [pytest.approx(expected)], name


def test_the_rate_climbs_and_falls():
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = warmup_decay(optimizer, total_steps=10, warmup=0.2)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(1.0)  # half of the way down
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
