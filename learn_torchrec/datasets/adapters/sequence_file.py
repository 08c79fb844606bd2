"""Sequences without times: the form in which research code passes data around.

A folder with two files: `sequences.txt`, one user a line, `user item item ...`, oldest
first; and `items.jsonl`, one JSON object an item, with `item_id` and text fields. A
field `categories` is the item's category. Fields that the prompt does not know are
kept: a template may name them.
"""

import json

import pyarrow as pa

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.item_texts import table_of
from learn_torchrec.datasets.adapters.text_files import text_lines
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError
from learn_torchrec.schema import (
    ACTION,
    CATEGORY,
    ITEM_ID,
    ITEMS_FILE,
    TIMESTAMP,
    USER_ID,
)

SEQUENCES_FILE = "sequences.txt"
CATALOGUE_FILE = "items.jsonl"
INTERACTION = "interaction"
_RENAMED = {"categories": CATEGORY}


class SequenceFile(Dataset):
    """Users' items in order; an event's time is its position, 0 for the oldest.

    Ids are strings. Positions order the events of one user and say nothing across
    users, so that only `split.holdout=leave_one_out` makes sense of them.
    """

    def sources(self, table: str) -> list[Location]:
        return [
            self.location / (CATALOGUE_FILE if table == ITEMS_FILE else SEQUENCES_FILE)
        ]

    def read_items(self) -> pa.Table:
        return _read_items(self.location / CATALOGUE_FILE)

    def read_interactions(self) -> pa.Table:
        return _read_sequences(self.location / SEQUENCES_FILE)


def _read_items(path: Location) -> pa.Table:
    rows = []
    for number, line in enumerate(text_lines(path), 1):
        try:
            row = json.loads(line)
            row[ITEM_ID] = str(row[ITEM_ID])
        except (json.JSONDecodeError, TypeError, KeyError):
            raise UserError(
                f"{path}: line {number} is no JSON object with {ITEM_ID}; write one "
                "item a line"
            ) from None
        rows.append({_RENAMED.get(name, name): row[name] for name in row})
    return table_of(rows, path)


def _read_sequences(path: Location) -> pa.Table:
    users: list[str] = []
    items: list[str] = []
    positions: list[int] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(text_lines(path), 1):
        user, *events = line.split() or [""]
        if not events:
            raise UserError(
                f"{path}: line {number} has no `user item item ...`; remove it"
            )
        if first_line.setdefault(user, number) != number:
            raise UserError(
                f"{path}: line {number} repeats user {user!r} of line "
                f"{first_line[user]}; put a user's events in one line"
            )
        users.extend([user] * len(events))
        items.extend(events)
        positions.extend(range(len(events)))
    return pa.table(
        {
            USER_ID: users,
            ITEM_ID: items,
            TIMESTAMP: pa.array(positions, pa.int64()),
            ACTION: [INTERACTION] * len(users),
        }
    )
