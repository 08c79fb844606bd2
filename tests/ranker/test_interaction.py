"""The dot products of features, beside TorchRec's own."""

import pytest
import torch
from torchrec.models.dlrm import InteractionArch

from learn_torchrec.ranker.interaction import DotProducts


def test_by_hand():
    dense, sparse = torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 4.0], [5.0, 6.0]]])
    found = DotProducts(2)(dense, sparse)
    assert found.tolist() == [[1, 2, 11, 17, 39]]


@pytest.mark.parametrize("features", [0, 1, 6])
def test_values_and_gradients_are_torchrecs_bit_for_bit(features):
    torch.manual_seed(features)
    inputs = [torch.randn(9, 8), torch.randn(9, features, 8)]
    results = []
    for arch in (DotProducts(features), InteractionArch(features)):
        dense, sparse = (part.clone().requires_grad_() for part in inputs)
        found = arch(dense, sparse)
        found.square().sum().backward()
        results.append((found, dense.grad, sparse.grad if features else dense.grad))
        assert not arch.state_dict()
    for one, other in zip(*results, strict=True):
        assert one.equal(other)
