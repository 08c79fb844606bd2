"""Rows distributed over shards by user, and over the ranks that own the shards.

A bijective mix of the 64-bit user id decides a row's shard, so that all rows of a user
are in one shard, on one rank. String ids are numbered first.

N rows of a batch, S shards.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import (
    AnyArray,
    BoolArray,
    Float64Array,
    Int64Array,
    UInt64Array,
)
from learn_torchrec.evaluation.communicator import Communicator
from learn_torchrec.evaluation.pairs import Scores
from learn_torchrec.evaluation.probability import ProbabilitySums, probability_sums

_SHARD_BITS = 10
NUM_SHARDS = 1 << _SHARD_BITS
# Odd, so that multiplying by it mod 2**64 has an inverse (SplitMix64's increment).
_MIX = np.uint64(0x9E3779B97F4A7C15)


class StreamedRows(NamedTuple):
    """Checked rows of positive weight.

    Attributes:
        keys: uint64 [N] mixed user ids.
        is_positive: bool [N].
        scores: float32 or float64 [N].
        weights: float64 [N], or None for 1.
        clicks: float64 [N], or None.
        population_weights: float64 [N], or None; see `rows.Columns`.
        candidate_scores: [N] of a second score column, or None.
        cohorts: unsigned [N], a bit for each cohort that a row is in, or None.
    """

    keys: UInt64Array
    is_positive: BoolArray
    scores: Scores
    weights: Float64Array | None
    clicks: Float64Array | None
    population_weights: Float64Array | None = None
    candidate_scores: Scores | None = None
    cohorts: AnyArray | None = None

    def take(self, chosen: Any) -> "StreamedRows":
        """Return the rows chosen by an index array, a mask or a slice."""
        return StreamedRows._make(
            None if part is None else part[chosen] for part in self
        )


class ShardedRows(NamedTuple):
    """Rows ordered by shard; shard s holds `offsets[s]:offsets[s + 1]`."""

    rows: StreamedRows
    offsets: Int64Array


def mix_ids(ids: Int64Array) -> UInt64Array:
    """Map ids [N] one to one to keys whose high bits spread over the shards."""
    keys = ids.view(np.uint64) * _MIX
    keys ^= keys >> np.uint64(32)
    keys *= _MIX
    return keys


def prepare_shards(rows: StreamedRows) -> tuple[ShardedRows, ProbabilitySums]:
    """Return a batch's rows by shard, and their sums."""
    sampled = rows.population_weights
    weights = rows.weights if sampled is None else sampled
    sums = probability_sums(rows.is_positive, rows.scores, weights)
    return by_shard(rows._replace(population_weights=None)), sums


def by_shard(rows: StreamedRows) -> ShardedRows:
    """Return rows ordered by shard, in their old order within a shard."""
    shards = (rows.keys >> np.uint64(64 - _SHARD_BITS)).astype(np.uint16)
    order = np.argsort(shards, kind="stable")
    counts = np.bincount(shards, minlength=NUM_SHARDS)
    return ShardedRows(rows.take(order), np.concatenate(([0], np.cumsum(counts))))


def rows_of_shards(parts: Sequence[ShardedRows], first: int, stop: int) -> StreamedRows:
    """Return the rows of a range of shards, which are all rows of their users."""
    return concatenate(
        [
            part.rows.take(slice(part.offsets[first], part.offsets[stop]))
            for part in parts
        ]
    )


def number_users(keys: UInt64Array) -> tuple[Int64Array, int]:
    """Return each key's rank among the distinct keys, int64 [N], and their number."""
    encoded = pa.array(keys).dictionary_encode()
    distinct = encoded.dictionary.to_numpy()
    ranks = np.empty(len(distinct), np.int64)
    ranks[np.argsort(distinct)] = np.arange(len(distinct))
    return ranks[encoded.indices.to_numpy()], len(distinct)


def concatenate(parts: list[StreamedRows]) -> StreamedRows:
    """Return the rows of several parts, or none."""
    if not parts:
        scores = np.zeros(0, np.float32)
        return StreamedRows(np.zeros(0, np.uint64), scores > 0, scores, None, None)
    return StreamedRows._make(
        None if columns[0] is None else np.concatenate(columns)
        for columns in zip(*parts, strict=True)
    )


def owners_of(rows: StreamedRows, ranks: int) -> Int64Array:
    """Return the process rank that owns each row's shard, int64 [N]."""
    shards = (rows.keys >> np.uint64(64 - _SHARD_BITS)).astype(np.int64)
    owners: Int64Array = shards * ranks >> _SHARD_BITS
    return owners


def exchange(
    mine: StreamedRows, owners: Int64Array, communicator: Communicator
) -> StreamedRows:
    """Send every row to its owner; return the rows that this rank owns."""
    own = [None if column is None else column.dtype.str for column in mine]
    by_rank = communicator.gather(own if len(mine.keys) else None)
    order = np.argsort(owners, kind="stable")
    cuts = np.cumsum(np.bincount(owners, minlength=communicator.size))[:-1]
    received: list[Any] = []
    for number, column in enumerate(mine):
        dtypes = {dtypes[number] for dtypes in by_rank if dtypes is not None}
        if not dtypes or None in dtypes:  # no rows anywhere, or no such column
            received.append(column)
            continue
        dtype = np.result_type(*dtypes)
        if column is None or not len(column):
            column = np.zeros(0, dtype)
        parts = np.split(column.astype(dtype)[order], cuts)
        received.append(np.concatenate(communicator.exchange(parts)))
    return StreamedRows._make(received)
