import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from random_sequences import sequence_set
from shoppers import towers_config, users_who
from untrained_towers import statistics_of

from learn_torchrec.towers.batch import collate
from learn_torchrec.towers.build import build_task, build_towers
from learn_torchrec.towers.inference import (
    encode_catalogue,
    encode_histories,
    repeat_scores,
)
from learn_torchrec.towers.objectives.dense_all_action import dense_all_action_loss
from learn_torchrec.towers.objectives.next_item import in_batch
from learn_torchrec.towers.repeat import (
    RepeatConsumption,
    RepeatedItems,
    RepeatStatistics,
)
from learn_torchrec.towers.retrieval import (
    RetrievalConfig,
    evaluate_groups,
)
from learn_torchrec.towers.sampling import next_item_sample
from learn_torchrec.towers.scores import towers_scores
from learn_torchrec.towers.statistics import TowerStatistics
from learn_torchrec.towers.training import train_towers
from learn_torchrec.training.run_log import RunLog

CPU = torch.device("cpu")


DAY = 86_400


def scored(repeat, items, times, lengths, anchors):
    seen = repeat(*(torch.tensor(x) for x in (items, times, lengths, anchors)))
    assert seen.anchor.tolist() == sorted(seen.anchor.tolist())
    columns = (x.tolist() for x in seen)
    return {(anchor, item): z for anchor, item, z in zip(*columns, strict=True)}


def test_by_hand():
    repeat = RepeatConsumption(torch.arange(8) / 10, length=3)
    with torch.no_grad():
        repeat.weight.copy_(torch.tensor([10.0, 1.0, -2.0, -4.0, 1.0]))
    # User 0 met 7 4 7 5 7, a day after another; user 1 met 4.
    times = [0, DAY, 2 * DAY, 3 * DAY, 4 * DAY, 9 * DAY]
    found = scored(repeat, [7, 4, 7, 5, 7, 4], times, [5, 1], [[2, 4], [0 + 5, -1]])
    once, twice = 10.0, 10 + math.log(2)
    ago = -6 * math.log(2)  # one event and one day ago
    assert found == {
        (0, 4): pytest.approx(once + ago + 0.4),
        (0, 7): pytest.approx(twice + 0.7),  # this very event
        (1, 5): pytest.approx(once + ago + 0.5),
        (1, 7): pytest.approx(twice + 0.7),  # the first is beyond the latest three
        (2, 4): pytest.approx(once + 0.4),
    }


def test_the_initial_score_is_zero():
    repeat = RepeatConsumption(torch.ones(3), length=9)
    found = scored(repeat, [1, 2], [0, 9], [2], [[1]])
    assert list(found.values()) == [0, 0]


def test_how_often_items_are_repeated_by_hand():
    # Item 0 is taken by two users, three times each; item 1 by three, once each.
    sequences = sequence_set(
        user_ids=pa.array(range(3)),
        offsets=np.array([0, 4, 8, 9]),
        items=np.array([0, 1, 0, 0, 0, 0, 1, 0, 1]),
        times=np.arange(9),
    )
    share = (9 - 5 + 1) / (9 + 2)

    def above(repeats, events):
        smoothed = (repeats + 10 * share) / (events + 10)
        return math.log(smoothed / (1 - smoothed)) - math.log(share / (1 - share))

    found = RepeatStatistics.of(sequences, 3).log_odds.numpy()
    assert found.tolist() == pytest.approx([above(4, 6), above(0, 3), 0], abs=1e-6)


def test_training_starts_with_the_past_by_counts_as_likely_as_the_log_repeats():
    """Two users take 4 and 2 distinct items of 9 in 10 events: 4 repeats."""
    sequences = sequence_set(
        user_ids=pa.array([1, 2]),
        offsets=np.array([0, 6, 10]),
        items=np.array([0, 1, 2, 3, 0, 0, 5, 6, 5, 6]),
        times=np.arange(10),
    )
    statistics = TowerStatistics(
        *(torch.zeros(4), torch.ones(4), torch.ones(9)),
        RepeatStatistics.of(sequences, 9),
    )
    share, past = 5 / 12, (4 + 2) / 2 / 2
    prior = math.log(share / past) - math.log((1 - share) / (9 - past))
    assert statistics.repeat.prior == pytest.approx(prior)
    repeat = build_task(towers_config(), statistics).towers.repeat  # temperature 0.2
    assert repeat.weight.tolist() == pytest.approx([0.2 * prior, 0.2, 0, 0, 0])


@pytest.mark.parametrize("items", [[0, 1, 2], [0, 0, 0]])
def test_odds_are_finite_where_nothing_or_all_is_repeated(items):
    sequences = sequence_set(
        user_ids=pa.array([1]),
        offsets=np.array([0, 3]),
        items=np.array(items),
        times=np.arange(3),
    )
    found = RepeatStatistics.of(sequences, 4)
    assert torch.isfinite(found.log_odds).all()
    assert np.isfinite(found.prior)


def test_items_are_numbered_as_in_the_batch():
    seen = RepeatedItems(torch.arange(4), torch.tensor([9, 3, 4, 12]), torch.ones(4))
    found = in_batch(seen, torch.tensor([3, 5, 9]))
    assert found.item.tolist() == [2, 0, -1, -1]
    assert in_batch(None, torch.tensor([3])) is None


@pytest.mark.parametrize("length", [1, 4, 100])
def test_batches_hold_the_past_of_every_anchor(length):
    """As training scores the past, so does inference after the same events."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 30, 20)
    sequences = sequence_set(
        user_ids=pa.array(range(20)),
        offsets=np.r_[0, np.cumsum(lengths)],
        items=random.integers(0, 6, lengths.sum()),
        times=np.concatenate([np.cumsum(random.integers(0, DAY, n)) for n in lengths]),
    )
    config = dataclasses.replace(towers_config().model, repeat_length=length)
    towers = build_towers(
        config,
        TowerStatistics(
            *(torch.zeros(4), torch.ones(4), torch.ones(6)),
            RepeatStatistics(torch.randn(6), 0.0),
        ),
    )
    torch.nn.init.normal_(towers.repeat.weight)
    users = np.arange(20)
    times = np.split(sequences.times, sequences.ends[:-1])
    samples = [next_item_sample(times[u], 8, 0, 0, u) for u in users]
    batch = collate(sequences, users, samples, 8, 8, np.arange(6), length)
    seen = towers.repeated_items(batch)
    starts = np.cumsum(lengths) - lengths
    for user, sample in enumerate(samples):
        for place, event in enumerate(sample.history[sample.anchors]):
            mine = seen.anchor == user * 8 + place
            expected = repeat_scores(
                towers, sequences, np.array([starts[user] + event])
            )
            assert seen.item[mine].tolist() == expected.item.tolist()
            torch.testing.assert_close(seen.score[mine], expected.score)


def test_the_dense_loss_equals_the_naive_formula():
    random = torch.Generator().manual_seed(0)
    users, num_anchors, num_positives = 5, 2, 3
    anchors = F.normalize(torch.randn(users, num_anchors, 4, generator=random), dim=-1)
    positives = F.normalize(
        torch.randn(users, num_positives, 4, generator=random), dim=-1
    )
    items = torch.randint(0, 8, (users, num_positives), generator=random)
    mask = torch.ones(users, num_anchors, dtype=torch.bool)
    # Every anchor has met two items, some of which are candidates several times.
    anchor = torch.arange(users * num_anchors).repeat_interleave(2)
    item = torch.stack(
        [torch.randperm(8, generator=random)[:2] for _ in range(users * num_anchors)]
    ).flatten()
    score = torch.randn(len(item), generator=random, requires_grad=True)
    met = torch.zeros(users * num_anchors, 8).index_put((anchor, item), score)

    terms = []
    for i in range(users):
        own = set(items[i].tolist())
        for j in range(num_anchors):
            row = i * num_anchors + j

            def logit(z, m, i=i, j=j, row=row):
                return (anchors[i, j] @ positives[z, m] + met[row, items[z, m]]) / 0.2

            negatives = [
                logit(z, m)
                for z in range(users)
                for m in range(num_positives)
                if z != i and int(items[z, m]) not in own
            ]
            for k in range(num_positives):
                logits = torch.stack([logit(i, k), *negatives])
                terms.append(-logits.log_softmax(0)[0])
    expected = torch.stack(terms).mean()
    (naive,) = torch.autograd.grad(expected, score)

    loss = dense_all_action_loss(
        anchors,
        positives,
        mask,
        items,
        temperature=0.2,
        repeated=RepeatedItems(anchor, item, score),
    )
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss, score)
    torch.testing.assert_close(gradient, naive, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", ["dense_all_action", "next_item"])
def test_it_learns_whether_things_are_bought_again(
    store, one_rank, tmp_path, objective
):
    del one_rank
    weights = []
    for repeat in (True, False):
        with RunLog(tmp_path / "towers") as log:
            trained = train_towers(
                towers_config(objective=objective),
                users_who(repeat),
                store,
                RetrievalConfig(ks=(5,)),
                CPU,
                log,
            )
        weights.append(trained.state["repeat.weight"][0].item())
    assert weights[0] > 0.02
    assert weights[1] < -0.02


def test_retrieval_adds_it_to_the_whole_past(store):
    data = users_who(repeat=False)
    config = dataclasses.replace(towers_config().model, repeat_length=5)
    towers = build_towers(config, statistics_of(store)).eval()
    with torch.no_grad():
        towers.repeat.weight.copy_(torch.tensor([5.0, 0.0, -1.0, 0.0, 0.0]))
    window = 3
    scores = towers_scores(towers, store, data.test, window, CPU)(10, 20)
    items = encode_catalogue(towers, store, np.arange(len(store)), CPU)
    users = encode_histories(
        towers, store, data.test.sequences, data.test.last_history, window, CPU
    )
    expected = users[10:20] @ items.T
    for row, user in enumerate(range(10, 20)):
        met = data.test.sequences.of(user)[:6][-5:]
        for gap, item in enumerate(reversed(met)):
            expected[row, item] += 5.0 - math.log(1 + gap)
    torch.testing.assert_close(scores, expected)
    # With such a score the history comes first, so that no new target is found.
    rows = {"learn": towers_scores(towers, store, data.test, window, CPU)}
    groups = evaluate_groups(
        rows, data.train, len(store), data.test, RetrievalConfig(ks=(5,))
    )
    assert groups["all"]["learn"]["h@5"] == 0.0
