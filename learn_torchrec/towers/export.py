"""Export of user and item vectors for the ranker."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import NonNegativeInt
from torch import Tensor

from learn_torchrec.arrays import Int64Array
from learn_torchrec.config import Width, configuration
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.errors import UserError
from learn_torchrec.matrix import create_shard, finite_rows
from learn_torchrec.page_checksums import WRITTEN
from learn_torchrec.schema import (
    ITEM_ID,
    ITEM_VECTORS_FILE,
    TIMESTAMP,
    USER_ID,
    USER_VECTORS_FILE,
    VECTOR,
)
from learn_torchrec.towers.earlier import KNOWN_FILE, known_events
from learn_torchrec.vector_table import ITEMS, USERS, write_index

AS_OF_IMPRESSIONS = "as-of-impressions"
_PART_ROWS = 131_072  # vectors written at a time


@configuration
class ExportConfig:
    """Which vectors are exported, and how.

    Attributes:
        snapshots: `event` exports a user vector after every event, of those of one
            second after the last; `as-of-impressions` only those of them that an
            impression at or after split.towers_until looks up, each user's latest
            before it; `daily` after the last event of each UTC day; `latest` after the
            last of the log (for serving); `last` after the last event before
            split.towers_until (for training the ranker) and after the last before
            split.test_from (for testing it).
        since: a moment, as a share of the log, an ISO date or unix seconds; of the
            events before it each user's last alone is exported, and of the impressions
            none counts: what those need who train on later impressions.
        parquet: also write Parquet, for other rankers.
        content_dim: of the items' content as the ranker reads it: the first principal
            components of the standardized content.
        neighbours: nearest texts that are found for each text.
    """

    snapshots: Literal["event", "as-of-impressions", "daily", "latest", "last"] = (
        "event"
    )
    since: str | None = None
    parquet: bool = True
    content_dim: Width = 64
    neighbours: NonNegativeInt = 50


def write_item_vectors(
    working_dir: Path,
    rank: int,
    item_ids: pa.Array,
    vectors: Iterable[Tensor],
    shape: tuple[int, int],
    parquet: bool,
) -> None:
    """Write a rank's item vectors: a shard of `items/`, and Parquet on request.

    The Parquet columns are `item_id, vector`. `vectors` are batches of float32 [., D],
    in the order of `item_ids`; `shape` is their number and D.

    Raises:
        UserError: a vector is not finite.
    """
    path = working_dir / ITEM_VECTORS_FILE if parquet else None
    _write_part(
        working_dir / ITEMS,
        path,
        rank,
        lambda rows: {ITEM_ID: item_ids[rows]},
        vectors,
        shape,
    )


def write_user_vectors(
    working_dir: Path,
    rank: int,
    sequences: SequenceSet,
    events: Int64Array,
    vectors: Iterable[Tensor],
    dim: int,
    parquet: bool,
) -> None:
    """Write a rank's user vectors: a shard of `users/`, and Parquet on request.

    The Parquet columns are `user_id, timestamp, vector`. A vector knows its user's
    events up to one of `events`, int64 [n], and `timestamp` is that event's. The rest
    is as in `write_item_vectors`.
    """

    def keys(part: slice) -> dict[str, pa.Array]:
        known = events[part]
        users = sequences.owners(known)
        return {
            USER_ID: sequences.user_ids.take(pa.array(users)),
            TIMESTAMP: pa.array(sequences.times[known].astype(np.int64)),
        }

    path = working_dir / USER_VECTORS_FILE if parquet else None
    shape = (len(events), dim)
    _write_part(working_dir / USERS, path, rank, keys, vectors, shape)


def write_vector_indexes(
    working_dir: Path, item_ids: pa.Array, sequences: SequenceSet, events: Int64Array
) -> None:
    """Write the index of all ranks' vectors, and what users' know; on one rank.

    `item_ids` and `events` are those of all ranks, in the order of the shards.
    """
    for side in (ITEMS, USERS):
        (working_dir / side).mkdir(exist_ok=True)
    write_index(working_dir / ITEMS, item_ids)
    write_index(
        working_dir / USERS,
        sequences.user_ids,
        offsets=np.searchsorted(events, sequences.offsets),
        times=sequences.times[events].astype(np.int64),
    )
    np.save(working_dir / USERS / KNOWN_FILE, known_events(sequences, events))


def _write_part(
    directory: Path,
    parquet: Path | None,
    rank: int,
    keys: Callable[[slice], dict[str, pa.Array]],
    vectors: Iterable[Tensor],
    shape: tuple[int, int],
) -> None:
    """Write vectors as a shard of `directory` and as a file of `parquet`, if given.

    `keys` returns the Parquet columns besides the vector for a slice of the rows.
    """
    directory.mkdir(exist_ok=True)
    shard = create_shard(directory, rank, shape)
    columns = keys(slice(0, 0)) | {VECTOR: _as_lists(torch.empty(0, shape[1]))}
    written = 0
    with _parquet_writer(parquet, rank, pa.table(columns).schema) as writer:
        for part in _joined(vectors, _PART_ROWS):
            rows = slice(written, written + len(part))
            shard[rows] = part.numpy()
            if not finite_rows(shard[rows]).all():
                raise UserError(
                    f"{directory.name}: the towers give vectors that are not finite; "
                    "retrain them with a lower towers.optimizer.learning_rate"
                )
            if writer is not None:
                columns = keys(rows) | {VECTOR: _as_lists(part)}
                writer.write_table(pa.table(columns))
            written = rows.stop
    shard.flush()


def _parquet_writer(
    directory: Path | None, rank: int, schema: pa.Schema
) -> contextlib.AbstractContextManager[pq.ParquetWriter | None]:
    """Return the writer of this rank's file of a Parquet data set, if there is one."""
    if directory is None:
        return contextlib.nullcontext()
    directory.mkdir(exist_ok=True)
    return pq.ParquetWriter(directory / f"part-{rank:05d}.parquet", schema, **WRITTEN)


def _joined(parts: Iterable[Tensor], num_rows: int) -> Iterator[Tensor]:
    """Join batches so that each but the last has at least `num_rows` rows."""
    pending: list[Tensor] = []
    for part in parts:
        pending.append(part)
        if sum(map(len, pending)) >= num_rows:
            yield torch.cat(pending)
            pending = []
    if pending:
        yield torch.cat(pending)


def _as_lists(vectors: Tensor) -> pa.FixedSizeListArray:
    flat = pa.array(vectors.numpy().astype(np.float32, copy=False).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
