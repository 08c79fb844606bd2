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
    none = Jagged.from_lists([[]] * USERS)
    none = Jagged(none.values.astype(np.int64), none.offsets)
    test = SimpleNamespace(targets=Jagged.from_lists(lists), history=none)
    return SimpleNamespace(train=train, test=test), lists


def test_rare_items_are_ranked_among_themselves(data):
    split, lists = data
    scores = torch.randn(USERS, ITEMS, generator=torch.Generator().manual_seed(1))
    popular = scores + 100 * (torch.arange(ITEMS) >= 20)  # in front of all rare ones
    config = RetrievalConfig(ks=(3,), tail_events=5)
    ranks = TargetRanks(split, ITEMS, config)
    for name, row in {"plain": scores, "popular": popular}.items():
        ranks.add(name, lambda start, stop, row=row: row[start:stop])
    found = ranks.compared("plain")
    for group, rare in {"tail": range(20), "unseen": range(10)}.items():
        assert found[group]["items"] == len(rare)
        recalls = []
        for row, targets in zip(scores.tolist(), lists, strict=True):
            wanted = set(targets.tolist()) & set(rare)
            first = sorted(rare, key=lambda item: -row[item])[:3]
            if wanted:
                recalls.append(len(wanted & set(first)) / len(wanted))
        among = found[group]["among"]["r@3"]["rows"]
        # What pushes all rare items back changes nothing among them ...
        for name in ("plain", "popular"):
            assert among[name]["mean"] == pytest.approx(np.mean(recalls))
        # ... and hides them in the ranking of all items.
        assert found[group]["kept"]["r@3"]["rows"]["popular"]["mean"] == 0
    assert "among" not in found["all"]
