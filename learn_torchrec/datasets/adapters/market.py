"""The generated market in memory (`market:users=300,days=10,...`)."""

import dataclasses
import functools
import hashlib

import pyarrow as pa

from learn_torchrec.config import from_dict
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.generated.market import (
    VERSION,
    Market,
    MarketConfig,
    events_of,
)
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError


class MarketDataset(Dataset):
    """The market of some settings, as `learn-torchrec data market` would write it."""

    def __init__(self, settings: str) -> None:
        self.location = Location.of(f"market:{settings}")
        self.market = Market(_parse(settings))

    def sources(self, table: str) -> list[Location]:
        """Return nothing: tables follow from the settings."""
        del table
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


def _parse(settings: str) -> MarketConfig:
    """Read `users=300,seed=1`; `default` is the default market."""
    pairs = [] if settings == "default" else settings.split(",")
    known = [field.name for field in dataclasses.fields(MarketConfig)]
    values = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or name not in known:
            raise UserError(
                f"--data market:{settings}: {pair!r} is no setting; write "
                f"NAME=VALUE,... with names of: {', '.join(known)}"
            )
        values[name] = value
    return from_dict(MarketConfig, values, f"--data market:{settings}")
