import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from learn_torchrec.evaluation.auc import METRICS, evaluate_auc, named_metrics
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.significance import paired_bootstrap
from learn_torchrec.evaluation.stream import MetricsStream

UNDCG = named_metrics(["undcg"])


def undcg(*columns, **options):
    return evaluate_auc(*columns, metrics=UNDCG, **options)["undcg"]


def random_rows(seed, num_rows=400, num_users=30):
    random = np.random.default_rng(seed)
    users = random.integers(num_users, size=num_rows)
    labels = (random.random(num_rows) < 0.3).astype(np.int64)
    scores = random.integers(6, size=num_rows) / 6  # many ties
    weights = random.integers(1, 5, size=num_rows) / 2
    return users, labels, scores, weights


def test_known_answer_by_hand() -> None:
    # a: positives at places 1 and 3 of 3; b: at 2 of 2; c has no negative.
    users = ["a", "a", "a", "b", "b", "c"]
    a = (1 + 1 / 2) / (1 + 1 / math.log2(3))
    b = 1 / math.log2(3)
    value = undcg(users, [1, 0, 1, 1, 0, 1], [0.9, 0.5, 0.1, 0.2, 0.8, 0.7])
    assert value == pytest.approx((a + b) / 2, abs=1e-15)


@pytest.mark.parametrize(
    ("ties", "expected"),
    [
        ("half", (1 + 1 / math.log2(3)) / 2),
        ("positive", 1),
        ("negative", 1 / math.log2(3)),
        ("first", 1 / math.log2(3)),
    ],
)
def test_ties_by_hand(ties: str, expected: float) -> None:
    value = undcg([1, 1], [0, 1], [0.5, 0.5], convention=Convention(ties=ties))
    assert value == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_equals_scikit_learn(is_weighted: bool) -> None:
    users, labels, scores, weights = random_rows(seed=1)
    gains = labels * weights if is_weighted else labels
    expected = [
        ndcg_score([gains[users == user]], [scores[users == user]])
        for user in range(30)
        if 0 < labels[users == user].mean() < 1
    ]
    value = undcg(users, labels, scores, weights if is_weighted else None)
    assert value == pytest.approx(np.mean(expected), abs=1e-12)


def test_without_users_of_both_classes_it_is_undefined() -> None:
    assert math.isnan(undcg([], [], []))
    assert math.isnan(undcg([1, 1, 2], [1, 1, 0], [0.1, 0.2, 0.3]))


@pytest.mark.parametrize("ties", ["half", "positive", "negative"])
def test_a_stream_gives_the_same(ties: str) -> None:
    columns = random_rows(seed=2)
    convention = Convention(ties=ties)
    stream = MetricsStream(convention, threads=2, metrics=UNDCG)
    for start in range(0, 400, 90):
        stream.add(*(column[start : start + 90] for column in columns))
    expected = evaluate_auc(*columns, convention=convention, metrics=UNDCG)
    assert stream.finish() == pytest.approx(expected, abs=1e-12)


def test_the_bootstrap_resamples_users() -> None:
    users, labels, baseline, weights = random_rows(seed=3)
    candidate = (baseline + labels) / 2
    result = paired_bootstrap(
        users, labels, baseline, candidate, weights, 200, metrics=UNDCG
    )
    assert list(result) == ["undcg"]
    before, after = (undcg(users, labels, s, weights) for s in (baseline, candidate))
    gain = result["undcg"]
    assert gain.difference == pytest.approx(after - before, abs=1e-12)
    assert 0 < gain.low < gain.difference < gain.high
    assert gain.p_value < 0.02


def test_every_metric_is_known_by_its_own_name() -> None:
    assert list(METRICS) == [one.name for one in METRICS.values()]
    assert "undcg" not in evaluate_auc([1, 1], [0, 1], [0.1, 0.2])
