"""What data sets of ratings share: likes."""

import itertools
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.schema import ACTION, ITEM_ID, TIMESTAMP, USER_ID

LIKE, DISLIKE = "like", "dislike"
POSITIVE_RATING = 4
_CHUNK = 1 << 16


def action_of(rating: float) -> str:
    """Return the action of a rating from 1 to 5."""
    return LIKE if rating >= POSITIVE_RATING else DISLIKE


def likes(ratings: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return whether each rating is a like; null for null and NaN."""
    ratings = ratings.cast(pa.float64())
    known = pc.if_else(pc.is_nan(ratings), None, ratings)
    return pc.greater_equal(known, POSITIVE_RATING)


def events(rows: Iterable[tuple[Any, Any, int, str]]) -> pa.Table:
    """Return interactions from rows (user, item, time, action).

    Ids are strings or integers, the same type in all rows.
    """
    rows, chunks = iter(rows), []
    while chunk := list(itertools.islice(rows, _CHUNK)):
        chunks.append(_table(chunk))
    return pa.concat_tables(chunks or [_table([])])


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
