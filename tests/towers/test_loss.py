import math

import pytest
import torch
import torch.nn.functional as F

from learn_torchrec.towers.objectives import dense_all_action as losses
from learn_torchrec.towers.objectives.dense_all_action import dense_all_action_loss


def naive_loss(
    anchors, positives, anchor_mask, items, temperature, offsets=None, targets=None
):
    """The paper's formula, one pair at a time."""
    if offsets is None:
        offsets = torch.zeros(items.shape, dtype=anchors.dtype)
    terms = []
    for i in range(len(anchors)):
        own = {int(x) for x in items[i] if x >= 0}
        if targets is not None:
            own |= {int(item) for user, item in zip(*targets, strict=True) if user == i}
        for j in range(anchors.shape[1]):
            if not anchor_mask[i, j]:
                continue

            def score(z, m, i=i, j=j):
                return anchors[i, j] @ positives[z, m] / temperature + offsets[z, m]

            negatives = [
                score(z, m)
                for z in range(len(anchors))
                for m in range(items.shape[1])
                if z != i and items[z, m] >= 0 and int(items[z, m]) not in own
            ]
            for k in range(items.shape[1]):
                if items[i, k] >= 0:
                    logits = torch.stack([score(i, k), *negatives])
                    terms.append(-logits.log_softmax(0)[0])
    return torch.stack(terms).mean()


def random_batch(seed, users=7, num_anchors=3, num_positives=4, dim=5, num_items=12):
    random = torch.Generator().manual_seed(seed)
    anchors = F.normalize(torch.randn(users, num_anchors, dim, generator=random), dim=2)
    positives = F.normalize(
        torch.randn(users, num_positives, dim, generator=random), dim=2
    )
    anchor_mask = torch.rand(users, num_anchors, generator=random) < 0.7
    anchor_mask[:, 0] = True
    # Few items, so that users share some; -1 is padding, never in the first place.
    items = torch.randint(0, num_items, (users, num_positives), generator=random)
    padding = torch.rand(users, num_positives, generator=random) < 0.3
    padding[:, 0] = False
    return anchors, positives, anchor_mask, items.masked_fill(padding, -1)


def test_two_users_by_hand():
    # Every cosine is 1 or 0, the temperature 1: each user's one pair scores 1 and
    # the other user's item scores 0.
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    mask = torch.ones(2, 1, dtype=torch.bool)
    items = torch.tensor([[5], [6]])
    loss = dense_all_action_loss(vectors, vectors, mask, items, temperature=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-7)


def test_accidental_hits_leave_the_denominator():
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    mask = torch.ones(2, 1, dtype=torch.bool)
    same = torch.tensor([[5], [5]])
    loss = dense_all_action_loss(vectors, vectors, mask, same, temperature=1.0)
    assert loss.item() == 0.0  # nobody is left to tell apart


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunk", [2, 64])
@pytest.mark.parametrize("with_offsets", [False, True])
@pytest.mark.parametrize("with_targets", [False, True])
def test_equals_the_naive_formula(seed, chunk, with_offsets, with_targets, monkeypatch):
    monkeypatch.setattr(losses, "_USERS_IN_CHUNK", chunk)
    anchors, positives, mask, items = random_batch(seed)
    options = {"temperature": 0.1}
    if with_offsets:
        options["offsets"] = torch.randn(items.shape)
    if with_targets:  # more targets than were sampled
        options["targets"] = torch.randint(0, 7, (20,)), torch.randint(0, 12, (20,))
        user, position = torch.nonzero(items >= 0, as_tuple=True)
        sampled = user, items[user, position]
        options["targets"] = tuple(
            torch.cat(parts) for parts in zip(options["targets"], sampled, strict=True)
        )
    results = []
    for function in (dense_all_action_loss, naive_loss):
        a = anchors.clone().requires_grad_()
        p = positives.clone().requires_grad_()
        value = function(a, p, mask, items, **options)
        value.backward()
        results.append((value.detach(), a.grad, p.grad))
    for ours, naive in zip(*results, strict=True):
        torch.testing.assert_close(ours, naive, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing():
    anchors, positives, mask, items = random_batch(1)
    wide = dense_all_action_loss(
        F.pad(anchors, (0, 0, 0, 2), value=0.3),
        F.pad(positives, (0, 0, 0, 3), value=0.3),
        F.pad(mask, (0, 2), value=False),
        F.pad(items, (0, 3), value=-1),
        temperature=0.1,
    )
    narrow = dense_all_action_loss(anchors, positives, mask, items, temperature=0.1)
    torch.testing.assert_close(wide, narrow)


def test_order_of_users_changes_nothing():
    batch = random_batch(2)
    shuffled = torch.randperm(len(batch[0]))
    torch.testing.assert_close(
        dense_all_action_loss(*(x[shuffled] for x in batch), temperature=0.1),
        dense_all_action_loss(*batch, temperature=0.1),
    )
