"""What data sets of ratings share: likes, and counts of earlier ratings."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Float32Array
from learn_torchrec.datasets import point_in_time
from learn_torchrec.schema import ACTION, ITEM_ID, LABEL, TIMESTAMP, USER_ID

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


def counters(ratings: pa.Table) -> dict[str, Float32Array]:
    """Return what a live ranker would know of each row's user and item.

    Args:
        ratings: [N], with `label` 0 or 1.

    Returns:
        `user_events` and `item_events`, the logarithm of the number of earlier rows,
        and `user_log_odds` and `item_log_odds` of their labels; float32 [N] each.
    """
    times = ratings[TIMESTAMP].to_numpy()
    labels = ratings[LABEL].to_numpy()
    result = {}
    for name, column in (("user", USER_ID), ("item", ITEM_ID)):
        events, positives = point_in_time.running_counts(
            ratings[column].to_numpy(), times, labels
        )
        result[f"{name}_events"] = np.log1p(events).astype(np.float32)
        # Log-odds, shrunk towards even odds: an id without events says nothing.
        odds = (positives + 1) / (events - positives + 1)
        result[f"{name}_log_odds"] = np.log(odds).astype(np.float32)
    return result


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
