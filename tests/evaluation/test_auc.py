import doctest
import math

import numpy as np
import pyarrow as pa
import pytest

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import auc
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.rows import prepare_rows
from learn_torchrec.evaluation.user_auc import count_users, users_that_count


def naive_auc(labels, scores, weights=None):
    """Every (positive, negative) pair, one by one; None without a pair."""
    weights = np.ones(len(labels)) if weights is None else weights
    won = total = 0.0
    for i in range(len(labels)):
        for j in range(len(labels)):
            if labels[i] == 1 and labels[j] == 0:
                pair = weights[i] * weights[j]
                total += pair
                if scores[i] > scores[j]:
                    won += pair
                elif scores[i] == scores[j]:
                    won += pair / 2
    return won / total if total else None


def naive_user_means(users, labels, scores, weights):
    values, impressions = [], []
    for user in set(users.tolist()):
        mine = users == user
        value = naive_auc(labels[mine], scores[mine], weights[mine])
        if value is not None:
            values.append(value)
            impressions.append(weights[mine].sum())
    weighted = sum(v * n for v, n in zip(values, impressions, strict=True))
    return np.mean(values), weighted / sum(impressions), len(values)


def random_rows(seed, num_rows=300, num_users=40):
    random = np.random.default_rng(seed)
    users = random.integers(num_users, size=num_rows) * 1_000_003
    labels = (random.random(num_rows) < 0.2).astype(np.int64)
    scores = random.integers(8, size=num_rows) / 8  # many ties
    weights = random.integers(4, size=num_rows) / 2  # some of them 0
    return users, labels, scores, weights


def test_known_answer_by_hand() -> None:
    # a: 1 of 2 pairs and a tie -> (1 + 0.5) / 2; b: 0 of 1; c: no negative.
    users = np.array(["a", "a", "a", "b", "b", "c"])
    labels = np.array([1, 0, 0, 0, 1, 1])
    scores = np.array([0.5, 0.5, 0.1, 0.9, 0.3, 0.2])
    metrics = evaluate_auc(users, labels, scores)
    assert metrics["uauc"] == pytest.approx((0.75 + 0.0) / 2)
    assert metrics["wuauc"] == pytest.approx((3 * 0.75 + 2 * 0.0) / 5)
    # pooled: .5 -> .5, .1 won, .9 lost = 1.5; .3 -> .1 = 1; .2 -> .1 = 1; of 9
    assert metrics["auc"] == pytest.approx(3.5 / 9)
    assert (metrics["rows"], metrics["users"], metrics["users_kept"]) == (6, 3, 2)
    assert metrics["positives"] == 3


@pytest.mark.parametrize(
    ("convention", "uauc", "wuauc"),
    [
        # a: 0.75, b: 0, and c, who has no negative.
        (Convention(single_class="half"), 1.25 / 3, (3 * 0.75 + 0.5) / 6),
        (Convention(user_weight="positives"), 0.375, 0.375),
        (Convention(user_weight="none"), 0.375, 0.375),
        (Convention(user_weight="clicks"), 0.375, (5 * 0.75 + 1 * 0.0) / 6),
        (Convention(ties="positive"), 0.5, 3 * 1.0 / 5),
        (Convention(ties="negative"), 0.25, 3 * 0.5 / 5),
        (Convention(ties="first"), 0.5, 3 * 1.0 / 5),
    ],
)
def test_conventions_by_hand(convention, uauc, wuauc) -> None:
    users, labels = ["a", "a", "a", "b", "b", "c"], [1, 0, 0, 0, 1, 1]
    scores, clicks = [0.5, 0.5, 0.1, 0.9, 0.3, 0.2], [4, 1, 0, 0, 1, 7]
    columns = users, labels, scores
    metrics = evaluate_auc(*columns, clicks=clicks, convention=convention)
    assert metrics["uauc"] == pytest.approx(uauc)
    assert metrics["wuauc"] == pytest.approx(wuauc)


def test_probability_metrics_by_hand() -> None:
    metrics = evaluate_auc([1, 1, 1, 1], [1, 0, 0, 0], [0.5, 0.25, 0.5, 0.0])
    log_loss = -(math.log(0.5) + math.log(0.75) + math.log(0.5) + math.log(1)) / 4
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert metrics["log_loss"] == pytest.approx(log_loss, abs=1e-9)
    assert metrics["ne"] == pytest.approx(log_loss / entropy, abs=1e-9)
    assert metrics["calibration"] == pytest.approx(1.25)


@pytest.mark.parametrize("weights", [None, np.array([2.0, 1.0, 0.5, 3.0, 0.0])])
def test_a_sampled_negative_counts_for_those_left_out(weights) -> None:
    """In what reads probabilities; in the AUCs it counts once."""
    users, labels = np.array([1, 1, 2, 2, 2]), np.array([1, 0, 0, 1, 0])
    scores = np.array([0.5, 0.2, 0.1, 0.4, 0.3])
    rates = np.array([0.1, 0.5, 0.25, 1.0, 0.0 if weights is not None else 1.0])
    found = evaluate_auc(users, labels, scores, weights, sampling_rates=rates)
    repeats = np.array([1, 2, 4, 1, 1])
    of_all = evaluate_auc(
        *(x.repeat(repeats) for x in (users, labels, scores)),
        weights=None if weights is None else weights.repeat(repeats),
    )
    plain = evaluate_auc(users, labels, scores, weights)
    for name in ("ne", "log_loss", "calibration"):
        assert found[name] == pytest.approx(of_all[name])
        assert found[name] != pytest.approx(plain[name])
    for name in ("auc", "uauc", "wuauc", "rows", "users_kept"):
        assert found[name] == plain[name]


@pytest.mark.parametrize("scale", [1e-99, 1e-30, 1e30, 1e98])
def test_weights_of_any_allowed_size_give_the_same(scale: float) -> None:
    users, labels, scores, weights = random_rows(0)
    expected = evaluate_auc(users, labels, scores, weights)
    found = evaluate_auc(users, labels, scores, np.asarray(weights) * scale)
    for name in ("auc", "uauc", "wuauc", "users_kept", "log_loss"):
        assert found[name] == pytest.approx(expected[name])


@pytest.mark.parametrize("value", [5e-324, 1e-170, 1e200])
@pytest.mark.parametrize("column", ["weights", "clicks", "sampling_rates"])
def test_numbers_whose_products_vanish_are_refused(column: str, value: float) -> None:
    given = {column: [1.0, value]}
    fault = "not between 1e-100" if column != "sampling_rates" else "sampling_rate: not"
    with pytest.raises(UserError, match=rf"{fault} .*in row 1"):
        evaluate_auc([1, 1], [1, 0], [0.5, 0.1], **given)
    with pytest.raises(UserError, match="click: not between"):
        evaluate_auc([1, 1], [1, 0], [0.5, 0.1], clicks=[1, math.inf])


@pytest.mark.parametrize("rate", [0.0, 1.2, math.nan])
def test_a_rate_that_is_no_chance_is_refused(rate) -> None:
    with pytest.raises(UserError, match=r"sampling_rate: not above 0 .* row 1"):
        evaluate_auc([1, 1], [0, 1], [0.5, 0.5], sampling_rates=[0.5, rate])


def test_saturated_probabilities_stay_finite() -> None:
    metrics = evaluate_auc([1, 1], [0, 1], np.array([1.0, 0.0], dtype=np.float32))
    assert metrics["log_loss"] == pytest.approx(12 * math.log(10), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_naive_pairs(seed: int) -> None:
    users, labels, scores, _ = random_rows(seed)
    metrics = evaluate_auc(users, labels, scores)
    uauc, wuauc, kept = naive_user_means(users, labels, scores, np.ones(len(users)))
    assert metrics["auc"] == pytest.approx(naive_auc(labels, scores), abs=1e-12)
    assert metrics["uauc"] == pytest.approx(uauc, abs=1e-12)
    assert metrics["wuauc"] == pytest.approx(wuauc, abs=1e-12)
    assert metrics["users_kept"] == kept


@pytest.mark.parametrize("seed", range(5))
def test_weights_equal_the_naive_weighted_pairs(seed: int) -> None:
    users, labels, scores, weights = random_rows(seed)
    metrics = evaluate_auc(users, labels, scores, weights)
    uauc, wuauc, kept = naive_user_means(users, labels, scores, weights)
    assert metrics["auc"] == pytest.approx(
        naive_auc(labels, scores, weights), abs=1e-12
    )
    assert metrics["uauc"] == pytest.approx(uauc, abs=1e-12)
    assert metrics["wuauc"] == pytest.approx(wuauc, abs=1e-12)
    assert metrics["users_kept"] == kept
    assert metrics["rows"] == (weights > 0).sum()


def test_integer_weights_equal_repeated_rows() -> None:
    users, labels, scores, weights = random_rows(seed=9)
    copies = (2 * weights).astype(int)
    weighted = evaluate_auc(users, labels, scores, copies)
    repeated = evaluate_auc(*(np.repeat(c, copies) for c in (users, labels, scores)))
    for name in ("auc", "uauc", "wuauc", "ne", "log_loss", "calibration"):
        assert weighted[name] == pytest.approx(repeated[name])


def test_padding_rows_change_nothing() -> None:
    users, labels, scores, _ = random_rows(seed=3)
    plain = evaluate_auc(users, labels, scores)
    padded = evaluate_auc(
        np.append(users, [5, 6]),
        np.append(labels, [1, 7]),
        np.append(scores, [2.0, np.nan]),
        np.append(np.ones(len(users)), [0, 0]),
    )
    assert padded == plain


def test_order_and_monotone_scores_change_nothing() -> None:
    users, labels, scores, _ = random_rows(seed=4)
    plain = evaluate_auc(users, labels, scores)
    order = np.random.default_rng(0).permutation(len(users))
    other = evaluate_auc(users[order], labels[order], 10 * scores[order] - 100)
    assert other["auc"] == pytest.approx(plain["auc"], abs=1e-12)
    assert other["uauc"] == pytest.approx(plain["uauc"], abs=1e-12)
    assert other["wuauc"] == pytest.approx(plain["wuauc"], abs=1e-12)
    # -100 is no probability
    assert math.isnan(other["ne"])
    assert math.isnan(other["log_loss"])
    assert math.isnan(other["calibration"])
    assert plain["ne"] > 0


def test_string_and_pyarrow_ids_give_the_same() -> None:
    users, labels, scores, _ = random_rows(seed=5)
    plain = evaluate_auc(users, labels, scores)
    names = users.astype(str)
    assert evaluate_auc(names, labels, scores) == plain
    chunks = pa.chunked_array([names[:100].tolist(), names[100:].tolist()])
    assert evaluate_auc(chunks, pa.array(labels), pa.array(scores)) == plain


def test_empty_and_single_class_input_is_nan() -> None:
    empty = evaluate_auc([], [], [])
    assert (
        empty["rows"]
        == empty["users"]
        == empty["users_kept"]
        == empty["positives"]
        == 0
    )
    one_class = evaluate_auc([1, 1], [0, 0], [0.1, 0.2])
    for metrics in (empty, one_class):
        for name in ("auc", "uauc", "wuauc", "ne", "calibration"):
            assert math.isnan(metrics[name])
    assert one_class["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2)


def test_pooled_auc_is_defined_without_a_kept_user() -> None:
    metrics = evaluate_auc([1, 2], [1, 0], [0.9, 0.1])
    assert metrics["auc"] == 1.0
    assert metrics["users_kept"] == 0
    assert math.isnan(metrics["uauc"])


def test_users_that_count_names_the_kept_users() -> None:
    rows = prepare_rows(
        ["x", "y", "z", "y", "z", "z"], [1, 1, 1, 0, 0, 0], [3, 1, 2, 2, 2, 1]
    )
    by_user = users_that_count(count_users(rows), PAPER)
    assert by_user.user_index.tolist() == [1, 2]
    assert by_user.values.tolist() == [0.0, 0.75]
    assert by_user.weights.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("labels", "scores", "weights", "message"),
    [
        ([1, 0, 1], [0.1, np.nan, np.inf], None, "score: not finite in rows 1, 2"),
        ([1, 2, 1], [0.1, 0.2, 0.3], None, "label: neither 0 nor 1 in row 1"),
        ([1, np.nan, 1], [0.1, 0.2, 0.3], None, "label: neither 0 nor 1 in row 1"),
        ([1, 0, 1], [0.1, 0.2, 0.3], [1, -1, 1], "weight: negative .* in row 1"),
        ([1, 0], [0.1, 0.2, 0.3], None, r"label: shape \[2\], user_id has 3 rows"),
        ([1, 0, 1], ["a", "b", "c"], None, "score: not numeric"),
    ],
)
def test_unfit_columns_are_refused(labels, scores, weights, message) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_auc([1, 1, 2], labels, scores, weights)


def test_docstring_example() -> None:
    result = doctest.testmod(auc)
    assert result.attempted > 0
    assert result.failed == 0
