"""The candidates of next-item training."""

import numpy as np
import pytest

from learn_torchrec.towers.candidates import CandidateSampler


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_items_are_drawn_as_often_as_it_says(size):
    counts = np.array([0, 1, 1, 3, 0, 40, 12, 5, 5, 100])
    sampler = CandidateSampler(counts, size)
    drawn, draws = np.zeros(10), 4000
    for step in range(draws):
        rows = sampler.draw(0, 0, step)
        assert len(rows) == len(set(rows.tolist())) <= size
        drawn[rows] += 1
    error = np.sqrt(sampler.inclusion * (1 - sampler.inclusion) / draws)
    assert (np.abs(drawn / draws - sampler.inclusion) <= 4.5 * error + 1e-12).all()
    assert (sampler.inclusion > 0).all()


def test_by_hand():
    """Of four, one is drawn uniformly, and one by 3 of 4 events."""
    sampler = CandidateSampler(np.array([3, 1, 0, 0]), 2)
    expected = [1 - 0.75 * 0.25, 1 - 0.75 * 0.75, 0.25, 0.25]
    assert sampler.inclusion == pytest.approx(expected)


def test_a_sum_over_candidates_estimates_that_of_the_catalogue():
    """Closer than the same number of uniform draws, if popular items weigh more."""
    random = np.random.default_rng(0)
    counts = np.sort(random.zipf(1.5, 2000).clip(max=10_000))[::-1]
    weights = counts * random.uniform(0.5, 2, 2000)
    sampler = CandidateSampler(counts, 200)
    ours, uniform = [], []
    for step in range(500):
        rows = sampler.draw(0, 0, step)
        ours.append((weights[rows] / sampler.inclusion[rows]).sum())
        rows = random.choice(2000, 200, replace=False)
        uniform.append(weights[rows].sum() * 10)
    total = weights.sum()
    assert np.mean(ours) == pytest.approx(total, rel=0.02)
    assert np.std(ours) < 0.2 * np.std(uniform)


def test_one_item_with_all_events():
    sampler = CandidateSampler(np.array([0, 9]), 2)
    assert sampler.inclusion == pytest.approx([0.5, 1])
    assert sampler.draw(0, 0, 0).max() == 1


def test_a_step_draws_the_same_on_every_rank_and_after_a_resume():
    one, other = (CandidateSampler(np.arange(100), 20) for _ in range(2))
    assert np.array_equal(one.draw(1, 2, 3), other.draw(1, 2, 3))
    assert not np.array_equal(one.draw(1, 2, 3), other.draw(1, 2, 4))
