"""The generated market, in memory (`market:users=300,seed=1` or `market:default`)."""

import dataclasses
import functools
import hashlib

import pyarrow as pa

from learn_torchrec.config import from_dict
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.column_map import parse_options
from learn_torchrec.datasets.generated.market import (
    VERSION,
    Market,
    MarketConfig,
    events_of,
)
from learn_torchrec.datasets.loading.location import Location


class MarketDataset(Dataset):
    """A market with these settings, as `learn-torchrec data market` writes it."""

    def __init__(self, settings: str) -> None:
        self.location = Location.of(f"market:{settings}")
        spec = f"market:{settings}"
        options = {} if settings == "default" else parse_options(settings, spec)
        self.market = Market(from_dict(MarketConfig, options, f"--data {spec}"))

    def sources(self, table: str) -> list[Location]:
        """Return nothing: tables follow from the settings."""
        return []

    def fingerprint(self, table: str) -> str:
        """Return a digest of the settings."""
        settings = dataclasses.astuple(self.market.config)
        return hashlib.sha256(f"{VERSION}/{table}/{settings}".encode()).hexdigest()

    def read_items(self) -> pa.Table:
        return self.market.items()

    def read_interactions(self) -> pa.Table:
        return pa.concat_tables(map(events_of, self._chunks))

    def read_impressions(self) -> pa.Table:
        return pa.concat_tables(self._chunks)

    @functools.cached_property
    def _chunks(self) -> list[pa.Table]:
        return [chunk for _, chunks in self.market.days() for chunk in chunks]
