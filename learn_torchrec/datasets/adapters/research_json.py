"""Amazon data in the two JSON layouts of research code.

`recformer:DIR`: `train.json`, `val.json` and `test.json` (a user number to its item
numbers, oldest first; validation and test hold the last two), `smap.json` (item id to
number) and `meta_data.json` (item id to title, brand, category).

`lcrec:DIR`: `NAME.inter.json` (a user to its items) and `NAME.item.json` (an item to
title, description, brand, categories).

Neither has times: an event's time is its position, 0 for the oldest, as in the
`sequences:` adapter. Only `split.holdout=leave_one_out` makes sense of such times.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.item_texts import item, table_of
from learn_torchrec.datasets.adapters.ratings import events
from learn_torchrec.datasets.adapters.sequence_file import INTERACTION
from learn_torchrec.datasets.adapters.text_files import read_json
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError
from learn_torchrec.schema import INTERACTIONS_FILE, ITEMS_FILE

_Event = tuple[str, str, int, str]


class RecFormer(Dataset):
    """RecFormer's layout: items by product id, users by number."""

    def sources(self, table: str) -> list[Location]:
        names = ["smap.json", "meta_data.json"]
        if table != ITEMS_FILE:
            names = ["train.json", "val.json", "test.json", "smap.json"]
        return [self.location / name for name in names]

    def read_items(self) -> pa.Table:
        numbers, texts = map(read_json, self.sources(ITEMS_FILE))
        rows = (item(id_, texts.get(id_, {})) for id_ in numbers)
        return table_of(rows, self.location / "meta_data.json")

    def read_interactions(self) -> pa.Table:
        *parts, numbers = map(read_json, self.sources(INTERACTIONS_FILE))
        ids = {int(number): id_ for id_, number in numbers.items()}
        return events(self._events(parts, ids))

    def _events(
        self, parts: list[dict[str, Any]], ids: dict[int, str]
    ) -> Iterator[_Event]:
        for user in dict.fromkeys(user for part in parts for user in part):
            numbers = [n for part in parts for n in part.get(user, [])]
            for position, number in enumerate(numbers):
                if number not in ids:
                    raise UserError(
                        f"{self.location}: user {user} has item number {number}, which "
                        "smap.json does not have"
                    )
                yield user, ids[number], position, INTERACTION


class LcRec(Dataset):
    """LC-Rec's layout; ids are its numbers, as strings."""

    def sources(self, table: str) -> list[Location]:
        suffix = ".item.json" if table == ITEMS_FILE else ".inter.json"
        fix = "an lcrec: folder holds NAME.inter.json and NAME.item.json"
        return [self.only_file(suffix, fix)]

    def read_items(self) -> pa.Table:
        (source,) = self.sources(ITEMS_FILE)
        return table_of((item(i, row) for i, row in read_json(source).items()), source)

    def read_interactions(self) -> pa.Table:
        (source,) = self.sources(INTERACTIONS_FILE)
        return events(
            (user, str(id_), position, INTERACTION)
            for user, ids in read_json(source).items()
            for position, id_ in enumerate(ids)
        )
