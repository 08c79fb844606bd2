"""Pairs of items that are taken one after the other, by hand."""

import numpy as np
import pyarrow as pa
import pytest
from random_sequences import make_sequences, sequence_set

from learn_torchrec.towers.holdout import RetrievalTask
from learn_torchrec.towers.item_pairs import ItemPairs, PairCosines


def test_pairs_end_with_what_is_held_out():
    sequences = sequence_set(
        user_ids=pa.array([7, 8]),
        offsets=np.array([0, 4, 7]),
        items=np.array([1, 2, 2, 3, 4, 5, 6]),
        times=np.arange(7),
    )
    task = RetrievalTask(sequences=sequences, history_lengths=np.array([2, 1]))
    pairs = ItemPairs.of(task, 10)
    columns = (pairs.users, pairs.first, pairs.second)
    kept = set(zip(*(one.tolist() for one in columns), strict=True))
    # 2 then 2 is no pair; 1 then 2 and 4 alone lie in the histories.
    assert kept <= {(0, 2, 3), (1, 4, 5), (1, 5, 6)}
    assert (pairs.first != pairs.second).all()
    assert (pairs.first != pairs.random).all()


def test_random_pairs_are_as_popular():
    sequences = make_sequences([30] * 20)
    task = RetrievalTask(sequences=sequences, history_lengths=np.full(20, 3))
    pairs = ItemPairs.of(task, 10_000)
    counts = [np.bincount(one, minlength=40) for one in (pairs.second, pairs.random)]
    assert np.abs(counts[0] - counts[1]).sum() < 0.1 * len(pairs.users)
    assert len(ItemPairs.of(task, 100).users) <= 100


def test_the_auc_of_a_user_is_its_pairs_share_of_wins():
    cosines = PairCosines(
        users=np.array([3, 3, 9]),
        taken=np.array([0.5, 0.1, 0.3]),
        random=np.array([0.2, 0.3, 0.0]),
    )
    values, counts = cosines.by_user()
    # .5 beats three, .1 beats one, .3 beats two and ties one.
    assert values.tolist() == pytest.approx([(1 + 1 / 3) / 2, (1 + 1 + 0.5) / 3])
    assert counts.tolist() == [2, 1]
    # Weighted by pairs: the AUC over all of them.
    wins = np.mean(
        [
            (t > r) + (t == r) / 2
            for t in cosines.taken.tolist()
            for r in cosines.random.tolist()
        ]
    )
    assert np.average(values, weights=counts) == pytest.approx(wins)


def test_vectors_that_know_what_follows_win():
    sequences = make_sequences([30] * 20)
    task = RetrievalTask(sequences=sequences, history_lengths=np.full(20, 3))
    pairs = ItemPairs.of(task, 10_000)
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    values, counts = pairs.compare(vectors).by_user()
    assert np.average(values, weights=counts) == pytest.approx(0.5, abs=0.1)
    scaled = pairs.compare(vectors * np.arange(1, 41)[:, None])  # length is nothing
    assert np.allclose(scaled.taken, pairs.compare(vectors).taken, atol=1e-6)
