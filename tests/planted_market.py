"""A planted market: conversions that depend on an item's kind and nothing else.

An item belongs to a topic, and its text is made of the topic's words. Its kind is the
topic, or narrower: what it is, the first word of its title. A user likes some kinds,
and converts on an item with a probability that depends only on whether its kind is one
of them. All items of the last day are new on that day: ids tell nothing about them,
only content does.
"""

import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt, PositiveInt

from learn_torchrec.config import Share, configuration
from learn_torchrec.datasets.adapters.ratings import DISLIKE, LIKE
from learn_torchrec.datasets.generated.market import DAY, ORACLE, START, TOPICS

_WORDS = 6  # of a topic


@configuration
class PlantedConfig:
    """Size and noise.

    Attributes:
        seed: of everything.
        users: all of them come every day.
        days: of the log; the last one is for the test.
        items_per_day: new ones each day.
        item_days: for which an item is offered.
        impressions: of a user on a day.
        narrow: whether kinds are first words, 48, instead of the 8 topics.
        liked_kinds: of a user.
        liked_rate: conversions on liked kinds.
        other_rate: conversions on other kinds.
    """

    seed: NonNegativeInt = 0
    users: PositiveInt = 300
    days: Annotated[int, Field(ge=2)] = 20
    items_per_day: PositiveInt = 24
    item_days: PositiveInt = 4
    impressions: PositiveInt = 10
    narrow: bool = False
    liked_kinds: PositiveInt = 3
    liked_rate: Share = 0.75
    other_rate: Share = 0.15


class PlantedMarket:
    """Tables in our schema; impressions carry `oracle`.

    Attributes:
        test_from: the first moment of the last day, unix seconds.
        kinds: int64 [items], the kind of each.
        num_kinds: in total.
    """

    def __init__(self, config: PlantedConfig) -> None:
        self.config = config
        self.test_from = START + (config.days - 1) * DAY
        # Items are numbered by their day.
        count = config.days * config.items_per_day
        self._topics = self._random("items").integers(0, len(TOPICS), count)
        random = self._random("texts")
        words = [random.choice(_WORDS, size=3, replace=False) for _ in range(count)]
        self._words = np.stack(words)
        self.kinds, self.num_kinds = self._topics, len(TOPICS)
        if config.narrow:
            self.kinds = self._topics * _WORDS + self._words[:, 0]
            self.num_kinds *= _WORDS
        self._log = self._make_log()

    def write(self, directory: Path) -> str:
        """Write a `parquet:` data set; return its `--data`."""
        directory.mkdir(parents=True)
        for name in ("items", "interactions", "impressions"):
            pq.write_table(getattr(self, name)(), directory / f"{name}.parquet")
        return f"parquet:{directory}"

    def items(self) -> pa.Table:
        names = list(TOPICS)
        words = [
            [TOPICS[names[topic]][word] for word in three]
            for topic, three in zip(self._topics, self._words, strict=True)
        ]
        return pa.table(
            {
                "item_id": np.arange(len(words)),
                "title": [f"{two[0]} and {two[1]}" for two in words],
                "category": [names[topic] for topic in self._topics],
                "keywords": [three[2] for three in words],
            }
        )

    def _make_log(self) -> pa.Table:
        config, random = self.config, self._random("log")
        count = config.users * config.days * config.impressions
        users = np.tile(np.arange(config.users), config.days * config.impressions)
        days = np.repeat(np.arange(config.days), config.users * config.impressions)
        oldest = np.maximum(0, days - config.item_days + 1)
        born = random.integers(oldest, days + 1)
        born[days == config.days - 1] = config.days - 1
        items = born * config.items_per_day
        items += random.integers(0, config.items_per_day, count)
        ranks = [random.permutation(self.num_kinds) for _ in range(config.users)]
        likes = np.stack(ranks) < config.liked_kinds  # [users, kinds]
        oracle = np.where(
            likes[users, self.kinds[items]], config.liked_rate, config.other_rate
        )
        table = pa.table(
            {
                "user_id": users,
                "item_id": items,
                "timestamp": START + days * DAY + random.integers(0, DAY, count),
                "label": (random.random(count) < oracle).astype(np.int64),
                ORACLE: oracle,
            }
        )
        return table.sort_by([("timestamp", "ascending"), ("user_id", "ascending")])

    def interactions(self) -> pa.Table:
        actions = np.where(self._log["label"].to_numpy() == 1, LIKE, DISLIKE)
        log = self._log.select(["user_id", "item_id", "timestamp"])
        return log.append_column("action", pa.array(actions))

    def impressions(self) -> pa.Table:
        return self._log

    def _random(self, part: str) -> np.random.Generator:
        digest = hashlib.blake2b(part.encode(), digest_size=8).digest()
        return np.random.default_rng([self.config.seed, int.from_bytes(digest)])
