from fractions import Fraction

import numpy as np
import pytest

from learn_torchrec.evaluation.pairs import count_pairs

TIES = ("half", "positive", "negative", "first")


def naive_pairs(groups, num_groups, is_positive, scores, weights, ties):
    """Every (positive, negative) pair of a group, one by one."""
    won = np.zeros(num_groups)
    for i in np.flatnonzero(is_positive):
        for j in np.flatnonzero(~is_positive):
            if groups[i] == groups[j]:
                share = {"half": 0.5, "positive": 1, "negative": 0, "first": i < j}
                is_tie = scores[i] == scores[j]
                gain = share[ties] if is_tie else scores[i] > scores[j]
                won[groups[i]] += gain * weights[i] * weights[j]
    return won


def random_rows(seed, num_rows=200, num_groups=12):
    random = np.random.default_rng(seed)
    groups = random.integers(num_groups, size=num_rows)
    is_positive = random.random(num_rows) < 0.3
    scores = random.integers(-4, 4, size=num_rows) / 4
    return groups, num_groups, is_positive, scores


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_equals_the_naive_pairs(ties: str, is_weighted: bool) -> None:
    groups, num_groups, is_positive, scores = random_rows(seed=1)
    weights = np.ones(len(groups))
    if is_weighted:
        weights = np.random.default_rng(2).integers(1, 5, len(groups)) / 2
    pairs = count_pairs(
        groups, num_groups, is_positive, scores, weights if is_weighted else None, ties
    )
    expected = naive_pairs(groups, num_groups, is_positive, scores, weights, ties)
    np.testing.assert_allclose(pairs.won, expected, rtol=0, atol=1e-9)
    for got, chosen in (
        (pairs.positives, is_positive),
        (pairs.negatives, ~is_positive),
    ):
        wanted = np.bincount(groups[chosen], weights[chosen], num_groups)
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("ties", TIES)
def test_weights_of_one_change_nothing(ties: str) -> None:
    rows = random_rows(seed=3)
    plain = count_pairs(*rows, None, ties)
    weighted = count_pairs(*rows, np.ones(200), ties)
    np.testing.assert_array_equal(plain, weighted)


def test_scores_finer_than_float32_are_told_apart() -> None:
    scores = np.array([0.5, 0.5 + 1e-12])
    is_positive = np.array([False, True])
    assert count_pairs(np.zeros(2, int), 1, is_positive, scores).won.tolist() == [1]
    tied = scores.astype(np.float32)
    assert count_pairs(np.zeros(2, int), 1, is_positive, tied).won.tolist() == [0.5]


def test_minus_zero_ties_with_zero_and_signs_are_in_order() -> None:
    zeros = np.array([-0.0, 0.0], np.float32)
    is_positive = np.array([True, False])
    assert count_pairs(np.zeros(2, int), 1, is_positive, zeros).won.tolist() == [0.5]
    scores = np.array([-1, -2, 3, -np.float32(1e-30)], np.float32)
    is_positive = np.array([True, False, False, False])
    assert count_pairs(np.zeros(4, int), 1, is_positive, scores).won.tolist() == [1]


def test_groups_without_rows_have_no_pairs() -> None:
    pairs = count_pairs(
        np.array([2, 2]), 4, np.array([True, False]), np.array([0.9, 0.1])
    )
    assert pairs.won.tolist() == [0, 0, 1, 0]
    nothing = np.zeros(0)
    for weights in (None, nothing):
        empty = count_pairs(nothing.astype(int), 1, nothing > 0, nothing, weights)
        assert [column.tolist() for column in empty] == [[0], [0], [0]]


def exact_wins(groups, num_groups, is_positive, scores, weights):
    """The sums of `count_pairs` of every group, in fractions."""
    exact = [Fraction(weight) for weight in weights]
    won = [Fraction(0)] * num_groups
    for i in np.flatnonzero(is_positive):
        for j in np.flatnonzero(~is_positive & (groups == groups[i])):
            share = Fraction(int(scores[i] > scores[j]))
            if scores[i] == scores[j]:
                share = Fraction(1, 2)
            won[groups[i]] += share * exact[i] * exact[j]
    return np.array([float(one) for one in won])


@pytest.mark.parametrize("num_groups", [1, 12, 60])
def test_light_users_beside_heavy_ones_keep_their_digits(num_groups: int) -> None:
    groups, _, is_positive, scores = random_rows(seed=4, num_groups=num_groups)
    random = np.random.default_rng(5)
    magnitudes = 10.0 ** random.integers(-12, 13, num_groups)
    weights = magnitudes[groups] * random.uniform(1, 2, len(groups))
    pairs = count_pairs(groups, num_groups, is_positive, scores, weights)
    expected = exact_wins(groups, num_groups, is_positive, scores, weights)
    np.testing.assert_allclose(pairs.won, expected, rtol=1e-13, atol=0)


def test_weights_of_many_orders_within_a_user_keep_their_digits() -> None:
    groups, num_groups, is_positive, scores = random_rows(seed=6)
    weights = 10.0 ** np.random.default_rng(7).uniform(-12, 12, len(groups))
    pairs = count_pairs(groups, num_groups, is_positive, scores, weights)
    expected = exact_wins(groups, num_groups, is_positive, scores, weights)
    np.testing.assert_allclose(pairs.won, expected, rtol=1e-13, atol=0)
