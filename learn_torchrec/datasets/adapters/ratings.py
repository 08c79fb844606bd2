"""What data sets of ratings share: likes, and counts of earlier ratings."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from learn_torchrec.datasets import point_in_time
from learn_torchrec.schema import ACTION, ITEM_ID, LABEL, TIMESTAMP, USER_ID

LIKE, DISLIKE = "like", "dislike"
POSITIVE_RATING = 4
_CHUNK = 1 << 16


def action_of(rating: float) -> str:
    """Return the action of a rating from 1 to 5."""
    return LIKE if rating >= POSITIVE_RATING else DISLIKE


def events(rows: Iterable[tuple[Any, Any, int, str]]) -> pa.Table:
    """Return interactions from rows (user, item, time, action).

    Ids are strings or integers, the same type in all rows.
    """
    rows, chunks = iter(rows), []
    while chunk := list(itertools.islice(rows, _CHUNK)):
        chunks.append(_table(chunk))
    return pa.concat_tables(chunks or [_table([])])


def add_counters(ratings: pa.Table) -> pa.Table:
    """Return ratings with point-in-time counters of each row's user and item.

    `user_events` and `item_events` are log(1 + earlier rows), and `user_log_odds` and
    `item_log_odds` those of the earlier rows' labels (0 or 1); float32 [N] each.
    """
    times = ratings[TIMESTAMP].to_numpy()
    labels = ratings[LABEL].to_numpy()
    for name, column in (("user", USER_ID), ("item", ITEM_ID)):
        events, positives = point_in_time.running_counts(
            ratings[column].to_numpy(), times, labels
        )
        counts = np.log1p(events).astype(np.float32)
        # Add-one smoothing: an id without events has even odds.
        odds = (positives + 1) / (events - positives + 1)
        log_odds = np.log(odds).astype(np.float32)
        ratings = ratings.append_column(f"{name}_events", pa.array(counts))
        ratings = ratings.append_column(f"{name}_log_odds", pa.array(log_odds))
    return ratings


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
