import threading

import numpy as np
import pytest
import torch

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import shared_catalogue
from learn_torchrec.evaluation.retrieval import target_ranks
from learn_torchrec.evaluation.shared_catalogue import (
    Added,
    ItemShare,
    shared_target_ranks,
)
from learn_torchrec.jagged import Jagged

USERS, ITEMS, DIM = 23, 57, 4


def problem(seed):
    """Return vectors whose products are exact and often equal, targets and history."""
    random = np.random.default_rng(seed)
    users, items = (
        torch.from_numpy(random.integers(-2, 3, (n, DIM)).astype(np.float32))
        for n in (USERS, ITEMS)
    )
    targets = [random.integers(-1, ITEMS, n) for n in random.integers(0, 6, USERS)]
    history = [random.integers(0, ITEMS, n) for n in random.integers(0, 9, USERS)]
    pairs = np.unique(random.integers(0, USERS * ITEMS, 80))
    score = random.integers(1, 9, len(pairs)).astype(np.float32)
    added = Added(
        *(torch.from_numpy(part) for part in (*np.divmod(pairs, ITEMS), score))
    )
    return users, items, Jagged.from_lists(targets), Jagged.from_lists(history), added


def on_ranks(ranks, users, items, *rest):
    """Return each rank's result; threads stand for ranks and add tensors up."""
    barrier, sent = threading.Barrier(ranks), [None] * ranks
    results = [None] * ranks

    def run(rank):
        def total(values):
            sent[rank] = values
            barrier.wait()
            result = torch.stack(sent).sum(0)
            barrier.wait()
            return result

        rows = slice(rank * ITEMS // ranks, (rank + 1) * ITEMS // ranks)
        share = ItemShare(items[rows], rows.start)
        results[rank] = shared_target_ranks(users, share, ITEMS, *rest, total)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("with_added", [False, True])
@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize(("ranks", "width", "scores"), [(1, 64, 1 << 20), (3, 5, 40)])
def test_ranks_equal_those_of_the_whole_catalogue(
    ranks, width, scores, with_history, with_added, monkeypatch
):
    monkeypatch.setattr(shared_catalogue, "_ITEMS_IN_BLOCK", width)
    monkeypatch.setattr(shared_catalogue, "_SCORES_IN_BLOCK", scores)
    for seed in range(6):
        users, items, targets, history, added = problem(seed)
        history = history if with_history else None
        whole = users @ items.T
        if with_added:
            whole = whole.index_put(added[:2], added.score, accumulate=True)

        def score(start, stop, whole=whole):
            return whole[start:stop]

        expected = target_ranks(score, ITEMS, targets, history)
        given = targets, history, added if with_added else None
        for found in on_ranks(ranks, users, items, *given):
            assert found.tolist() == expected.tolist()
    assert (expected % 1 == 0.5).any()  # there are ties
    assert np.isinf(expected).any() == with_history


def test_no_target_has_no_rank():
    users, items, _, history, _ = problem(0)
    nothing = Jagged.from_lists([[]] * USERS)
    share = ItemShare(items, 0)
    assert len(shared_target_ranks(users, share, ITEMS, nothing, history)) == 0


def test_vectors_that_are_not_finite_are_named_by_their_row_of_the_catalogue():
    users, items, targets, *_ = problem(0)
    items[3, 1] = torch.nan
    with pytest.raises(UserError, match=r"item vectors: not finite in row 43 "):
        shared_target_ranks(users, ItemShare(items[:20], 40), ITEMS + 40, targets)
