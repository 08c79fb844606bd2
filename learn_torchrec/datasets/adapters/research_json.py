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
        source = self.location / "meta_data.json"
        rows = (_item(id_, texts.get(id_, {}), source) for id_ in numbers)
        return table_of(rows, source)

    def read_interactions(self) -> pa.Table:
        *sources, smap = self.sources(INTERACTIONS_FILE)
        parts = [_read_lists(source) for source in sources]
        ids: dict[int, str] = {}
        for id_, number in read_json(smap).items():
            if not isinstance(number, int) or isinstance(number, bool):
                raise UserError(
                    f"{smap}: item {id_} has the number {number!r:.40}, must be an "
                    "integer"
                )
            ids[number] = id_
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
        rows = read_json(source).items()
        return table_of((_item(id_, row, source) for id_, row in rows), source)

    def read_interactions(self) -> pa.Table:
        (source,) = self.sources(INTERACTIONS_FILE)
        return events(
            (user, str(id_), position, INTERACTION)
            for user, ids in _read_lists(source).items()
            for position, id_ in enumerate(ids)
        )


def _item(id_: str, texts: Any, source: Location) -> dict[str, Any]:
    if not isinstance(texts, dict):
        raise UserError(
            f"{source}: item {id_} is {texts!r:.40}, must be an object with its texts"
        )
    return item(id_, texts)


def _is_number_or_text(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _read_lists(source: Location) -> dict[str, list[int | str]]:
    """Return the items of each user.

    Raises:
        UserError: see `read_json`, or a user whose value is no list of items.
    """
    body = read_json(source)
    for user, items in body.items():
        if not isinstance(items, list) or not all(map(_is_number_or_text, items)):
            raise UserError(
                f"{source}: user {user} has {items!r:.40}, must be a list of items"
            )
    return body
