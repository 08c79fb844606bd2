"""The same on CUDA as on the CPU; run with `make test-gpu` on a machine with one."""

import copy

import pytest
import torch
import torch.nn.functional as F

from learn_torchrec.evaluation.retrieval import evaluate_retrieval
from learn_torchrec.evaluation.topk import top_items
from learn_torchrec.jagged import Jagged
from learn_torchrec.towers.encoder import PreferenceEncoder
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.objectives.dense_all_action import dense_all_action_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_the_encoder_and_its_gradients():
    torch.manual_seed(0)
    shape = EncoderShape(
        width=64, num_layers=2, num_heads=4, feed_forward_dim=128, dropout=0.0
    )
    encoder = PreferenceEncoder(torch.randn(32), torch.rand(32) + 0.5, shape)
    content = torch.randn(50, 32).half()
    lengths = torch.tensor([7, 1, 20, 12])
    items = torch.randint(0, 50, (int(lengths.sum()),))
    results = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(encoder).to(device)
        vectors = model(content.to(device), items.to(device), lengths.to(device))
        vectors[:, 0].sum().backward()
        gradient = model.content_projection.weight.grad
        results.append((vectors.detach().cpu(), gradient.cpu()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-3)


def test_the_loss_and_its_gradient():
    torch.manual_seed(0)
    anchors = F.normalize(torch.randn(150, 4, 16), dim=-1)
    positives = F.normalize(torch.randn(150, 3, 16), dim=-1)
    mask = torch.rand(150, 4) < 0.8
    items = torch.randint(-1, 200, (150, 3))
    results = []
    for device in ("cpu", "cuda"):
        inputs = [x.to(device).requires_grad_() for x in (anchors, positives)]
        loss = dense_all_action_loss(
            *inputs, mask.to(device), items.to(device), temperature=0.1
        )
        loss.backward()
        results.append([loss.detach().cpu(), *(x.grad.cpu() for x in inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-3)


def test_the_ranks_of_targets():
    generator = torch.Generator().manual_seed(0)
    # Whole numbers: products are exact, and many scores tie.
    users = torch.randint(-2, 3, (70, 4), generator=generator).float()
    items = torch.randint(-2, 3, (500, 4), generator=generator).float()
    targets, history = (
        Jagged.from_lists(torch.randint(0, 500, (70, 5), generator=generator).tolist())
        for _ in range(2)
    )
    expected = evaluate_retrieval(users, items, targets, history, ks=(10, 100))
    found = evaluate_retrieval(
        users.cuda(), items.cuda(), targets, history, ks=(10, 100)
    )
    assert found == expected


def test_the_best_items():
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(50, 16, generator=generator)
    items = torch.randn(3000, 16, generator=generator)
    expected = top_items(users, items, 20)
    found = top_items(users.cuda(), items.cuda(), 20)
    # Scores that differ in the last bits may change places, and nothing else.
    assert (found.items == expected.items).mean() > 0.99
    torch.testing.assert_close(
        torch.from_numpy(found.scores), torch.from_numpy(expected.scores)
    )
