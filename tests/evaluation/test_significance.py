import math

import numpy as np
import pytest
from scored_rows import CONVENTIONS, METRICS, RANK_METRICS, rows

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import significance
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.significance import (
    PairedDifference,
    adjust_p_values,
    paired_bootstrap,
)


def naive_draws(
    users, labels, baseline, candidate, weights, clicks, convention, num_resamples, seed
):
    """Repeat the rows of every drawn user under a new name and evaluate afresh."""
    names = list(dict.fromkeys(users.tolist()))
    generator = np.random.default_rng(seed)
    draws = {name: [] for name in METRICS}
    for _ in range(num_resamples):
        picked, new_users = [], []
        for copy, drawn in enumerate(generator.integers(len(names), size=len(names))):
            mine = np.flatnonzero(users == names[drawn])
            picked.extend(mine)
            new_users.extend([copy] * len(mine))
        before, after = (
            evaluate_auc(
                new_users,
                labels[picked],
                scores[picked],
                weights[picked],
                clicks=clicks[picked],
                convention=convention,
            )
            for scores in (baseline, candidate)
        )
        for name in METRICS:
            draws[name].append(after[name] - before[name])
    return draws


@pytest.mark.parametrize(
    ("block_elements", "name"),
    [(1, "paper"), (2_000, "paper"), *((1 << 22, name) for name in CONVENTIONS)],
)
def test_equals_evaluating_every_resample_afresh(
    monkeypatch: pytest.MonkeyPatch, block_elements: int, name: str
) -> None:
    monkeypatch.setattr(significance, "_BLOCK_ELEMENTS", block_elements)
    convention = CONVENTIONS[name]
    columns = rows(seed=0, gain=0.05, num_rows=200, num_users=60)
    random = np.random.default_rng(1)
    weights, clicks = random.integers(1, 4, size=200) / 2, random.integers(3, size=200)
    options = {"clicks": clicks, "convention": convention}
    result = paired_bootstrap(*columns, weights, 40, 7, **options)
    draws = naive_draws(*columns, weights, clicks, convention, 40, 7)
    before, after = (
        evaluate_auc(*columns[:2], scores, weights, **options) for scores in columns[2:]
    )
    for name in METRICS:
        observed = after[name] - before[name]
        drawn = np.array(draws[name])
        low, high = np.percentile(drawn, [2.5, 97.5])
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        assert result[name].difference == pytest.approx(observed, abs=1e-12)
        assert result[name].low == pytest.approx(low, abs=1e-12)
        assert result[name].high == pytest.approx(high, abs=1e-12)
        assert result[name].p_value == pytest.approx(min(1, 2 * (tail + 1) / 41))


def test_ties_that_the_first_row_wins() -> None:
    users, labels, *scores = rows(seed=3, gain=0.05)
    convention = Convention(ties="first")
    result = paired_bootstrap(users, labels, *scores, None, 10, convention=convention)
    before, after = (
        evaluate_auc(users, labels, one, convention=convention) for one in scores
    )
    for name in RANK_METRICS:
        gain = after[name] - before[name]
        assert result[name].difference == pytest.approx(gain, abs=1e-12)


def test_a_real_gain_is_significant_and_its_reverse_mirrors_it() -> None:
    users, labels, baseline, candidate = rows(seed=1, gain=0.5)
    forward = paired_bootstrap(users, labels, baseline, candidate, num_resamples=200)
    backward = paired_bootstrap(users, labels, candidate, baseline, num_resamples=200)
    for name in RANK_METRICS:
        assert 0 < forward[name].low < forward[name].difference < forward[name].high
        assert forward[name].p_value == pytest.approx(2 / 201)
        assert backward[name].low == pytest.approx(-forward[name].high)
        assert backward[name].p_value == forward[name].p_value


def test_identical_orders_differ_by_exactly_nothing() -> None:
    users, labels, baseline, _ = rows(seed=2, gain=0)
    result = paired_bootstrap(users, labels, baseline, 2 * baseline, num_resamples=50)
    for name in RANK_METRICS:
        assert tuple(result[name])[:4] == (0.0, 0.0, 0.0, 1.0)


def test_under_no_difference_p_values_are_not_small_too_often() -> None:
    small = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        users = random.integers(40, size=300)
        labels = (random.random(300) < 0.3).astype(int)
        baseline, candidate = random.normal(size=(2, 300))
        result = paired_bootstrap(
            users, labels, baseline, candidate, num_resamples=200, seed=seed
        )
        small += result["auc"].p_value < 0.05
    assert small <= 14  # 5 expected; more than 14 has probability below 0.001


def test_seed_decides_the_resamples() -> None:
    columns = rows(seed=3, gain=0.02)
    first = paired_bootstrap(*columns, num_resamples=50, seed=1)
    assert paired_bootstrap(*columns, num_resamples=50, seed=1) == first
    assert paired_bootstrap(*columns, num_resamples=50, seed=2) != first


def test_undefined_metrics_are_nan() -> None:
    empty = paired_bootstrap([], [], [], [], num_resamples=10)
    one_class = paired_bootstrap([1, 2], [1, 1], [0.1, 0.2], [0.2, 0.1])
    for result in (empty, one_class):
        for name in (*RANK_METRICS, "ne"):
            assert all(math.isnan(part) for part in result[name])


def test_resamples_without_a_pair_are_left_out() -> None:
    # Drawing one user twice leaves a single class: half of the draws.
    result = paired_bootstrap([1, 2], [1, 0], [0.1, 0.2], [0.2, 0.1], num_resamples=99)
    assert result["auc"].difference == result["auc"].low == result["auc"].high == 1.0
    assert math.isnan(result["uauc"].difference)


def test_no_resamples_is_refused() -> None:
    with pytest.raises(UserError, match="num_resamples 0"):
        paired_bootstrap([1], [1], [0.1], [0.1], num_resamples=0)


def test_holm_by_hand() -> None:
    family = [
        PairedDifference(0.1, 0.0, 0.2, p) for p in (0.01, 0.04, 0.03, math.nan, 0.5)
    ]
    adjusted = [one.p_adjusted for one in adjust_p_values(family)]
    # 4 defined: 0.01 * 4, then 0.03 * 3, then 0.04 * 2 raised to 0.09, then 0.5 * 1.
    assert adjusted[:3] == pytest.approx([0.04, 0.09, 0.09])
    assert math.isnan(adjusted[3])
    assert adjusted[4] == 0.5
    assert [one.p_value for one in family][:3] == [0.01, 0.04, 0.03]


def test_a_difference_lets_the_first_of_a_tie_win() -> None:
    users, labels, baseline, candidate = rows(seed=3, gain=0.2)
    baseline, candidate = np.round(baseline, 1), np.round(candidate, 1)  # many ties
    convention = Convention(ties="first")
    result = paired_bootstrap(
        users, labels, baseline, candidate, num_resamples=20, convention=convention
    )
    before, after = (
        evaluate_auc(users, labels, scores, convention=convention)
        for scores in (baseline, candidate)
    )
    for name in ("auc", "uauc", "wuauc"):
        difference = after[name] - before[name]
        assert result[name].difference == pytest.approx(difference, abs=1e-12)


def test_scores_that_are_no_probabilities_leave_those_metrics_undefined() -> None:
    users, labels, baseline, candidate = rows(seed=3, gain=0.2)
    extreme = np.where(labels == 1, 1.0, 0.0)
    result = paired_bootstrap(users, labels, baseline, extreme, num_resamples=20)
    assert result["log_loss"].difference < 0
    for scores in (2 * candidate, candidate - 0.5):
        result = paired_bootstrap(users, labels, baseline, scores, num_resamples=20)
        assert math.isnan(result["ne"].difference)
        assert math.isnan(result["calibration"].low)
        assert math.isfinite(result["uauc"].difference)


@pytest.mark.slow
def test_the_interval_covers_a_known_difference() -> None:
    """1,000 tables whose true difference of UAUC and WUAUC is known.

    Every user has one positive and four negatives, and the baseline's scores say
    nothing (its AUC is 1/2). The candidate ranks the positive first with the user's
    own chance q and at random otherwise: an AUC of 1/2 + q/2, 0.6 on average for q
    uniform on [0, 0.4].
    """
    covered = dict.fromkeys(("uauc", "wuauc", "auc"), 0)
    num_users = 150
    users = np.repeat(np.arange(num_users), 5)
    labels = np.tile([1, 0, 0, 0, 0], num_users)
    for repeat in range(1000):
        random = np.random.default_rng(repeat)
        baseline, candidate = random.random((2, 5 * num_users))
        is_first = random.random(num_users) < random.uniform(0, 0.4, num_users)
        candidate[::5] = np.where(is_first, 1.0, candidate[::5])
        result = paired_bootstrap(
            users, labels, baseline, candidate, num_resamples=500, seed=repeat
        )
        for name in covered:
            covered[name] += result[name].low <= 0.1 <= result[name].high
    # Pooled: the positive also beats other users' negatives with the same chances.
    assert all(930 <= count <= 970 for count in covered.values()), covered
