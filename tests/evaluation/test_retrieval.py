import doctest
import math

import numpy as np
import pytest
import torch

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import retrieval
from learn_torchrec.evaluation.retrieval import (
    evaluate_retrieval,
    evaluate_scores,
    target_ranks,
)
from learn_torchrec.jagged import Jagged


def scored(scores, targets, history=None, ks=(1, 2)):
    """Evaluate a full score matrix."""
    matrix = torch.as_tensor(scores)
    return evaluate_scores(
        lambda start, stop: matrix[start:stop],
        matrix.shape[1],
        Jagged.from_lists(targets),
        None if history is None else Jagged.from_lists(history),
        ks,
    )


def naive_metrics(scores, targets, history, k):
    """Item by item, user by user; one rank per target as the definition says."""
    hits, pairs, recalls, any_hits, ndcgs, reciprocal = 0, 0, [], [], [], []
    for user, row in enumerate(scores):
        wanted = {item for item in targets[user] if item >= 0}
        if not wanted:
            continue
        seen = set(history[user])
        ranks = []
        for item in wanted:
            if item in seen:
                ranks.append(math.inf)
                continue
            others = [s for i, s in enumerate(row) if i not in seen and i != item]
            higher = sum(s > row[item] for s in others)
            ties = sum(s == row[item] for s in others)
            ranks.append(1 + higher + 0.5 * ties)
        found = [rank for rank in ranks if rank <= k]
        hits += len(found)
        pairs += len(ranks)
        recalls.append(len(found) / len(ranks))
        any_hits.append(bool(found))
        ideal = sum(1 / math.log2(r + 1) for r in range(1, min(len(ranks), k) + 1))
        ndcgs.append(min(1, sum(1 / math.log2(r + 1) for r in found) / ideal))
        reciprocal.append(1 / min(ranks))
    return {
        f"h@{k}": hits / pairs,
        f"r@{k}": np.mean(recalls),
        f"hit_any@{k}": np.mean(any_hits),
        f"n@{k}": np.mean(ndcgs),
        "mrr": np.mean(reciprocal),
        "users": len(recalls),
        "users_skipped": len(scores) - len(recalls),
        "targets": pairs,
        "targets_outside_gallery": sum(t.count(-1) for t in targets),
    }


def test_known_answer_by_hand() -> None:
    # Item order of user 0: 2, 0, 1, 3; targets 0 and 3 have ranks 2 and 4.
    # User 1: order 0, 1, 2, 3; target 0 (given twice) has rank 1.
    metrics = scored(
        [[0.5, 0.3, 0.9, 0.1], [0.9, 0.8, 0.7, 0.6]], [[0, 3], [0, 0, -1]], ks=(2,)
    )
    gain = 1 / math.log2(3)
    assert metrics == pytest.approx(
        {
            "h@2": 2 / 3,
            "r@2": (1 / 2 + 1) / 2,
            "hit_any@2": 1.0,
            "n@2": (gain / (1 + gain) + 1) / 2,
            "mrr": (1 / 2 + 1) / 2,
            "users": 2,
            "users_skipped": 0,
            "targets": 3,
            "targets_outside_gallery": 1,
        }
    )


def test_one_target_per_user_makes_h_and_r_equal() -> None:
    metrics = scored(np.random.default_rng(0).random((20, 9)), [[3]] * 20, ks=(4,))
    assert 0 < metrics["h@4"] < 1
    assert metrics["h@4"] == metrics["r@4"] == metrics["hit_any@4"]


def test_ties_take_the_middle_rank() -> None:
    # All five equal: rank 1 + 4 / 2 = 3, whichever is the target.
    for target in range(5):
        metrics = scored([[0.0] * 5], [[target]], ks=(2, 3))
        assert metrics["mrr"] == pytest.approx(1 / 3)
        assert (metrics["h@2"], metrics["h@3"]) == (0.0, 1.0)


def test_ndcg_never_exceeds_one_when_targets_tie() -> None:
    assert scored([[0.5, 0.5, 0.5]], [[0, 1, 2]], ks=(2,))["n@2"] == 1.0


def test_history_leaves_the_ranking() -> None:
    scores = [[0.9, 0.8, 0.7]]
    assert scored(scores, [[2]], [[0, -1]])["mrr"] == pytest.approx(1 / 2)
    assert scored(scores, [[2]], [[]])["mrr"] == pytest.approx(1 / 3)


def test_target_in_the_history_is_a_miss() -> None:
    metrics = scored([[0.9, 0.8, 0.7]], [[0, 1]], [[0]], ks=(3,))
    assert metrics["h@3"] == metrics["r@3"] == 0.5
    assert metrics["mrr"] == 1.0  # item 1 moved up
    assert scored([[0.9, 0.8]], [[0]], [[0]], ks=(2,))["mrr"] == 0.0


@pytest.mark.parametrize("block_elements", [1, 100, 1 << 24])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_naive_ranking(
    monkeypatch: pytest.MonkeyPatch, seed: int, block_elements: int
) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK_ELEMENTS", block_elements)
    random = np.random.default_rng(seed)
    scores = random.integers(12, size=(30, 25)) / 4  # many ties
    targets = [
        random.integers(-1, 25, size=random.integers(6)).tolist() for _ in scores
    ]
    history = [random.integers(25, size=random.integers(8)).tolist() for _ in scores]
    metrics = scored(scores, targets, history, ks=(5,))
    assert metrics == pytest.approx(naive_metrics(scores, targets, history, 5))
    assert metrics["users_skipped"] > 0


def test_vectors_rank_by_dot_product() -> None:
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(-4, 5, (12, 6), generator=generator).half()
    items = torch.randint(-4, 5, (20, 6), generator=generator).half()
    targets = [[i % 20, (3 * i) % 20] for i in range(12)]
    metrics = evaluate_retrieval(users, items, Jagged.from_lists(targets), ks=(3,))
    scores = (users.double() @ items.double().T).numpy()
    assert metrics == pytest.approx(naive_metrics(scores, targets, [[]] * 12, 3))


def test_runs_of_users_have_the_ranks_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK_ELEMENTS", 16)  # two users of eight items
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randint(0, 5, (8, 8), generator=generator).float()
    targets = Jagged.from_lists([[7, 2, 2], [], [0], [-1, 3], [], [1, 4], [5], []])
    history = Jagged.from_lists([[2], [1], [], [0, 1], [], [4], [], [3]])

    def ranks(users=None):
        return target_ranks(
            lambda start, stop: matrix[start:stop], 8, targets, history, users
        ).tolist()

    assert len(ranks()) == 7
    for first, second in ((0, 0), (0, 3), (1, 7), (5, 8), (8, 8)):
        runs = [slice(0, first), slice(first, second), slice(second, 8)]
        assert [rank for run in runs for rank in ranks(run)] == ranks()


@pytest.mark.parametrize("elements", [1, 24, 1 << 20])
def test_a_device_counts_as_numpy_does(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK_ELEMENTS", elements)
    generator = torch.Generator().manual_seed(4)
    scores = torch.randint(0, 4, (5, 12), generator=generator).float()
    scores[2, 3:7] = -math.inf
    pairs = np.array([0, 0, 1, 2, 2, 4]), np.array([3, 11, 0, 3, 8, 5])
    expected = retrieval._counts(scores, *pairs)
    found = retrieval._counts_on_device(scores, *pairs)
    for one, other in zip(found, expected, strict=True):
        assert one.tolist() == other.tolist()
    _, higher, equal = expected
    naive = [
        (scores[user] > scores[user, item]).sum().item()
        for user, item in zip(*pairs, strict=True)
    ]
    assert higher.tolist() == naive
    assert equal.min() >= 1


def test_popularity_uses_the_same_code_and_keeps_its_counts() -> None:
    counts = torch.tensor([5, 2**53, 2**53 - 1, 0])
    targets = Jagged.from_lists([[2], [0]])
    history = Jagged.from_lists([[], [1]])
    metrics = evaluate_scores(
        lambda start, stop: counts.expand(stop - start, -1), 4, targets, history, (2,)
    )
    assert metrics["mrr"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert counts.tolist() == [5, 2**53, 2**53 - 1, 0]


def test_no_evaluated_user_gives_nan() -> None:
    for targets in ([], [[], [-1]]):
        metrics = scored(torch.zeros(len(targets), 3), targets)
        assert metrics["users"] == metrics["targets"] == 0
        assert metrics["users_skipped"] == len(targets)
        assert all(math.isnan(metrics[name]) for name in ("h@1", "r@1", "n@2", "mrr"))


def test_non_finite_values_are_refused_with_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK_ELEMENTS", 1)  # one user per block
    scores = torch.zeros(4, 3)
    scores[2, 1] = math.nan
    with pytest.raises(UserError, match=r"user scores: not finite in row 2 "):
        scored(scores, [[0]] * 4)
    vectors = torch.ones(3, 2)
    vectors[1, 0] = math.inf
    targets = Jagged.from_lists([[0]] * 3)
    with pytest.raises(UserError, match="user vectors: not finite in row 1"):
        evaluate_retrieval(vectors, torch.ones(4, 2), targets)
    with pytest.raises(UserError, match="item vectors: not finite in row 1"):
        evaluate_retrieval(torch.ones(3, 2), vectors, targets)


def test_unfit_input_is_refused() -> None:
    ones = torch.ones(2, 3)
    targets = Jagged.from_lists([[0], [1]])
    with pytest.raises(UserError, match="targets of user row 1: item row 5"):
        evaluate_retrieval(ones, ones, Jagged.from_lists([[0], [1, 5]]))
    with pytest.raises(UserError, match="history of user row 0: item row -2"):
        evaluate_retrieval(ones, ones, targets, Jagged.from_lists([[-2], []]))
    with pytest.raises(UserError, match="history: 1 users, targets have 2"):
        evaluate_retrieval(ones, ones, targets, Jagged.from_lists([[]]))
    with pytest.raises(UserError, match="targets: 2 users, 3 user vectors"):
        evaluate_retrieval(torch.ones(3, 3), ones, targets)
    with pytest.raises(UserError, match=r"item vectors: shape \[2, 4\]"):
        evaluate_retrieval(ones, torch.ones(2, 4), targets)
    with pytest.raises(UserError, match="ks"):
        evaluate_retrieval(ones, ones, targets, ks=(0,))
    with pytest.raises(UserError, match="shape"):
        evaluate_scores(lambda start, stop: ones, 2, targets)
    with pytest.raises(UserError, match="offsets"):
        Jagged(np.array([1, 2]), np.array([0, 1]))


def test_docstring_example() -> None:
    result = doctest.testmod(retrieval)
    assert result.attempted > 0
    assert result.failed == 0


def test_a_cutoff_of_a_billion_takes_no_memory() -> None:
    vectors = torch.eye(3)
    found = evaluate_retrieval(vectors, vectors, Jagged.from_lists([[0], [1], [2, 0]]))
    huge = evaluate_retrieval(
        vectors, vectors, Jagged.from_lists([[0], [1], [2, 0]]), ks=(50, 2**31 - 1)
    )
    assert huge["n@2147483647"] == huge["n@50"] == found["n@50"]
