import pytest
import torch

from learn_torchrec.towers.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_the_right_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 1003)
    y = dropout(x, p, training=True)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.002)
    assert y[y != 0].unique().numel() == 1
    assert y.mean().item() == pytest.approx(1, abs=0.02)


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_000), 0.3, training=True) == 0).float()
    for distance in (1, 2, 3, 4, 5, 64):  # 4 elements share a random word
        both = (dropped[distance:] * dropped[:-distance]).mean().item()
        assert both == pytest.approx(0.09, abs=0.003)


def test_the_gradient_passes_where_the_value_does():
    x = torch.randn(50, 7, requires_grad=True)
    y = dropout(x, 0.4, training=True)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)
    torch.testing.assert_close(x.grad * x, y)


def test_follows_the_generator_and_rests_outside_training():
    x = torch.randn(100)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x, 0.5, training=True))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
