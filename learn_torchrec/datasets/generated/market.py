"""A generated market whose conversions are known: what a model could learn is known.

An item belongs to a topic, and its text is made of the topic's words. A user likes
some topics, and converts on an item with a probability that depends on nothing but
whether its topic is one of them. Items come and go; all items of the last day are new
on that day, so ids say nothing about them and only content does.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from learn_torchrec.config import Share, configuration, from_dict
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.movielens_100k import DISLIKE, LIKE, counters
from learn_torchrec.errors import UserError
from learn_torchrec.schema import (
    ACTION,
    CATEGORY,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    KEYWORDS,
    LABEL,
    TIMESTAMP,
    TITLE,
    USER_ID,
)

ORACLE = "oracle"
DAY = 86_400
START = 1_577_836_800  # 2020-01-01, UTC
TOPICS: dict[str, tuple[str, ...]] = {
    "coffee": ("espresso", "beans", "roast", "grinder", "crema", "arabica"),
    "camping": ("tent", "sleeping bag", "lantern", "trail", "campfire", "rope"),
    "chess": ("board", "knight", "opening", "endgame", "clock", "checkmate"),
    "gardening": ("seeds", "soil", "trowel", "compost", "tomato", "greenhouse"),
    "music": ("guitar", "strings", "amplifier", "melody", "drum", "piano"),
    "baking": ("flour", "oven", "sourdough", "whisk", "cake tin", "yeast"),
    "cycling": ("saddle", "gears", "helmet", "tyre", "handlebar", "chain"),
    "astronomy": ("telescope", "lens", "star chart", "planet", "eclipse", "tripod"),
}
_VERSION = 1  # of the generator: another one makes other data from the same seed


@configuration
class MarketConfig:
    """The size and the noise of a market.

    Attributes:
        seed: of everything.
        users: who all come every day.
        days: of the log; the last one is for the test.
        items_per_day: new ones each day.
        item_days: how long an item is offered.
        impressions: of a user on a day.
        liked_topics: of a user.
        liked_rate: conversions on liked topics.
        other_rate: conversions on other topics.
    """

    seed: NonNegativeInt = 0
    users: PositiveInt = 300
    days: Annotated[int, Field(ge=2)] = 20
    items_per_day: PositiveInt = 24
    item_days: PositiveInt = 4
    impressions: PositiveInt = 10
    liked_topics: Annotated[int, Field(gt=0, lt=len(TOPICS))] = 3
    liked_rate: Share = 0.75
    other_rate: Share = 0.15


class Market(Dataset):
    """The market that `seed=0,users=300,...` names, made in memory.

    Impressions carry `oracle`, the true probability of conversion, and the counters
    that a live ranker would have.
    """

    def __init__(self, settings: str) -> None:
        self.config = _parse(settings)
        self.directory = Path(f"market:{settings}")

    @property
    def test_from(self) -> int:
        """The first moment of the last day, unix seconds."""
        return START + (self.config.days - 1) * DAY

    def fingerprint(self, file: str) -> str:
        """Return a digest of the settings: the tables follow from them."""
        body = f"{_VERSION}/{file}/{dataclasses.astuple(self.config)}"
        return hashlib.sha256(body.encode()).hexdigest()

    def _name(self, file: str) -> str:
        return f"{self.directory}/{file}"

    def _read(self, file: str) -> pa.Table:
        return {
            ITEMS_FILE: self._read_items,
            INTERACTIONS_FILE: self._read_interactions,
            IMPRESSIONS_FILE: self._read_impressions,
        }[file]()

    @functools.cached_property
    def _topics(self) -> NDArray[np.int64]:
        """The topic of every item, int64 [items]; items are numbered by their day."""
        count = self.config.days * self.config.items_per_day
        return self._random("items").integers(0, len(TOPICS), count)

    def _read_items(self) -> pa.Table:
        random, names = self._random("texts"), list(TOPICS)
        words = [
            list(random.choice(TOPICS[names[topic]], size=3, replace=False))
            for topic in self._topics
        ]
        return pa.table(
            {
                ITEM_ID: np.arange(len(words)),
                TITLE: [f"{two[0]} and {two[1]}" for two in words],
                CATEGORY: [names[topic] for topic in self._topics],
                KEYWORDS: [three[2] for three in words],
            }
        )

    @functools.cached_property
    def _log(self) -> pa.Table:
        config, random = self.config, self._random("log")
        count = config.users * config.days * config.impressions
        users = np.tile(np.arange(config.users), config.days * config.impressions)
        days = np.repeat(np.arange(config.days), config.users * config.impressions)
        oldest = np.maximum(0, days - config.item_days + 1)
        born = random.integers(oldest, days + 1)
        born[days == config.days - 1] = config.days - 1
        items = born * config.items_per_day
        items += random.integers(0, config.items_per_day, count)
        ranks = [random.permutation(len(TOPICS)) for _ in range(config.users)]
        likes = np.stack(ranks) < config.liked_topics  # [users, topics]
        oracle = np.where(
            likes[users, self._topics[items]], config.liked_rate, config.other_rate
        )
        table = pa.table(
            {
                USER_ID: users,
                ITEM_ID: items,
                TIMESTAMP: START + days * DAY + random.integers(0, DAY, count),
                LABEL: (random.random(count) < oracle).astype(np.int64),
                ORACLE: oracle,
            }
        )
        return table.sort_by([(TIMESTAMP, "ascending"), (USER_ID, "ascending")])

    def _read_interactions(self) -> pa.Table:
        actions = np.where(self._log[LABEL].to_numpy() == 1, LIKE, DISLIKE)
        log = self._log.select([USER_ID, ITEM_ID, TIMESTAMP])
        return log.append_column(ACTION, pa.array(actions))

    def _read_impressions(self) -> pa.Table:
        table = self._log
        for name, values in counters(self._log).items():
            table = table.append_column(name, pa.array(values))
        return table

    def _random(self, part: str) -> np.random.Generator:
        digest = hashlib.blake2b(part.encode(), digest_size=8).digest()
        return np.random.default_rng([self.config.seed, int.from_bytes(digest)])


def _parse(settings: str) -> MarketConfig:
    """Read `seed=0,users=300`; `default` is the default market."""
    pairs = [] if settings == "default" else settings.split(",")
    known = [field.name for field in dataclasses.fields(MarketConfig)]
    values = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or name not in known:
            raise UserError(
                f"--data market:{settings}: {pair!r} is no setting; write "
                "NAME=VALUE,... with names of: "
                f"{', '.join(known)}"
            )
        values[name] = value
    return from_dict(MarketConfig, values, f"--data market:{settings}")
