"""A generated market of any size, one day at a time.

Items have a topic and users have drifting interests; conversion depends on their
similarity and on the item's quality and price. An item's text names its topic, so that
content is informative about cold-start items. A logging policy with a noisy view of
interests and popularity selects the impressions. `oracle` is an impression's true
conversion probability: no model ranks better.

Users and items are numbered in order of arrival. Everything is determined by (seed,
day, chunk).

Letters: U users, N items, D days, K interest dimensions, n impressions of a chunk.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from learn_torchrec.arrays import AnyArray, Float32Array, Float64Array, Int64Array
from learn_torchrec.config import Days, configuration, require
from learn_torchrec.page_checksums import WRITTEN
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
VERSION = 1  # of the generator; another version makes other data from a seed
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
CLICKED, BOUGHT = "click", "buy"  # actions
REVENUE = "revenue"
_INTERESTS = 8  # K
_CANDIDATES = 6  # of the logging policy, per impression
_CHUNK = 500_000
_STYLES = ("plain", "classic", "compact", "premium", "recycled", "travel")
_SERVICES = ("free returns", "next-day delivery", "two-year warranty", "gift wrap")


@configuration
class MarketConfig:
    """The size of a market.

    Attributes:
        users: by the last day; 60 % are there on the first.
        items: by the last day; half are there on the first.
        days: of the log, from 2020-01-01 on.
        impressions: in total, the same number every day.
        brands: number of brands.
        drift: rotation of a user's interests per day, radians.
        seed: of everything random.
    """

    users: PositiveInt = 20_000
    items: PositiveInt = 5_000
    days: Days = 30
    impressions: int = 1_000_000
    brands: PositiveInt = 200
    drift: NonNegativeFloat = 0.05
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        require(self.impressions >= self.days, "impressions: at least one a day")


class Market:
    """A market's users and items; the log is generated on demand."""

    def __init__(self, config: MarketConfig) -> None:
        self.config = config
        random = self._random(0)
        subjects = _unit(random.standard_normal((len(TOPICS), _INTERESTS), np.float32))
        self.subject = random.integers(0, len(TOPICS), config.items)
        noise = random.standard_normal((config.items, _INTERESTS), np.float32)
        self.item_vectors = _unit(subjects[self.subject] + 0.3 * noise)
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
        self.users_by_day = _arrivals(config.users, days, config.days, first=0.6)
        self.items_by_day = _arrivals(config.items, days, config.days, first=0.5)

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

    def interests(self, day: int) -> Float32Array:
        """Return every user's interests on a day, unit vectors [U, K]."""
        angle = np.float32(self.config.drift * day)
        along = np.sum(self._heading * self._interests, axis=1, keepdims=True)
        side = _unit(self._heading - along * self._interests)
        return np.cos(angle) * self._interests + np.sin(angle) * side

    def days(self) -> Iterator[tuple[int, Iterator[pa.Table]]]:
        """Yield each day's number and its impressions in chunks."""
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
        self,
        day: int,
        times: Int64Array,
        interests: Float32Array,
        random: np.random.Generator,
    ) -> pa.Table:
        size = len(times)
        num_items = int(self.items_by_day[day])
        users = _draw(self.activity[: self.users_by_day[day]], size, random)
        candidates = _draw(self.appeal[:num_items], size * _CANDIDATES, random).reshape(
            size, _CANDIDATES
        )
        vectors = self.item_vectors[candidates]
        similarities = np.einsum("nk,nck->nc", interests[users], vectors)
        noise = random.standard_normal(similarities.shape, np.float32)
        rows = np.arange(size)
        best = (similarities + noise).argmax(axis=1)
        items, similarity = candidates[rows, best], similarities[rows, best]
        log_price = np.log(self.price[items])
        price_effect = self.thrift[users] * (log_price - 3.0)
        quality = self.quality[items]
        click = _sigmoid(-1.6 + 1.6 * similarity + 0.3 * quality)
        buy = _sigmoid(-1.2 + 2.2 * similarity + 0.5 * quality - price_effect)
        clicked = random.random(size) < click
        bought = clicked & (random.random(size) < buy)
        arrival_day = np.searchsorted(self.items_by_day, items, side="right")
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
                "item_age_days": (day - arrival_day).astype(np.float32),
                "log_price": log_price.astype(np.float32),
                "brand": self.brand[items],
                "subject": self.subject[items],
            }
        )

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, *stream])


def write_market(config: MarketConfig, directory: Path) -> Iterator[int]:
    """Write a market as a `parquet:` data set; yield the impressions so far, daily.

    Args:
        config: of the market.
        directory: an existing one; receives `items.parquet`, and a file per day in
            `interactions.parquet/` and `impressions.parquet/`.
    """
    market = Market(config)
    pq.write_table(market.items(), directory / ITEMS_FILE, **WRITTEN)
    log, shown = directory / INTERACTIONS_FILE, directory / IMPRESSIONS_FILE
    log.mkdir()
    shown.mkdir()
    done = 0
    for day, chunks in market.days():
        part = f"day-{day:05d}.parquet"
        first = next(chunks)
        with (
            pq.ParquetWriter(shown / part, first.schema, **WRITTEN) as impressions,
            pq.ParquetWriter(
                log / part, events_of(first).schema, **WRITTEN
            ) as interactions,
        ):
            for table in (first, *chunks):
                impressions.write_table(table)
                interactions.write_table(events_of(table))
                done += table.num_rows
        yield done


def events_of(impressions: pa.Table) -> pa.Table:
    """Return the interactions: each click and each purchase."""
    parts = []
    for code, column in enumerate((CLICK, LABEL)):
        rows = impressions.filter(pa.array(impressions[column].to_numpy() == 1))
        codes = np.full(rows.num_rows, code, np.int8)
        actions = pa.DictionaryArray.from_arrays(codes, [CLICKED, BOUGHT])
        events = rows.select([USER_ID, ITEM_ID, TIMESTAMP])
        parts.append(events.append_column(ACTION, actions))
    return pa.concat_tables(parts).sort_by([(TIMESTAMP, "ascending")])


def _arrivals(total: int, days: Int64Array, num_days: int, first: float) -> Int64Array:
    """Return how many of `total` have arrived by each day: `first`, then linearly."""
    share = first + (1 - first) * days / max(1, num_days - 1)
    return np.maximum(1, np.ceil(total * share)).astype(np.int64)


def _draw(weights: Float64Array, count: int, random: np.random.Generator) -> Int64Array:
    """Draw `count` indices with probabilities proportional to `weights`."""
    ends = np.cumsum(weights)
    drawn = np.searchsorted(ends, random.random(count) * ends[-1], side="right")
    return np.minimum(drawn, len(weights) - 1)


def _unit(vectors: Float32Array) -> Float32Array:
    scaled: Float32Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _sigmoid(logits: AnyArray) -> AnyArray:
    return 1 / (1 + np.exp(-logits))
