import math

import numpy as np
import pytest

from learn_torchrec.towers.sampling import (
    SamplingConfig,
    recency_weights,
    sample_user,
)


def test_recency_weights_by_hand():
    # log(10), log(10 + 9990 / 2) and log(10000), over their sum.
    raw = np.array([math.log(10), math.log(5005), math.log(10_000)])
    np.testing.assert_allclose(recency_weights(3, 10, 10_000), raw / raw.sum())
    assert recency_weights(1, 10, 10_000).tolist() == [1.0]


def test_weights_that_fall_with_recency_are_refused():
    assert SamplingConfig(alpha=10, beta=10).beta == 10  # uniform
    with pytest.raises(ValueError, match="beta: 9 is less than alpha, 10"):
        SamplingConfig(alpha=10, beta=9)


def test_the_newest_is_four_times_as_likely_as_the_oldest():
    weights = recency_weights(80, 10, 10_000)
    assert weights[-1] / weights[0] == pytest.approx(4.0)
    # The figures of the paper's curve at N = 80, relative to uniform.
    assert weights[0] * 80 == pytest.approx(0.28, abs=0.01)
    assert weights[1] * 80 == pytest.approx(0.60, abs=0.01)
    assert weights[-1] * 80 == pytest.approx(1.13, abs=0.01)


def test_history_is_before_the_cut_and_targets_after_it():
    events = 500
    config = SamplingConfig(history_length=20, target_length=8)
    for user in range(50):
        sample = sample_user(events, config, seed=1, epoch=0, user=user)
        both = np.r_[sample.history, sample.target]
        assert (np.diff(both) > 0).all()  # in order, history before target
        assert 3 <= len(sample.history) <= 20
        assert 1 <= len(sample.target) <= 8
        assert set(sample.anchors) <= set(range(len(sample.history)))
        assert len(sample.anchors) == min(10, len(sample.history))
        assert len(set(sample.positives)) == min(10, len(sample.target))


def test_follows_from_seed_epoch_and_user_alone():
    events = 200
    config = SamplingConfig()

    def draw(seed, epoch, user):
        sample = sample_user(events, config, seed, epoch, user)
        return (*sample.history, *sample.target, *sample.anchors, *sample.positives)

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)}) == 4


def test_stage_two_prefers_recent_positions():
    config = SamplingConfig(history_length=80, num_history_samples=10, min_history=199)
    events = 200  # the cut is always before the last event
    drawn = {"recent": np.zeros(80), "uniform": np.zeros(80)}
    for weighting, counts in drawn.items():
        chosen = SamplingConfig(
            **{**vars(config), "weighting": weighting},
        )
        for user in range(3000):
            np.add.at(counts, sample_user(events, chosen, 0, 0, user).anchors, 1)
    recent, uniform = drawn["recent"] / 3000, drawn["uniform"] / 3000
    assert uniform[0] == pytest.approx(10 / 80, abs=0.03)
    assert recent[0] < 0.6 * uniform[0]
    assert recent[40:].mean() > recent[:40].mean()


def test_a_given_cut_separates_history_and_targets():
    events = 10
    config = SamplingConfig(min_history=2)
    for epoch in range(3):
        sample = sample_user(events, config, 0, epoch, 5, cut=7)
        assert sample.history.tolist() == list(range(7))
        assert sample.target.tolist() == [7, 8, 9]
    drawn = {
        len(sample_user(events, config, 0, epoch, 5).history) for epoch in range(9)
    }
    assert len(drawn) > 3
