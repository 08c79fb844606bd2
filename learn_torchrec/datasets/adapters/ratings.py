"""What data sets of ratings share: a rating of 4 or 5 is a like."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from learn_torchrec.schema import ACTION, ITEM_ID, TIMESTAMP, USER_ID

LIKE, DISLIKE = "like", "dislike"
POSITIVE_RATING = 4
_CHUNK = 1 << 16


def action_of(rating: float) -> str:
    """Return the action that a rating from 1 to 5 stands for."""
    return LIKE if rating >= POSITIVE_RATING else DISLIKE


def events(rows: Iterable[tuple[Any, Any, int, str]]) -> pa.Table:
    """Return interactions from (user, item, time, action), a chunk at a time.

    Args:
        rows: ids are strings or integers, the same kind in all rows.
    """
    batches, chunk = [], []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            batches.append(_table(chunk))
            chunk = []
    batches.append(_table(chunk) if chunk or not batches else batches.pop())
    return pa.concat_tables(batches)


def _table(rows: list[tuple[Any, Any, int, str]]) -> pa.Table:
    users, items, times, actions = zip(*rows, strict=True) if rows else ([],) * 4
    return pa.table(
        {
            USER_ID: pa.array(users),
            ITEM_ID: pa.array(items),
            TIMESTAMP: pa.array(times, pa.int64()),
            ACTION: pa.array(actions, pa.string()),
        }
    )
