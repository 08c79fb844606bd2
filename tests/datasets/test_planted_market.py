"""The planted market of the tests: only kinds matter, and its last day is new."""

from typing import Any

import numpy as np
import pytest
from planted_market import PlantedConfig, PlantedMarket

from learn_torchrec.datasets.generated.market import DAY, TOPICS
from learn_torchrec.evaluation.auc import evaluate_auc

SMALL = {"seed": 3, "users": 60, "days": 6, "items_per_day": 10, "impressions": 8}


def planted(**settings: Any) -> PlantedMarket:
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


@pytest.mark.parametrize("settings", [{}, {"narrow": True, "liked_kinds": 18}])
def test_conversion_depends_on_kind_and_taste_alone(settings):
    market = planted(users=200, **settings)
    rows = market.impressions()
    oracle, labels = rows["oracle"].to_numpy(), rows["label"].to_numpy()
    for rate in (0.75, 0.15):
        assert labels[oracle == rate].mean() == pytest.approx(rate, abs=0.03)
    kinds = market.kinds.tolist()
    users, items = rows["user_id"].to_pylist(), rows["item_id"].to_pylist()
    seen = {}
    for user, item, chance in zip(users, items, oracle, strict=True):
        assert seen.setdefault((user, kinds[item]), chance) == chance
    uauc = evaluate_auc(rows["user_id"].combine_chunks(), labels, oracle)["uauc"]
    assert uauc == pytest.approx(0.8, abs=0.02)


def test_the_text_tells_the_kind():
    broad, narrow = planted(), planted(narrow=True)
    rows = broad.items().to_pylist()
    assert rows == narrow.items().to_pylist()
    for item, topic, kind in zip(rows, broad.kinds, narrow.kinds, strict=True):
        words = TOPICS[item["category"]]
        assert words == [*TOPICS.values()][topic]
        assert {*item["title"].split(" and "), item["keywords"]} <= set(words)
        first = item["title"].split(" and ")[0]
        assert kind == len(words) * topic + words.index(first)
