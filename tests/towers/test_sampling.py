import math

import numpy as np
import pytest

from learn_torchrec.towers.sampling import (
    SamplingConfig,
    next_item_sample,
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


def test_each_event_is_paired_with_the_next():
    sample = next_item_sample(np.arange(3), 2, seed=0, epoch=0, user=0)
    assert sample.history.tolist() == [0, 1]
    assert sample.target.tolist() == [1, 2]
    assert sample.anchors.tolist() == sample.positives.tolist() == [0, 1]


def test_of_a_long_history_every_part_is_drawn_as_often():
    """The same part for the same seed, epoch and user."""
    starts = []
    for epoch in range(600):
        sample = next_item_sample(np.arange(7), 4, seed=1, epoch=epoch, user=5)
        again = next_item_sample(np.arange(7), 4, seed=1, epoch=epoch, user=5)
        first = int(sample.history[0])
        assert sample.history.tolist() == list(range(first, first + 4))
        assert sample.target.tolist() == list(range(first + 1, first + 5))
        assert again.history.tolist() == sample.history.tolist()
        starts.append(first)
    assert np.bincount(starts, minlength=3).min() > 150
    assert max(starts) == 2  # the latest event is the last target


def test_of_a_basket_nothing_is_predicted_from_itself():
    """Moments 1 1 1 2 3 3: nothing is before the first, the last two are of one.

    Of users with one moment alone, events within it are better than none.
    """
    times = np.array([1, 1, 1, 2, 3, 3])
    sample = next_item_sample(times, 9, seed=0, epoch=0, user=0, baskets=1.0)
    pairs = zip(
        sample.history[sample.anchors], sample.target[sample.positives], strict=True
    )
    assert list(pairs) == [(2, 3), (3, 4), (3, 5)]
    alone = next_item_sample(times[:3], 9, seed=0, epoch=0, user=0, baskets=1.0)
    assert alone.anchors.tolist() == alone.positives.tolist() == [0, 1]


@pytest.mark.parametrize("length", [1, 3, 40])
def test_baskets_leave_moments_apart_in_every_window(length):
    times = np.sort(np.random.default_rng(0).integers(0, 30, 100))
    for epoch in range(20):
        sample = next_item_sample(times, length, 3, epoch, 0, baskets=1.0)
        before = times[sample.history[sample.anchors]]
        after = times[sample.target[sample.positives]]
        if (before < after).any():
            assert (before < after).all()
        assert len(sample.anchors) == len(sample.positives) > 0


def test_a_share_of_the_users_learns_what_completes_a_basket():
    times = np.array([1, 1, 1, 2, 3, 3])
    drawn = [
        next_item_sample(times, 9, seed=0, epoch=epoch, user=0, baskets=0.3)
        for epoch in range(600)
    ]
    within = [sample.anchors.tolist() == list(range(5)) for sample in drawn]
    before = [sample.anchors.tolist() == [2, 3, 3] for sample in drawn]
    assert sum(within) + sum(before) == 600
    assert 0.25 < np.mean(before) < 0.35
