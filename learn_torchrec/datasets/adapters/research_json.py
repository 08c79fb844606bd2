"""The two JSON layouts that research code passes Amazon data around in.

`recformer:DIR`: `train.json`, `val.json` and `test.json` (a user number to its item
numbers, oldest first; validation and test hold the last two), `smap.json` (item id to
number) and `meta_data.json` (item id to title, brand, category).

`lcrec:DIR`: `NAME.inter.json` (a user to its items) and `NAME.item.json` (an item to
title, description, brand, categories).

Neither has times: an event's time is its position, 0 for the oldest, as in the
`sequences:` adapter, so that only `split.holdout=leave_one_out` makes sense of it.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.jsonl import read_json
from learn_torchrec.datasets.adapters.ratings import events
from learn_torchrec.datasets.adapters.sequence_file import INTERACTION
from learn_torchrec.datasets.adapters.text_fields import catalogue, item
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError
from learn_torchrec.schema import IMPRESSIONS_FILE, ITEMS_FILE

_Event = tuple[str, str, int, str]


class RecFormer(Dataset):
    """RecFormer's layout; ids are the products' own and the users' numbers."""

    def _sources(self, file: str) -> list[Location]:
        names = ["smap.json", "meta_data.json"]
        if file != ITEMS_FILE:
            names = ["train.json", "val.json", "test.json", "smap.json"]
        return [self.location / name for name in names]

    def _name(self, file: str) -> str:
        return str(self._sources(file)[0])

    def _read(self, file: str) -> pa.Table:
        _refuse_impressions(self.location, file)
        numbers = read_json(self.location / "smap.json")
        if file == ITEMS_FILE:
            source = self.location / "meta_data.json"
            texts = read_json(source)
            return catalogue((item(id_, texts.get(id_, {})) for id_ in numbers), source)
        ids = {int(number): id_ for id_, number in numbers.items()}
        parts = [read_json(source) for source in self._sources(file)[:3]]
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
    """LC-Rec's layout; ids are the numbers of its files, as text."""

    def _sources(self, file: str) -> list[Location]:
        suffix = ".item.json" if file == ITEMS_FILE else ".inter.json"
        found = self.location.files(suffix)
        if len(found) != 1:
            raise UserError(
                f"{self.location}: has {len(found)} *{suffix} files, one is needed; an "
                "lcrec: folder holds NAME.inter.json and NAME.item.json"
            )
        return found

    def _name(self, file: str) -> str:
        return str(self._sources(file)[0])

    def _read(self, file: str) -> pa.Table:
        _refuse_impressions(self.location, file)
        (source,) = self._sources(file)
        body = read_json(source)
        if file == ITEMS_FILE:
            return catalogue((item(id_, row) for id_, row in body.items()), source)
        return events(
            (
                (user, str(id_), position, INTERACTION)
                for user, ids in body.items()
                for position, id_ in enumerate(ids)
            )
        )


def _refuse_impressions(location: Location, file: str) -> None:
    if file == IMPRESSIONS_FILE:
        raise UserError(
            f"{location}: a data set of sequences has no impressions to rank; it "
            "serves encode-content, train-towers and evaluate-retrieval"
        )
