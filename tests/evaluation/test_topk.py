import numpy as np
import pytest
import torch

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import topk
from learn_torchrec.evaluation.topk import (
    approximate_top_items,
    top_items,
    top_new_items,
)
from learn_torchrec.jagged import Jagged


def vectors(num_users=70, num_items=90, dim=8):
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(num_users, dim, generator=generator)
    return users, torch.randn(num_items, dim, generator=generator)


@pytest.fixture(params=["faiss", "torch"])
def _backend(request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search by each backend in blocks of a few users."""
    if request.param == "faiss":
        pytest.importorskip("faiss", reason="needs faiss-cpu")
        monkeypatch.setattr(topk, "_BLOCK_USERS", 16)
    else:
        monkeypatch.setattr(topk, "_faiss", lambda: None)
        monkeypatch.setattr(topk, "_BLOCK_ELEMENTS", 16 * 90)


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("k", [1, 5, 90])
def test_equals_a_full_sort(k: int) -> None:
    users, items = vectors()
    top = top_items(users, items, k)
    scores = (users @ items.T).numpy()
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top.items, expected)
    np.testing.assert_allclose(
        top.scores, np.take_along_axis(scores, expected, axis=1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.usefixtures("_backend")
def test_equal_scores_come_in_the_order_of_the_rows() -> None:
    items = torch.tensor([[1.0], [2.0], [1.0], [2.0]])
    assert top_items(torch.ones(1, 1), items, 4).items.tolist() == [[1, 3, 0, 2]]


def test_an_approximate_index_states_what_it_misses() -> None:
    pytest.importorskip("faiss", reason="needs faiss-cpu")
    users, items = vectors(num_users=50, num_items=2000)
    flat = approximate_top_items(users, items, 10, index="Flat", recall_users=20)
    assert (flat.recall, flat.recall_users) == (1.0, 20)
    coarse = approximate_top_items(users, items, 10, index="IVF50,Flat")
    exact = top_items(users, items, 10)
    found = [
        set(a) & set(b) for a, b in zip(coarse.top.items, exact.items, strict=True)
    ]
    assert coarse.recall_users == 50
    assert coarse.recall == pytest.approx(sum(map(len, found)) / 500)
    assert 0 < coarse.recall < 0.9
    with pytest.raises(UserError, match="index 'NoSuch': FAISS refuses it"):
        approximate_top_items(users, items, 10, index="NoSuch")


@pytest.mark.parametrize(
    ("change", "k", "message"),
    [
        (lambda u, i: (u, i), 91, "k 91: choose 1 to 90"),
        (lambda u, i: (u, i), 0, "k 0: choose 1 to 90"),
        (lambda u, i: (u[:, :4], i), 5, "same number of columns"),
        (
            lambda u, i: (u, i.where(i != i[3, 0], torch.inf)),
            5,
            "item vectors: .* row 3",
        ),
    ],
)
def test_unfit_input_is_refused(change, k: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        top_items(*change(*vectors()), k)


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("k", [1, 5, 90])
def test_history_leaves_the_ranking(k: int) -> None:
    users, items = vectors()
    random = np.random.default_rng(0)
    lengths = random.integers(0, 60, size=70)
    lengths[3] = 400  # repeats, and hardly an item that is new
    history = Jagged.from_lists([random.integers(90, size=n) for n in lengths])
    top = top_new_items(users, items, k, history)
    scores = (users @ items.T).numpy()
    for user in range(70):
        order = np.argsort(-scores[user], kind="stable")
        new = order[~np.isin(order, history[user])][:k]
        assert top.items[user].tolist() == [*new, *[-1] * (k - len(new))]
        assert (top.scores[user][len(new) :] == -np.inf).all()
        np.testing.assert_allclose(
            top.scores[user][: len(new)], scores[user][new], rtol=1e-5, atol=1e-6
        )
