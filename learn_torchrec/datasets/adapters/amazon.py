"""Amazon reviews in their published form: 2014, 2018 and 2023 (`amazon:DIR`).

A folder with a review file and a metadata file (`meta` in its name), both JSONL,
perhaps gzipped. A review of 4 or 5 stars is a like, any other a dislike. A product
without metadata has its id as its title. Repeated reviews of a product by a user at the
same time are kept. Data: research use.

| | user | item | time | metadata |
|---|---|---|---|---|
| 2014, 2018 | reviewerID | asin | unixReviewTime | asin, title, brand, categor(ies) |
| 2023 | user_id | parent_asin | timestamp, milliseconds | parent_asin, store, ... |
"""

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.item_texts import item, table_of
from learn_torchrec.datasets.adapters.ratings import action_of, events
from learn_torchrec.datasets.adapters.text_files import read_jsonl
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError
from learn_torchrec.schema import INTERACTIONS_FILE, ITEM_ID, ITEMS_FILE, TITLE

_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_MILLISECONDS = 10**11  # larger times are in milliseconds: as seconds, year 5138


class Amazon(Dataset):
    """Reviews and products of one category or several."""

    def sources(self, table: str) -> list[Location]:
        files = self.location.files(*_SUFFIXES)
        meta = [f for f in files if "meta" in f.file_name.lower()]
        reviews = [f for f in files if f not in meta]
        for what, found in (("review", reviews), ("metadata", meta)):
            if not found:
                raise UserError(
                    f"{self.location}: has no {what} file; an amazon: folder holds "
                    "reviews (NAME.json) and metadata (meta_NAME.json), perhaps as .gz"
                )
        return meta if table == ITEMS_FILE else reviews

    def read_interactions(self) -> pa.Table:
        return events(
            _review(row, number, source)
            for source in self.sources(INTERACTIONS_FILE)
            for number, row in enumerate(read_jsonl(source), 1)
        )

    def read_items(self) -> pa.Table:
        products: dict[str, dict[str, Any]] = {}
        for source in self.sources(ITEMS_FILE):
            for number, row in enumerate(read_jsonl(source), 1):
                product = _value(row, ("parent_asin", "asin"), number, source)
                products.setdefault(product, item(product, row))
        for id_ in dict.fromkeys(self.read(INTERACTIONS_FILE)[ITEM_ID].to_pylist()):
            products.setdefault(id_, {ITEM_ID: id_})
        for id_, row in products.items():
            row[TITLE] = row.get(TITLE) or id_
        return table_of(products.values(), self.sources(ITEMS_FILE)[0])


def _review(
    row: Mapping[str, Any], number: int, source: Location
) -> tuple[str, str, int, str]:
    user = _value(row, ("user_id", "reviewerID"), number, source)
    product = _value(row, ("parent_asin", "asin"), number, source)
    time = _value(row, ("timestamp", "unixReviewTime"), number, source)
    stars = _value(row, ("rating", "overall"), number, source)
    try:
        seconds, rating = int(time), float(stars)
        if not math.isfinite(rating):
            raise ValueError
        return (
            str(user),
            str(product),
            seconds // 1000 if seconds > _MILLISECONDS else seconds,
            action_of(rating),
        )
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{source}: line {number} has time {time!r} and rating {stars!r}; both "
            "must be numbers"
        ) from None


def _value(
    row: Mapping[str, Any], names: tuple[str, ...], number: int, source: Location
) -> Any:
    for name in names:
        value = row.get(name)
        if isinstance(value, list | dict | bool):
            raise UserError(
                f"{source}: line {number}: {name} is a {type(value).__name__}, must be "
                "a text or a number"
            )
        if value is not None:
            return value
    raise UserError(
        f"{source}: line {number} has no {' or '.join(names)}; it has: "
        f"{', '.join(list(row)[:12])}"
    )
