"""Target attention: by hand, against a loop over rows, and its invariances."""

import pytest
import torch

from learn_torchrec.ranker import blocked_attention
from learn_torchrec.ranker.attention import TargetAttention, segment_sum

LENGTHS = torch.tensor([2, 0, 3, 1])


def histories(query_dim=4, key_dim=4):
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(len(LENGTHS), query_dim, generator=random)
    return queries, torch.randn(int(LENGTHS.sum()), key_dim, generator=random)


def naive(attention, queries, keys):
    """DIN's formula, entry by entry."""
    pooled, keys = [], iter(keys)
    for query, length in zip(attention.query(queries), LENGTHS.tolist(), strict=True):
        total = torch.zeros(query.shape)
        for _ in range(length):
            key = next(keys)
            together = torch.cat([key, query, key - query, key * query])
            hidden = attention.hidden(together).relu()
            total = total + attention.score(hidden) * key
        pooled.append(total)
    return torch.stack(pooled)


def test_by_hand():
    attention = TargetAttention(query_dim=1, key_dim=1, hidden_dim=2)
    with torch.no_grad():
        # relu of key + 2 query + 3 (key - query) + 4 key * query, and its negative
        attention.hidden.weight.copy_(
            torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0]])
        )
        attention.hidden.bias.copy_(torch.tensor([0.5, 0.0]))
        attention.score.weight.copy_(torch.tensor([[2.0, 1.0]]))
        attention.score.bias.fill_(-1.0)
    query, keys = torch.tensor([[1.0], [5.0]]), torch.tensor([[1.0], [-1.0]])
    # key 1: 1 + 2 + 0 + 4 = 7, weight 2 * 7.5 - 1 = 14
    # key -1: -1 + 2 - 6 - 4 = -9, weight 9 - 1 = 8; the sum is 14 * 1 + 8 * -1
    pooled = attention(query, keys, torch.tensor([2, 0]))
    assert pooled.tolist() == [[6.0], [0.0]]


@pytest.mark.parametrize("query_dim", [4, 6])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("block_entries", [1, 4, 5_000])
def test_it_is_dins_formula(query_dim, dtype, block_entries, monkeypatch):
    monkeypatch.setattr(blocked_attention, "_BLOCK_ENTRIES", block_entries)
    torch.manual_seed(1)
    attention = TargetAttention(query_dim, key_dim=4, hidden_dim=5)
    queries, keys = histories(query_dim)
    pooled = attention(queries, keys, LENGTHS.to(dtype))
    expected = naive(attention, queries, keys)
    torch.testing.assert_close(pooled, expected)
    assert (pooled[1] == 0).all()
    gradients = [
        torch.autograd.grad(out.square().sum(), list(attention.parameters()))
        for out in (pooled, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one != 0).any()
        torch.testing.assert_close(one, other)


def test_queries_and_keys_get_gradients():
    attention = TargetAttention(query_dim=6, key_dim=4)
    queries, keys = (part.requires_grad_() for part in histories(query_dim=6))
    attention(queries, keys, LENGTHS).square().sum().backward()
    assert (keys.grad != 0).any(dim=1).all()
    assert (queries.grad != 0).any(dim=1).tolist() == (LENGTHS > 0).tolist()


@pytest.mark.parametrize("block_entries", [1, 4, 5_000])
def test_blocks_and_the_plain_form_are_the_same(block_entries, monkeypatch):
    monkeypatch.setattr(blocked_attention, "_BLOCK_ENTRIES", block_entries)
    attention = TargetAttention(query_dim=6, key_dim=4)
    queries, keys = histories(query_dim=6)
    with torch.no_grad():
        plain = attention(queries, keys, LENGTHS)
    torch.testing.assert_close(attention(queries, keys, LENGTHS), plain)


def test_gradients_of_blocks_are_those_of_numbers(monkeypatch):
    monkeypatch.setattr(blocked_attention, "_BLOCK_ENTRIES", 2)
    random = torch.Generator().manual_seed(2)

    def numbers(*shape):
        return torch.randn(
            *shape, generator=random, dtype=torch.double
        ).requires_grad_()

    keys, query, hidden = numbers(6, 3), numbers(4, 3), numbers(4, 5)
    parts = numbers(5, 3), numbers(5, 3), numbers(5), numbers(1)

    def pooled(keys, query, hidden, *parts):
        scoring = blocked_attention.Scoring(*parts)
        return blocked_attention.pooled(keys, query, hidden, LENGTHS, scoring)

    assert torch.autograd.gradcheck(pooled, (keys, query, hidden, *parts))


def test_order_within_a_history_and_other_rows_change_nothing():
    attention = TargetAttention(query_dim=4, key_dim=4)
    queries, keys = histories()
    pooled = attention(queries, keys, LENGTHS)
    reordered = attention(queries, keys[torch.tensor([1, 0, 4, 2, 3, 5])], LENGTHS)
    torch.testing.assert_close(reordered, pooled)
    alone = attention(queries[2:3], keys[2:5], LENGTHS[2:3])
    torch.testing.assert_close(alone, pooled[2:3])


def test_a_batch_without_any_history_trains():
    attention = TargetAttention(query_dim=4, key_dim=4)
    queries, keys = histories()
    pooled = attention(queries, keys[:0], torch.zeros_like(LENGTHS))
    assert pooled.tolist() == [[0.0] * 4] * len(LENGTHS)
    pooled.sum().backward()
    assert all((p.grad == 0).all() for p in attention.parameters())


def test_segment_sum_by_hand():
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    summed = segment_sum(values, torch.tensor([0, 2, 1, 0]))
    assert summed.tolist() == [[0.0, 0.0], [3.0, 30.0], [4.0, 40.0], [0.0, 0.0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_it_is_the_same_and_waits_for_nothing():
    attention = TargetAttention(query_dim=6, key_dim=4)
    queries, keys = histories(query_dim=6)
    expected = attention(queries, keys, LENGTHS)
    attention.cuda()
    inputs = queries.cuda(), keys.cuda(), LENGTHS.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pooled = attention(*inputs)
        pooled.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(pooled.cpu(), expected)
