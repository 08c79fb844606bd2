"""Sequences without times, as research code has them (`sequences:DIR`).

A folder with two files: `sequences.txt`, one user a line, `user item item ...`, oldest
first; and `items.jsonl`, one JSON object per item, with `item_id` and text fields. A
field `categories` is the item's category. Fields that the prompt does not use are
kept: a template may name them.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.item_texts import table_of
from learn_torchrec.datasets.adapters.ratings import events
from learn_torchrec.datasets.adapters.text_files import text_lines
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError
from learn_torchrec.schema import CATEGORY, INTERACTIONS_FILE, ITEM_ID, ITEMS_FILE
from learn_torchrec.text import parse_json

INTERACTION = "interaction"
_RENAMED = {"categories": CATEGORY}


class SequenceFile(Dataset):
    """Users' items in order; an event's time is its position, 0 for the oldest.

    Ids are strings. Positions are not comparable across users, so that only
    `split.holdout=leave_one_out` makes sense of them.
    """

    def sources(self, table: str) -> list[Location]:
        name = "items.jsonl" if table == ITEMS_FILE else "sequences.txt"
        return [self.location / name]

    def read_items(self) -> pa.Table:
        (source,) = self.sources(ITEMS_FILE)
        rows = []
        for number, line in enumerate(text_lines(source), 1):
            try:
                row = parse_json(line)
                row[ITEM_ID] = _as_id(row[ITEM_ID])
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"{source}: line {number} is not a JSON object with {ITEM_ID}, a "
                    "text or an integer; write one item per line"
                ) from None
            rows.append({_RENAMED.get(name, name): row[name] for name in row})
        return table_of(rows, source)

    def read_interactions(self) -> pa.Table:
        (source,) = self.sources(INTERACTIONS_FILE)
        return events(_events(source))


def _as_id(value: Any) -> str:
    """Return an item's id of JSON as a text.

    Raises:
        ValueError: it is neither a text nor an integer.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r:.40} is no id")
    return str(value)


def _events(path: Location) -> Iterator[tuple[str, str, int, str]]:
    first_line: dict[str, int] = {}
    for number, line in enumerate(text_lines(path), 1):
        user, *items = line.split() or [""]
        if not items:
            raise UserError(
                f"{path}: line {number} has no items; write `user item item ...`, or "
                "remove it"
            )
        if first_line.setdefault(user, number) != number:
            raise UserError(
                f"{path}: line {number} repeats user {user!r} of line "
                f"{first_line[user]}; put a user's events on one line"
            )
        for position, item in enumerate(items):
            yield user, item, position, INTERACTION
