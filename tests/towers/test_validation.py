"""Validation ranks as the evaluation does, and chooses what only a ranking can."""

import dataclasses

import numpy as np
import pytest
import torch
from shoppers import towers_config, users_who, with_favourites
from untrained_towers import statistics_of

from learn_torchrec.evaluation.retrieval import evaluate_scores
from learn_torchrec.towers import validation
from learn_torchrec.towers.build import build_towers
from learn_torchrec.towers.popularity import Popularity
from learn_torchrec.towers.retrieval import (
    RetrievalConfig,
    evaluate_groups,
    target_groups,
)
from learn_torchrec.towers.scores import towers_scores
from learn_torchrec.towers.validation import validate_towers
from learn_torchrec.training.distributed import process_group

CPU = torch.device("cpu")
SCALES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0, 16.0)
WEIGHTS = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1)


def make_towers(store, data, weight, **changes):
    """Return untrained towers with a repeat score; popularity is that of `data`."""
    config = dataclasses.replace(towers_config().model, **changes)
    counts = torch.from_numpy(data.train.item_counts(len(store)))
    statistics = dataclasses.replace(statistics_of(store), event_counts=counts)
    torch.manual_seed(1)
    towers = build_towers(config, statistics)
    with torch.no_grad():
        towers.repeat.weight.copy_(torch.tensor(weight))
    return towers


def validated(towers, store, task, retrieval):
    with process_group():
        return validate_towers(towers, store, task, 3, CPU, retrieval)


@pytest.mark.parametrize("popularity", [False, True])
@pytest.mark.parametrize("filter_history", [False, True])
@pytest.mark.parametrize("inputs", ["content", "content+id"])
def test_it_ranks_as_the_evaluation_does(store, inputs, filter_history, popularity):
    data = users_who(repeat=False)
    weight = [0.1, 0.0, -0.02, 0.0, 0.0]
    towers = make_towers(store, data, weight, inputs=inputs, popularity=popularity)
    retrieval = RetrievalConfig(ks=(5, 10), filter_history=filter_history)
    found = validated(towers, store, data.test, retrieval)
    rows = {"learn": towers_scores(towers, store, data.test, 3, CPU)}
    groups = evaluate_groups(rows, data.train, len(store), data.test, retrieval)
    assert found == pytest.approx(groups["all"]["learn"], rel=1e-6)
    assert 0 < found["r@10"] < 1


@pytest.mark.parametrize("repeat", [True, False])
def test_the_scale_that_finds_most_is_kept(store, repeat):
    data, retrieval = users_who(repeat), RetrievalConfig(ks=(1, 5))
    towers = make_towers(store, data, [-0.3, 0.0, 0.0, 0.0, 0.0]).train()
    before = first_scores(towers, data)
    found = validated(towers, store, data.test, retrieval)
    torch.testing.assert_close(first_scores(towers, data), before)  # in training
    kept, recalls = towers.repeat.scale.item(), {}
    for scale in SCALES:
        towers.repeat.scale.fill_(scale)
        rows = {"learn": towers_scores(towers, store, data.test, 3, CPU)}
        groups = evaluate_groups(rows, data.train, len(store), data.test, retrieval)
        recalls[scale] = groups["all"]["learn"]["r@1"]
    assert found["r@1"] == pytest.approx(max(recalls.values()))
    assert recalls[1.0] < found["r@1"]
    best = [scale for scale in SCALES if recalls[scale] == found["r@1"]]
    assert kept == pytest.approx(min(best, key=lambda scale: abs(np.log(scale))))
    assert (kept < 1) == repeat


@pytest.mark.parametrize(("seed", "best"), [(0, 0.1), (2, 0.07), (3, 0.0)])
def test_the_weight_of_popularity_finds_most_of_all_and_half_of_the_long_tail(
    store, seed, best
):
    """With 2 and 3, most of all alone would be 0.1; with 0, the tail alone .07."""
    data, tail_events = with_favourites(seed), 8
    retrieval = RetrievalConfig(ks=(5,), tail_events=tail_events)
    towers = make_towers(store, data, [0.0] * 5, popularity=True)
    validated(towers, store, data.test, retrieval)
    kept, worth = towers.popularity.weight.item(), {}
    tail = target_groups(data.train, len(store), data.test, tail_events)["tail"]
    groups = [data.test.targets, data.test.targets.filter(tail)]
    for weight in WEIGHTS:
        towers.popularity.weight.fill_(weight)
        score = towers_scores(towers, store, data.test, 3, CPU)
        worth[weight] = sum(
            share * evaluate_scores(score, len(store), targets, ks=(5,))["r@5"]
            for share, targets in zip((1, 0.5), groups, strict=True)
            if len(targets.values)
        )
    most = max(worth.values())
    first = min(weight for weight in WEIGHTS if worth[weight] == most)
    assert kept == pytest.approx(first) == best


def test_of_many_users_some_choose(store, monkeypatch):
    """The metrics are those of all users, with what ten of them choose."""
    data, retrieval = with_favourites(0), RetrievalConfig(ks=(5,))
    kept = []
    for task, most in ((data.test, 10), (data.test.sample(10), 1000)):
        monkeypatch.setattr(validation, "_CHOOSING_USERS", most)
        towers = make_towers(store, data, [0.1, 0.0, -0.1, 0.0, 0.0], popularity=True)
        found = validated(towers, store, task, retrieval)
        kept.append((towers.repeat.scale.item(), towers.popularity.weight.item()))
        score = towers_scores(towers, store, task, 3, CPU)
        expected = evaluate_scores(score, len(store), task.targets, ks=(5,))
        assert found == pytest.approx(expected, rel=1e-6)
    assert kept[0] == kept[1] != (1.0, 0.0)


def test_a_sample_of_the_users_is_ranked_like_all(store):
    data, retrieval = users_who(repeat=True), RetrievalConfig(ks=(1, 5))
    towers = make_towers(store, data, [-0.3, 0.0, 0.1, 0.0, 0.0], popularity=True)
    with process_group():
        of_all, of_some = (
            validation._Ranking.of(towers, store, task, 3, CPU, retrieval)
            for task in (data.test, data.test.sample(7))
        )
        assert of_all.sample(7).metrics() == of_some.metrics()
        assert of_all.sample(60) is of_all


def test_popularity_by_hand():
    """Items without an event are as popular as the mean of the others."""
    popularity = Popularity(torch.tensor([0, 1, 7, 0]))
    assert popularity().tolist() == [0, 0, 0, 0]
    popularity.weight.fill_(0.5)
    by_hand = [0, -0.5 * np.log(2), 0.5 * np.log(2), 0]  # log 2 and log 8
    assert popularity().tolist() == pytest.approx(by_hand)
    assert popularity.rare(1).tolist() == [True, True, False, True]
    assert popularity.rare(6).tolist() == [True, True, False, True]
    assert popularity.rare(7).all()
    nothing = Popularity(torch.zeros(3))
    nothing.weight.fill_(0.5)
    assert nothing().tolist() == [0, 0, 0]


def first_scores(towers, data):
    """Return the scores of the first user's past."""
    sequences = data.train
    length = int(sequences.lengths[0])
    return towers.repeat(
        torch.from_numpy(sequences.items[:length].astype(np.int64)),
        torch.from_numpy(sequences.times[:length].astype(np.int64)),
        torch.tensor([length]),
        torch.tensor([[length - 1]]),
    ).score
