"""Statistics of candidate and history: by hand, and beside a naive loop."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learn_torchrec.ranker.learn.batch import HistoryBatch
from learn_torchrec.ranker.learn.config import StatisticsConfig
from learn_torchrec.ranker.learn.statistics import TargetStatistics, mean_of_history

EXACT = 2e-3  # vectors are in half precision


def history(rows, vectors, candidates, padding=0):
    """Return histories given as lists of (item, count, age)."""
    flat = [event for row in rows for event in row]
    longest = max(1, *(len(row) for row in rows)) + padding
    columns = [list(column) for column in zip(*flat, strict=True)] or [[], [], []]
    return HistoryBatch(
        candidates=torch.tensor(candidates),
        items=torch.tensor(columns[0], dtype=torch.long),
        lengths=torch.tensor([len(row) for row in rows]),
        counts=torch.tensor(columns[1], dtype=torch.float32),
        ages=torch.tensor(columns[2], dtype=torch.float32),
        vectors={"content": vectors.half()},
        longest=longest,
    )


def test_known_answers():
    # Cosines with the candidate (row 1): itself 1, .8 and 0.
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    batch = history(
        [[(3, 2, 60.0), (2, 1, 30.0), (1, 4, 10.0)], [], [(1, 1, 0.0)]],
        vectors,
        [1, 1, 1],
    )
    config = StatisticsConfig(
        top=2, temperatures=(0.5,), thresholds=(0.5, 0.9), recency_days=30.0
    )
    module = TargetStatistics(config)
    assert module.out_features == 2 + 2 * (3 + 2 + 2)
    whole, empty, itself = module(batch).tolist()
    kernel = {1: 1.0, 2: math.exp(-0.2 / 0.5), 3: math.exp(-1 / 0.5)}
    plain = 4 * kernel[1] + kernel[2] + 2 * kernel[3]
    recent = sum(
        count * kernel[item] * math.exp(-age / 30)
        for item, count, age in ((1, 4, 10), (2, 1, 30), (3, 2, 60))
    )
    with_it = [1.0, 0.9, math.log1p(10), math.log1p(plain), math.log1p(recent)]
    with_it += [math.log1p(5), math.log1p(4)]
    rest = kernel[2] + 2 * kernel[3]
    recent -= 4 * math.exp(-10 / 30)
    without = [0.8, 0.4, math.log1p(30), math.log1p(rest), math.log1p(recent)]
    without += [math.log1p(1), 0.0]
    expected = [math.log1p(7), math.log1p(4), *with_it, *without]
    assert whole == pytest.approx(expected, abs=EXACT)
    assert empty == [0.0] * module.out_features
    assert itself[9:] == [0.0] * 7  # nothing but the item itself


def random_history(seed, padding=0):
    random = np.random.default_rng(seed)
    vectors = F.normalize(torch.from_numpy(random.normal(size=(30, 8))), dim=1)
    vectors[0] = 0
    rows = [
        [
            (int(item), int(random.integers(1, 6)), float(random.uniform(0, 90)))
            for item in random.permutation(np.arange(1, 30))[: random.integers(0, 12)]
        ]
        for _ in range(40)
    ]
    candidates = random.integers(0, 30, size=40).tolist()
    return rows, vectors, candidates, history(rows, vectors, candidates, padding)


def naive(rows, vectors, candidates, config):
    table, result = vectors.half().double().numpy(), []
    for row, candidate in zip(rows, candidates, strict=True):
        own = sum(count for item, count, _ in row if item == candidate)
        found = [math.log1p(sum(count for _, count, _ in row)), math.log1p(own)]
        for kept in (row, [event for event in row if event[0] != candidate]):
            cosines = sorted(
                ((float(table[i] @ table[candidate]), c, a) for i, c, a in kept),
                reverse=True,
            )
            if not cosines:
                found += [0.0] * (3 + 2 * len(config.temperatures))
                found += [0.0] * len(config.thresholds)
                continue
            top = [cosine for cosine, _, _ in cosines[: config.top]]
            age = min(a for cosine, _, a in cosines if cosine == cosines[0][0])
            found += [top[0], sum(top) / len(top), math.log1p(age)]
            for t in config.temperatures:
                kernel = [(math.exp((s - 1) / t), c, a) for s, c, a in cosines]
                found.append(math.log1p(sum(k * c for k, c, _ in kernel)))
                days = config.recency_days
                recent = sum(k * c * math.exp(-a / days) for k, c, a in kernel)
                found.append(math.log1p(recent))
            for threshold in config.thresholds:
                count = sum(c for s, c, _ in cosines if s > threshold)
                found.append(math.log1p(count))
        result.append(found)
    return torch.tensor(result)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("sums", [((0.1, 0.5), (0.313,)), ((), ())])
def test_random_histories_beside_a_naive_loop(seed, padding, sums):
    rows, vectors, candidates, batch = random_history(seed, padding)
    config = StatisticsConfig(top=3, temperatures=sums[0], thresholds=sums[1])
    found = TargetStatistics(config)(batch)
    expected = naive(rows, vectors, candidates, config)
    torch.testing.assert_close(found, expected, atol=3e-3, rtol=3e-3)


def test_the_order_of_a_history_does_not_matter():
    rows, vectors, candidates, batch = random_history(1)
    turned = history([row[::-1] for row in rows], vectors, candidates)
    module = TargetStatistics(StatisticsConfig())
    torch.testing.assert_close(module(batch), module(turned))


def test_the_mean_of_a_history_weighs_events():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    batch = history([[(1, 3, 0.0), (2, 4, 0.0)], []], vectors, [1, 2])
    found = mean_of_history(batch)
    assert found.tolist() == [pytest.approx([0.6, 0.8], abs=EXACT), [0.0, 0.0]]


@pytest.mark.parametrize("seed", range(3))
def test_cosines_of_a_sparse_and_of_a_batched_product_are_the_same(seed):
    _, vectors, candidates, batch = random_history(seed, padding=2)
    table = vectors.half()
    pair = table[candidates], table
    sampled, batched = (f(*pair, -2.0) for f in (batch._sampled, batch._batched))
    torch.testing.assert_close(sampled, batched, atol=EXACT, rtol=0)
    assert (sampled == -2).sum(1).tolist() == (batch.longest - batch.lengths).tolist()


def test_twins_are_equal_in_half_precision_and_the_latest_counts():
    twins = torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.6, 0.8], [1.0, 0.0]])
    batch = history([[(1, 1, 50.0), (2, 1, 20.0), (3, 1, 5.0)]], twins, [1])
    found = TargetStatistics(StatisticsConfig(temperatures=(), thresholds=()))(batch)
    whole, without = found[0, 2:].view(2, 3)
    assert whole[[0, 2]].tolist() == pytest.approx([1, math.log1p(20)], abs=EXACT)
    assert without[[0, 2]].tolist() == pytest.approx([1, math.log1p(20)], abs=EXACT)
    assert whole[1] == pytest.approx((1 + 1 + 0.6) / 3, abs=EXACT)
    assert without[1] == pytest.approx((1 + 0.6) / 2, abs=EXACT)
