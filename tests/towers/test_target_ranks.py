"""Ranks by several rows: rare items among themselves, against a plain loop."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from random_sequences import sequence_set

from learn_torchrec.jagged import Jagged
from learn_torchrec.towers.retrieval import RetrievalConfig
from learn_torchrec.towers.target_ranks import TargetRanks

USERS, ITEMS = 7, 30


@pytest.fixture
def data():
    """Items 0 to 9 have no training event, 10 to 19 one, the others six."""
    random = np.random.default_rng(0)
    events = np.r_[np.arange(10, 20), np.repeat(np.arange(20, 30), 6)]
    train = sequence_set(
        user_ids=pa.array([1]),
        offsets=np.array([0, len(events)]),
        items=events,
        times=np.arange(len(events)),
    )
    lists = [random.choice(ITEMS, n, replace=False) for n in (9, 0, 12, 1, 20, 3, 8)]
    # Half of the targets are in the histories, with others.
    met = [np.r_[one[::2], random.choice(ITEMS, 4)] for one in lists]
    test = SimpleNamespace(
        targets=Jagged.from_lists(lists), history=Jagged.from_lists(met)
    )
    return SimpleNamespace(train=train, test=test), lists, met


def test_rare_items_are_ranked_among_themselves(data):
    split, lists, met = data
    scores = torch.randn(USERS, ITEMS, generator=torch.Generator().manual_seed(1))
    popular = scores + 100 * (torch.arange(ITEMS) >= 20)  # in front of all rare ones
    config = RetrievalConfig(ks=(3,), tail_events=5)
    ranks = TargetRanks(split, ITEMS, config)
    for name, row in {"plain": scores, "popular": popular}.items():
        ranks.add(name, lambda start, stop, row=row: row[start:stop])
    found = ranks.compared("plain")
    groups = {"tail": [range(20)] * USERS, "unseen": [range(10)] * USERS}
    groups["repeated"] = [sorted(set(one.tolist())) for one in met]
    for group, competing in groups.items():
        recalls, sizes = [], []
        rows = zip(scores.tolist(), lists, competing, strict=True)
        for row, targets, few in rows:
            wanted = set(targets.tolist()) & set(few)
            first = sorted(few, key=lambda item: -row[item])[:3]
            sizes += [len(few)] if wanted else []
            if wanted:
                recalls.append(len(wanted & set(first)) / len(wanted))
        assert found[group]["items"] == pytest.approx(np.mean(sizes))
        among = found[group]["among"]["r@3"]["rows"]
        assert among["plain"]["mean"] == pytest.approx(np.mean(recalls))
        if group == "repeated":
            continue
        # What pushes all rare items back changes nothing among them,
        # and hides them in the ranking of all items.
        assert among["popular"]["mean"] == pytest.approx(np.mean(recalls))
        assert found[group]["kept"]["r@3"]["rows"]["popular"]["mean"] == 0
    assert "among" not in found["all"]
