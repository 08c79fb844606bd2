"""The planted market of the tests: only topics matter, and its last day is new."""

import numpy as np
import pytest
from planted_market import PlantedConfig, PlantedMarket

from learn_torchrec.datasets.generated.market import DAY, TOPICS
from learn_torchrec.evaluation.auc import evaluate_auc

SMALL = {"seed": 3, "users": 60, "days": 6, "items_per_day": 10, "impressions": 8}


def planted(**settings: int) -> PlantedMarket:
    return PlantedMarket(PlantedConfig(**(SMALL | settings)))


def test_it_follows_from_its_settings():
    one, same, other = planted(), planted(), planted(seed=4)
    for name in ("items", "interactions", "impressions"):
        table = getattr(one, name)()
        assert table.equals(getattr(same, name)())
        assert not table.equals(getattr(other, name)())


def test_ids_are_new_on_the_last_day():
    market = planted()
    rows = market.impressions()
    times, items = rows["timestamp"].to_numpy(), rows["item_id"].to_numpy()
    last = times >= market.test_from
    assert 0 < last.sum() == 60 * 8
    assert not set(items[last]) & set(items[~last])
    assert times.max() < market.test_from + DAY
    earlier = np.unique(items[~last])
    days = times // DAY
    lifetimes = [np.ptp(days[items == item]) for item in earlier]
    assert max(lifetimes) == 3  # offered for four days


def test_conversion_depends_on_topic_and_taste_alone():
    market = planted(users=200)
    rows = market.impressions()
    oracle, labels = rows["oracle"].to_numpy(), rows["label"].to_numpy()
    for rate in (0.75, 0.15):
        assert labels[oracle == rate].mean() == pytest.approx(rate, abs=0.03)
    columns = (market.items()[name].to_pylist() for name in ("item_id", "category"))
    topics = dict(zip(*columns, strict=True))
    users, items = rows["user_id"].to_pylist(), rows["item_id"].to_pylist()
    seen = {}
    for user, item, chance in zip(users, items, oracle, strict=True):
        assert seen.setdefault((user, topics[item]), chance) == chance
    uauc = evaluate_auc(rows["user_id"].combine_chunks(), labels, oracle)["uauc"]
    assert uauc == pytest.approx(0.8, abs=0.02)


def test_the_text_tells_the_topic():
    for item in planted().items().to_pylist():
        words = TOPICS[item["category"]]
        assert {*item["title"].split(" and "), item["keywords"]} <= set(words)
