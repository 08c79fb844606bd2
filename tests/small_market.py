"""A small market and its content, on disk."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.content.store import KIND, ContentStore, write_content_store
from learn_torchrec.publish import write_artifact


def write_small_store(directory: Path) -> ContentStore:
    """Content vectors of 40 items with ids 100 to 139; the first says odd or even."""
    vectors = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    vectors[:, 0] += np.where(np.arange(40) % 2, 3, -3)
    with write_artifact(directory, kind=KIND, config={}, inputs={}) as out:
        write_content_store(out, pa.array(range(100, 140)), vectors)
    return ContentStore.open(directory)


def write_small_market(directory: Path) -> Path:
    """A data set in our own schema: 40 items, 60 users, a log of 60 days."""
    random = np.random.default_rng(0)
    directory.mkdir()
    items = np.arange(100, 140)
    pq.write_table(
        pa.table(
            {
                "item_id": items,
                "title": [f"thing {item}" for item in items],
                "category": [("red", "blue")[item % 2] for item in items],
            }
        ),
        directory / "items.parquet",
    )
    count, day = 3000, 86_400
    users = random.integers(0, 60, count)
    # A quarter of the users arrive after half of the events.
    times = np.where(
        users < 45,
        random.integers(0, 60 * day, count),
        random.integers(42 * day, 60 * day, count),
    )
    chosen = random.choice(items, count)
    likes = random.random(count) < np.where(chosen % 2 == users % 2, 0.8, 0.2)
    order = np.argsort(times, kind="stable")
    users, times, chosen, likes = (x[order] for x in (users, times, chosen, likes))
    pq.write_table(
        pa.table(
            {
                "user_id": users,
                "item_id": chosen,
                "timestamp": times,
                "action": np.where(likes, "like", "skip"),
            }
        ),
        directory / "interactions.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "user_id": users,
                "item_id": chosen,
                "timestamp": times,
                "label": likes.astype(np.int64),
                "hour": (times // 3600 % 24).astype(np.float32),
            }
        ),
        directory / "impressions.parquet",
    )
    return directory
