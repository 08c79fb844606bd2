"""A small file of predictions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write(path: Path, gain: float, first_user: int = 0) -> dict[str, np.ndarray]:
    """Write 200 rows of ten users, ranked the better the higher `gain` is."""
    random = np.random.default_rng(0)
    labels = random.integers(2, size=200)
    table = {
        "user_id": random.integers(10, size=200) + first_user,
        "label": labels,
        "score": (random.random(200) + gain * labels) / (1 + gain),
        "user_activity": random.integers(1, 60, size=200),
    }
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), path)
    return table
