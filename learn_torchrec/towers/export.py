"""The vectors that the ranker reads: which ones, and their files."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from learn_torchrec.config import configuration
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.schema import (
    ITEM_ID,
    TIMESTAMP,
    USER_ID,
    VECTOR,
)

_PART_ROWS = 131_072  # users' vectors of a rank that are written together


@configuration
class ExportConfig:
    """Which vectors are exported.

    Attributes:
        snapshots: of a user, one vector after every `event`, or (`last`) one after
            the last event before split.towers_until, for the ranker's training, and
            one after the last before split.test_from, for its test.
    """

    snapshots: Literal["event", "last"] = "event"


def write_item_vectors(path: Path, item_ids: pa.Array, vectors: Tensor) -> None:
    """Write `item_id, vector` (float32 [D] lists)."""
    pq.write_table(pa.table({ITEM_ID: item_ids, VECTOR: _as_lists(vectors)}), path)


def write_user_vectors(
    path: Path,
    sequences: SequenceSet,
    events: NDArray[np.int64],
    vectors: Iterable[Tensor],
    dim: int,
) -> None:
    """Write `user_id, timestamp, vector`: the vector knows events up to `timestamp`.

    Args:
        path: of the file.
        sequences: users and events.
        events: int64 [n], the last event that each vector knows.
        vectors: float32 [., D] each, n together, in the order of `events`.
        dim: D.
    """
    schema = pa.schema(
        {
            USER_ID: sequences.user_ids.type,
            TIMESTAMP: pa.int64(),
            VECTOR: pa.list_(pa.float32(), dim),
        }
    )
    written = 0
    with pq.ParquetWriter(path, schema) as writer:
        for part in _joined(vectors, _PART_ROWS):
            known = events[written : written + len(part)]
            users = np.searchsorted(sequences.offsets, known, side="right") - 1
            columns = [
                sequences.user_ids.take(pa.array(users)),
                pa.array(sequences.times[known]),
                _as_lists(part),
            ]
            writer.write_table(pa.table(columns, schema=schema))
            written += len(part)


def _joined(parts: Iterable[Tensor], num_rows: int) -> Iterator[Tensor]:
    """Yield the parts' rows in their order, at least `num_rows` at a time."""
    waiting: list[Tensor] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= num_rows:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _as_lists(vectors: Tensor) -> pa.FixedSizeListArray:
    flat = pa.array(vectors.numpy().astype(np.float32, copy=False).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def snapshot_events(
    sequences: SequenceSet, config: ExportConfig, times: SplitTimes
) -> NDArray[np.int64]:
    """Return the events after which a user vector is exported, ascending [n].

    Args:
        sequences: all users and events.
        config: which snapshots.
        times: the moments that `last` refers to.
    """
    if config.snapshots == "event":
        return np.arange(len(sequences.items))
    users = np.repeat(np.arange(len(sequences)), sequences.lengths)
    chosen = []
    for moment in (times.towers_until, times.test_from):
        earlier = np.flatnonzero(sequences.times < moment)
        closes_user = np.r_[users[earlier][1:] != users[earlier][:-1], True]
        chosen.append(earlier[closes_user[: len(earlier)]])
    return np.unique(np.concatenate(chosen))
