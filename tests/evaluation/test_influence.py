"""Intervals by influence, in memory and streamed, beside bootstrap and brute force."""

import doctest
import math

import numpy as np
import pytest
from scored_rows import CONVENTIONS, METRICS, rows
from stream_ranks import on_ranks

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import paired_stream, pooled_stream, stream
from learn_torchrec.evaluation.auc import METRICS as KNOWN
from learn_torchrec.evaluation.auc import evaluate_auc, named_metrics
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.influence import paired_influence
from learn_torchrec.evaluation.paired_seeds import auc_difference
from learn_torchrec.evaluation.paired_stream import PairedStream
from learn_torchrec.evaluation.significance import paired_bootstrap

ALL_METRICS = named_metrics(list(KNOWN))


def table(num_rows=600, num_users=50, seed=0):
    random = np.random.default_rng(seed + 1)
    weights, clicks = (
        random.integers(1, 4, size=num_rows) / 2,
        random.integers(3, size=num_rows),
    )
    columns = rows(seed=seed, gain=0.05, num_rows=num_rows, num_users=num_users)
    return columns, weights, {"clicks": clicks}


def streamed(columns, weights, clicks, batch, **options):
    result = PairedStream(threads=2, metrics=ALL_METRICS, **options)
    for start in range(0, len(columns[0]), batch):
        mine = slice(start, start + batch)
        parts = (None if c is None else c[mine] for c in (*columns, weights, clicks))
        result.add(*parts)
    return result.finish()


@pytest.mark.parametrize("name", CONVENTIONS)
def test_deviations_equal_a_brute_force_jackknife(name: str) -> None:
    """Each user's influence is by how much counting its rows a little more changes it.

    A user is counted 1 + e times by the weight of its rows; a mean over users counts
    it by the user.
    """
    columns, weights, clicks = table(num_rows=120, num_users=15)
    users, labels, *scores = columns
    convention = CONVENTIONS[name]
    found = paired_influence(*columns, weights, **clicks, convention=convention)
    step = 1e-5

    def difference(metric, user, factor):
        weighted = np.where(users == user, factor, 1.0) * weights
        options = {"clicks": clicks["clicks"], "convention": convention}
        before, after = (
            evaluate_auc(users, labels, one, weighted, **options)[metric]
            for one in scores
        )
        return after - before

    for metric in ("auc", "ne", "log_loss", "calibration"):
        influences = np.array(
            [
                (
                    difference(metric, user, 1 + step)
                    - difference(metric, user, 1 - step)
                )
                / (2 * step)
                for user in np.unique(users)
            ]
        )
        num = len(influences)
        deviation = math.sqrt((influences**2).sum() * num / (num - 1))
        half = (found[metric].high - found[metric].low) / 2
        assert half == pytest.approx(1.959964 * deviation, rel=1e-5), metric


def test_means_over_users_have_the_textbook_interval() -> None:
    columns, *_ = table()
    users, labels, *scores = columns
    found = paired_influence(*columns)["uauc"]
    gains = []
    for user in np.unique(users):
        mine = users == user
        if 0 < labels[mine].sum() < mine.sum():
            before, after = (
                evaluate_auc(users[mine], labels[mine], one[mine])["auc"]
                for one in scores
            )
            gains.append(after - before)
    deviation = np.std(gains, ddof=1) / math.sqrt(len(gains))
    assert found.difference == pytest.approx(np.mean(gains))
    assert found.high - found.difference == pytest.approx(1.959964 * deviation)
    z = np.mean(gains) / deviation
    assert found.p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))


@pytest.mark.parametrize("name", CONVENTIONS)
def test_intervals_are_as_wide_as_the_bootstrap_s(name: str) -> None:
    columns, weights, clicks = table(num_rows=3000, num_users=300, seed=4)
    options = {**clicks, "convention": CONVENTIONS[name]}
    found = paired_influence(*columns, weights, **options)
    drawn = paired_bootstrap(*columns, weights, 4000, **options)
    assert set(found) == set(METRICS)
    for metric, one in found.items():
        width = one.high - one.low
        other = drawn[metric].high - drawn[metric].low
        assert 0.95 < width / other < 1.05, metric
        assert one.difference == pytest.approx(drawn[metric].difference, abs=1e-12)
        assert one.p_value == pytest.approx(drawn[metric].p_value, abs=0.03)


def test_the_interval_covers_a_known_difference() -> None:
    """As the bootstrap's test of the same name: the true difference is 0.1."""
    covered = dict.fromkeys(("uauc", "wuauc", "auc"), 0)
    num_users, repeats = 150, 400
    users = np.repeat(np.arange(num_users), 5)
    labels = np.tile([1, 0, 0, 0, 0], num_users)
    for repeat in range(repeats):
        random = np.random.default_rng(repeat)
        baseline, candidate = random.random((2, 5 * num_users))
        is_first = random.random(num_users) < random.uniform(0, 0.4, num_users)
        candidate[::5] = np.where(is_first, 1.0, candidate[::5])
        result = paired_influence(users, labels, baseline, candidate)
        for name in covered:
            covered[name] += result[name].low <= 0.1 <= result[name].high
    # 380 expected; fewer than 365 or more than 393 has probability below 0.002.
    assert all(365 <= count <= 393 for count in covered.values()), covered


def test_identical_orders_differ_by_exactly_nothing() -> None:
    (users, labels, baseline, _), *_ = table()
    result = paired_influence(users, labels, baseline, baseline / 2)
    for name in ("auc", "uauc", "wuauc"):
        assert tuple(result[name])[:4] == (0.0, 0.0, 0.0, 1.0)


def test_undefined_metrics_and_a_single_user_have_no_interval() -> None:
    empty = paired_influence([], [], [], [])
    one_class = paired_influence([1, 2], [1, 1], [0.1, 0.2], [0.2, 0.1])
    for result in (empty, one_class):
        for name in ("auc", "uauc", "wuauc", "ne"):
            assert all(math.isnan(part) for part in result[name]), name
    alone = paired_influence([1, 1], [1, 0], [0.1, 0.2], [0.2, 0.1])["uauc"]
    assert alone.difference == 1.0
    assert math.isnan(alone.low)
    assert math.isnan(alone.p_value)
    no_probabilities = paired_influence([1, 1, 2], [1, 0, 0], [2, 1, 3], [1, 2, 3])
    assert math.isnan(no_probabilities["log_loss"].high)


def test_ties_that_the_first_row_wins() -> None:
    columns, *_ = table(seed=3)
    convention = Convention(ties="first")
    found = paired_influence(*columns, convention=convention)
    drawn = paired_bootstrap(*columns, None, 2000, convention=convention)
    for name in ("auc", "uauc", "wuauc"):
        widths = [one[name].high - one[name].low for one in (found, drawn)]
        assert widths[0] == pytest.approx(widths[1], rel=0.08)
    with pytest.raises(UserError, match="ties=first"):
        PairedStream(convention=convention)


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stream, pooled_stream):
        monkeypatch.setattr(module, "_TASK_ROWS", 100)
    monkeypatch.setattr(pooled_stream, "_RANGE_ROWS", 500)


def assert_same(found, expected) -> None:
    assert set(found) == set(expected)
    for name, one in expected.items():
        assert tuple(found[name]) == pytest.approx(
            tuple(one), rel=1e-9, abs=1e-12, nan_ok=True
        ), name


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_stream_equals_the_whole_table(name: str, is_weighted: bool) -> None:
    columns, weights, clicks = table(num_rows=2000, num_users=150)
    weights = weights if is_weighted else None
    convention, clicks = CONVENTIONS[name], clicks["clicks"]
    found = streamed(columns, weights, clicks, 300, convention=convention)["all"]
    options = {"clicks": clicks, "convention": convention, "metrics": ALL_METRICS}
    assert_same(found.differences, paired_influence(*columns, weights, **options))
    for side, scores in zip(found, columns[2:], strict=False):
        expected = evaluate_auc(*columns[:2], scores, weights, **options)
        assert side == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("as_string", [False, True])
def test_cohorts_on_many_ranks_equal_their_rows_alone(
    size: int, as_string: bool
) -> None:
    columns, weights, _ = table(num_rows=2000, num_users=150)
    if as_string:
        columns = (columns[0].astype(str), *columns[1:])
    rates = np.random.default_rng(9).uniform(0.1, 1, 2000)
    weights[:100] = 0  # padding
    masks = {f"c{n}": columns[0].astype(int) % 10 == n for n in range(9)}

    def work(communicator):
        mine = slice(communicator.rank, None, size)
        result = PairedStream(list(masks), communicator=communicator, threads=2)
        result.add(
            *(c[mine] for c in columns),
            weights[mine],
            sampling_rates=rates[mine],
            cohorts={name: mask[mine] for name, mask in masks.items()},
        )
        return result.finish()

    for found in on_ranks(size, work):
        assert list(found) == ["all", *masks]
        for name, mask in {"all": weights >= 0, **masks}.items():
            whole = paired_influence(
                *(c[mask] for c in columns), weights[mask], sampling_rates=rates[mask]
            )
            assert_same(found[name].differences, whole)


@pytest.mark.parametrize("is_tied", [False, True])
def test_ranks_by_shares_of_the_scores_are_close_to_exact_ones(
    monkeypatch: pytest.MonkeyPatch, is_tied: bool
) -> None:
    """With 1,024 shares a deviation is within 1 part in 1,000 of the exact one.

    The worst case: candidate scores that are next to the baseline's, so that most of a
    user's influence lies in small differences of ranks. A score that half of the rows
    have is apart from the scores beside it.
    """
    random = np.random.default_rng(0)
    num_rows = 60_000
    users = random.integers(3000, size=num_rows)
    labels = (random.random(num_rows) < 0.2).astype(int)
    baseline = random.normal(size=num_rows) + labels
    candidate = baseline + 0.1 * random.normal(size=num_rows)
    if is_tied:
        baseline[::2] = candidate[1::2] = 0.0
    columns = (users, labels, baseline, candidate)
    exact = streamed(columns, None, None, 9_000)["all"].differences
    monkeypatch.setattr(paired_stream, "_EXACT_ROWS", 0)
    monkeypatch.setattr(paired_stream, "_SHARES", 1024)
    coarse = streamed(columns, None, None, 9_000)["all"].differences
    assert coarse["auc"].difference == exact["auc"].difference
    width, expected = (one["auc"].high - one["auc"].low for one in (coarse, exact))
    assert width == pytest.approx(expected, rel=1e-4 if is_tied else 1e-3)


def test_docstring_example() -> None:
    result = doctest.testmod(paired_stream)
    assert result.attempted > 0
    assert result.failed == 0


def test_seeds_are_averaged_before_users_vary():
    """As wide as the bootstrap of the mean over seeds, which none of them is."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 10)
    labels = (random.random(2000) < 0.3).astype(float)
    base = labels + random.normal(size=(3, 2000)) * 2
    better = labels + random.normal(size=(3, 2000)) * 1.8
    found = auc_difference(users, labels, [*better], [*base])
    by_seed = [
        paired_influence(users, labels, old, new)["auc"]
        for old, new in zip(base, better, strict=True)
    ]
    assert found.difference == pytest.approx(np.mean([x.difference for x in by_seed]))
    rows = np.arange(2000).reshape(200, 10)
    gains = []
    for _ in range(400):
        drawn = rows[random.integers(200, size=200)].ravel()
        aucs = [
            [evaluate_auc(users[drawn], labels[drawn], s[drawn])["auc"] for s in side]
            for side in (base, better)
        ]
        gains.append(np.mean(aucs[1]) - np.mean(aucs[0]))
    low, high = np.percentile(gains, (2.5, 97.5))
    assert found.high - found.low == pytest.approx(high - low, rel=0.15)
    assert all(x.high - x.low > 1.3 * (found.high - found.low) for x in by_seed)
    one = auc_difference(users, labels, better[:1], base[:1])
    assert tuple(one)[:4] == pytest.approx(tuple(by_seed[0])[:4], rel=1e-9)
