"""A generated shop of any size, written day by day: the load generator.

Items have a subject, users have interests that drift, and a conversion depends on how
near they are, on the item's quality and on its price. The text of an item names its
subject, so content says of a new item what ids cannot know yet. A logging policy, which
knows a little of the interests and more of the popularity, chooses what is shown.
`oracle` is the true probability that an impression converts: no model ranks better.

Users and items are numbered as they arrive. Everything follows from (seed, day, chunk).

Letters: U users, N items, D days, K interest dimensions, n impressions of a chunk.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from learn_torchrec.config import configuration, require
from learn_torchrec.datasets.generated.market import DAY, ORACLE, START, TOPICS
from learn_torchrec.schema import (
    ACTION,
    ATTRIBUTES,
    BRAND,
    CATEGORY,
    CLICK,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    KEYWORDS,
    LABEL,
    PRICE,
    TIMESTAMP,
    TITLE,
    USER_ID,
)

KIND = "generated"
SEE, BUY = "click", "buy"
REVENUE = "revenue"
_INTERESTS = 8  # K
_CANDIDATES = 6  # that the policy chooses from
_CHUNK = 500_000
_STYLES = ("plain", "classic", "compact", "premium", "recycled", "travel")
_SERVICES = ("free returns", "next-day delivery", "two-year warranty", "gift wrap")

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@configuration
class GeneratedConfig:
    """The size of a shop.

    Attributes:
        users: by the last day; six of ten are there on the first.
        items: by the last day; half are there on the first.
        days: of the log, from 2020-01-01 on.
        impressions: in all, the same number every day.
        brands: that items have.
        drift: how far a user's interests turn in a day, radians.
        seed: of everything.
    """

    users: PositiveInt = 20_000
    items: PositiveInt = 5_000
    days: PositiveInt = 30
    impressions: int = 1_000_000
    brands: PositiveInt = 200
    drift: NonNegativeFloat = 0.05
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        require(self.impressions >= self.days, "impressions: at least one a day")


class GeneratedShop:
    """The shop that a configuration describes; holds users and items, not the log."""

    def __init__(self, config: GeneratedConfig) -> None:
        self.config = config
        random = self._random(0)
        subjects = _unit(random.standard_normal((len(TOPICS), _INTERESTS), np.float32))
        self.subject = random.integers(0, len(TOPICS), config.items)
        noise = random.standard_normal((config.items, _INTERESTS), np.float32)
        self.item_place = _unit(subjects[self.subject] + 0.3 * noise)
        self.quality = random.standard_normal(config.items, np.float32)
        self.price = np.exp(random.normal(3.0, 0.8, config.items)).round(2)
        self.brand = random.zipf(1.4, config.items) % config.brands
        self.appeal = random.pareto(1.3, config.items) + 0.05  # a long tail
        self.activity = random.pareto(1.5, config.users) + 0.1
        self.thrift = random.random(config.users, np.float32)
        liked = random.integers(0, len(TOPICS), (config.users, 2))
        self._interests = _unit(subjects[liked].sum(axis=1))
        self._heading = random.standard_normal(self._interests.shape, np.float32)
        days = np.arange(config.days)
        self.users_by_day = _arrived(config.users, days, config.days, first=0.6)
        self.items_by_day = _arrived(config.items, days, config.days, first=0.5)

    def items(self) -> pa.Table:
        """Return the catalogue with the paper's six text fields."""
        random, names = self._random(1), list(TOPICS)
        rows = []
        for item, subject in enumerate(self.subject):
            words = random.permutation(TOPICS[names[subject]])
            style = _STYLES[random.integers(len(_STYLES))]
            services = random.permutation(_SERVICES)[: random.integers(3)]
            rows.append(
                {
                    ITEM_ID: item,
                    TITLE: f"{style} {words[0]} with {words[1]}",
                    CATEGORY: names[subject],
                    BRAND: f"brand {self.brand[item]}",
                    PRICE: float(self.price[item]),
                    KEYWORDS: f"{words[2]}, {words[3]}",
                    ATTRIBUTES: ", ".join(services) or None,
                }
            )
        return pa.Table.from_pylist(rows)

    def interests(self, day: int) -> Floats:
        """Return where every user's interests are on a day, [U, K], unit vectors."""
        angle = np.float32(self.config.drift * day)
        side = self._heading - _dot(self._heading, self._interests) * self._interests
        return np.cos(angle) * self._interests + np.sin(angle) * _unit(side)

    def days(self) -> Iterator[tuple[int, Iterator[pa.Table]]]:
        """Yield every day's number and its impressions, a chunk at a time."""
        bounds = np.linspace(0, self.config.impressions, self.config.days + 1)
        counts = np.diff(bounds.astype(np.int64))
        for day, count in enumerate(counts.tolist()):
            yield day, self._day(day, count)

    def _day(self, day: int, count: int) -> Iterator[pa.Table]:
        interests = self.interests(day)
        chunks = -(-count // _CHUNK)
        edges = np.linspace(0, DAY, chunks + 1).astype(np.int64)
        for chunk in range(chunks):
            size = (chunk + 1) * count // chunks - chunk * count // chunks
            random = self._random(2, day, chunk)
            seconds = np.sort(random.integers(edges[chunk], edges[chunk + 1], size))
            yield self._impressions(day, START + day * DAY + seconds, interests, random)

    def _impressions(
        self, day: int, times: Ints, interests: Floats, random: np.random.Generator
    ) -> pa.Table:
        size = len(times)
        num_items = int(self.items_by_day[day])
        users = _draw(self.activity[: self.users_by_day[day]], size, random)
        shown = _draw(self.appeal[:num_items], size * _CANDIDATES, random).reshape(
            size, _CANDIDATES
        )
        nearness = np.einsum("nk,nck->nc", interests[users], self.item_place[shown])
        guess = nearness + random.standard_normal(nearness.shape, np.float32)
        rows = np.arange(size)
        best = guess.argmax(axis=1)
        items, near = shown[rows, best], nearness[rows, best]
        dear = self.thrift[users] * (np.log(self.price[items]) - 3.0)
        click = _sigmoid(-1.6 + 1.6 * near + 0.3 * self.quality[items])
        buy = _sigmoid(-1.2 + 2.2 * near + 0.5 * self.quality[items] - dear)
        clicked = random.random(size) < click
        bought = clicked & (random.random(size) < buy)
        born = np.searchsorted(self.items_by_day, items, side="right")
        return pa.table(
            {
                USER_ID: users,
                ITEM_ID: items,
                TIMESTAMP: times,
                LABEL: bought.astype(np.int64),
                CLICK: clicked.astype(np.int64),
                REVENUE: np.where(bought, self.price[items], 0.0),
                ORACLE: click * buy,
                "hour": (times % DAY / 3600).astype(np.float32),
                "item_age_days": (day - born).astype(np.float32),
                "log_price": np.log(self.price[items]).astype(np.float32),
                "brand": self.brand[items],
                "subject": self.subject[items],
            }
        )

    def _random(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, *place])


def write_shop(config: GeneratedConfig, directory: Path) -> Iterator[int]:
    """Write a shop as a `parquet:` data set; yield the impressions after every day.

    Args:
        config: its size.
        directory: exists; gets `items.parquet`, and a file a day in
            `interactions.parquet/` and `impressions.parquet/`.
    """
    shop = GeneratedShop(config)
    pq.write_table(shop.items(), directory / ITEMS_FILE)
    for name in (INTERACTIONS_FILE, IMPRESSIONS_FILE):
        (directory / name).mkdir()
    done = 0
    for day, chunks in shop.days():
        part = f"day-{day:05d}.parquet"
        log, shown = directory / INTERACTIONS_FILE, directory / IMPRESSIONS_FILE
        first = next(chunks)
        with (
            pq.ParquetWriter(shown / part, first.schema) as impressions,
            pq.ParquetWriter(log / part, events_of(first).schema) as interactions,
        ):
            for table in (first, *chunks):
                impressions.write_table(table)
                interactions.write_table(events_of(table))
                done += table.num_rows
        yield done


def events_of(impressions: pa.Table) -> pa.Table:
    """Return what users did: a click each, and a purchase where there was one."""
    parts = [
        impressions.filter(pa.array(impressions[column].to_numpy() == 1))
        .select([USER_ID, ITEM_ID, TIMESTAMP])
        .append_column(ACTION, pa.DictionaryArray.from_arrays(codes, [SEE, BUY]))
        for number, column in enumerate((CLICK, LABEL))
        for codes in [
            np.full(int(impressions[column].to_numpy().sum()), number, np.int8)
        ]
    ]
    return pa.concat_tables(parts).sort_by([(TIMESTAMP, "ascending")])


def _arrived(total: int, days: Ints, num_days: int, first: float) -> Ints:
    """Return how many of `total` are there on each day: some at first, then evenly."""
    share = first + (1 - first) * days / max(1, num_days - 1)
    return np.maximum(1, np.ceil(total * share)).astype(np.int64)


def _draw(
    weights: NDArray[np.float64], count: int, random: np.random.Generator
) -> Ints:
    """Draw `count` indices with probabilities in proportion to `weights`."""
    ends = np.cumsum(weights)
    drawn = np.searchsorted(ends, random.random(count) * ends[-1], side="right")
    return np.minimum(drawn, len(weights) - 1)


def _dot(left: Floats, right: Floats) -> Floats:
    product: Floats = np.sum(left * right, axis=1, keepdims=True)
    return product


def _unit(vectors: Floats) -> Floats:
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-logits))
