"""Exact metrics of rows that come in batches, on all cores and on many ranks.

Users are spread over shards by a bijective mix of their 64-bit ids, so that a shard's
rows fit a core's cache and every user lies whole in one shard, on one rank. What is
kept for a row is its id, score and label. The pooled AUC needs no users: positives
and negatives are sorted by score, and counted range by range.

Users come out in the order of their mixed ids, whatever the order of the rows, their
split over batches and the number of ranks; without weights the metrics are therefore
the same to the last bit. Weights and probabilities are summed in the rows' order.

N rows of a batch, S shards, U users.
"""

import math
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.arrays import (
    BoolArray,
    Column,
    Float64Array,
    Int64Array,
    as_id_array,
)
from learn_torchrec.evaluation.auc import (
    RankingMetrics,
    ScoredRows,
    Totals,
    UserPairs,
    check_columns,
    count_users,
    metrics_of,
)
from learn_torchrec.evaluation.communicator import OneRank, Ranks
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.pairs import GroupPairs, Scores, count_pairs
from learn_torchrec.evaluation.probability import ProbabilitySums, probability_sums
from learn_torchrec.schema import CLICK, USER_ID, WEIGHT

_SHARD_BITS = 10
_NUM_SHARDS = 1 << _SHARD_BITS
_TASK_ROWS = 1 << 17  # rows that one core sorts at a time: some MB, within its cache
_RANGE_ROWS = 1 << 22  # rows of one score range where whole rows must be sorted
_EDGE_SAMPLES = 4096
# Odd, so that multiplying by it mod 2**64 has an inverse (SplitMix64's increment).
_MIX = np.uint64(0x9E3779B97F4A7C15)


class _Rows(NamedTuple):
    """Checked rows of positive weight.

    Attributes:
        keys: uint64 [N] mixed user ids.
        scores: float32 or float64 [N].
        is_positive: bool [N].
        weights: float64 [N], or None for 1.
        clicks: float64 [N], or None.
    """

    keys: npt.NDArray[np.uint64]
    scores: Scores
    is_positive: BoolArray
    weights: Float64Array | None
    clicks: Float64Array | None

    def take(self, chosen: Any) -> "_Rows":
        """Return the rows that an index array, a mask or a slice chooses."""
        return _Rows._make(None if part is None else part[chosen] for part in self)


class _Part(NamedTuple):
    """Rows ordered by shard; shard s holds `offsets[s]:offsets[s + 1]`."""

    rows: _Rows
    offsets: Int64Array


class MetricsStream:
    """Takes rows in batches, then returns their metrics.

    Args:
        convention: which users count, by what weight, and who wins a tie.
        threads: cores to use, by default all.
        ranks: the processes that hold the rows together; each adds its own.

    Example:
        >>> stream = MetricsStream()
        >>> stream.add([1, 1], [1, 0], [0.9, 0.2])
        >>> stream.add([2, 2], [1, 0], [0.5, 0.5])
        >>> stream.finish().uauc
        0.75
    """

    def __init__(
        self,
        convention: Convention = PAPER,
        threads: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if convention.ties == "first":
            raise UserError(
                "ties=first: needs all rows in their order; choose another rule for "
                "ties, or call evaluate_auc"
            )
        self._convention = convention
        self._ranks = ranks or OneRank()
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads)
        self._pending: deque[Future[tuple[_Part, ProbabilitySums]]] = deque()
        self._parts: list[_Part] = []
        self._sums = ProbabilitySums()
        # String ids get their codes when all are known.
        self._strings: list[tuple[pa.DictionaryArray, _Rows]] = []
        self._first_row = 0
        self._optional: tuple[bool, bool] | None = None

    def add(
        self,
        user_ids: Column,
        labels: Column,
        scores: Column,
        weights: Column | None = None,
        clicks: Column | None = None,
        *,
        first_row: int | None = None,
    ) -> None:
        """Take a batch; the other arguments are those of `auc.evaluate_auc`.

        Args:
            user_ids: as the next four, see there.
            labels: [N].
            scores: [N].
            weights: [N], or None.
            clicks: [N], or None.
            first_row: number of the first row, for messages; None counts on from the
                batch before.

        Raises:
            UserError: see `auc.evaluate_auc`; weights or clicks in some batches only.
        """
        given = weights is not None, clicks is not None
        if self._optional not in (None, given):
            raise UserError(
                f"{WEIGHT}, {CLICK}: in some batches only; give them in all or in none"
            )
        self._optional = given
        ids = as_id_array(user_ids, USER_ID)
        first = self._first_row if first_row is None else first_row
        columns = check_columns(
            len(ids), labels, scores, weights, clicks, first_row=first
        )
        self._first_row = first + len(ids)
        if columns.kept is not None:
            ids = ids.filter(columns.kept)
        rows = _Rows(
            keys=np.zeros(0, np.uint64),
            scores=columns.scores,
            is_positive=columns.is_positive,
            weights=columns.weights,
            clicks=columns.clicks,
        )
        if pa.types.is_integer(ids.type):
            keys = _mix(ids.to_numpy(zero_copy_only=False))
            self._submit(rows._replace(keys=keys))
        else:
            self._strings.append((ids.dictionary_encode(), rows))

    def finish(self) -> RankingMetrics:
        """Return the metrics of all rows of all ranks, on every rank."""
        return metrics_of(self.totals(), self._convention)

    def totals(self) -> Totals:
        """Return the sums behind the metrics, for several conventions at once."""
        self._encode_strings()
        while self._pending:
            self._collect()
        with self._pool:
            self._move_to_owners()
            users = self._count_users()
            pooled = self._count_pooled()
        sums = ProbabilitySums.total(self._ranks.gather(self._sums))
        return Totals(users, pooled, sums)

    def _submit(self, rows: _Rows) -> None:
        self._pending.append(self._pool.submit(_prepare, rows))
        if len(self._pending) > 2 * self._threads:
            self._collect()

    def _collect(self) -> None:
        part, sums = self._pending.popleft().result()
        self._parts.append(part)
        self._sums = self._sums + sums

    def _encode_strings(self) -> None:
        """Number the distinct strings of all ranks alike, and submit their rows."""
        seen = [encoded.dictionary for encoded, _ in self._strings]
        mine = pa.chunked_array(seen, pa.large_string()).unique()
        everyones = self._ranks.gather(mine)
        known = pa.chunked_array(everyones, pa.large_string()).unique()
        known = known.take(pc.sort_indices(known))  # whatever the order of the rows
        for encoded, rows in self._strings:
            codes = pc.index_in(encoded.dictionary, known).to_numpy()
            keys = _mix(codes[encoded.indices.to_numpy()].astype(np.int64))
            self._submit(rows._replace(keys=keys))
        self._strings = []

    def _move_to_owners(self) -> None:
        """Move every row to the rank that owns its user's shard."""
        ranks = self._ranks
        if ranks.size > 1:
            mine = _concatenate([part.rows for part in self._parts])
            shards = mine.keys >> np.uint64(64 - _SHARD_BITS)
            owners = shards.astype(np.int64) * ranks.size >> _SHARD_BITS
            self._parts = [_by_shard(_exchange(mine, owners, ranks))]

    def _count_users(self) -> UserPairs:
        """Return the pairs of all users of all ranks, in the order of their keys."""
        num_rows = sum(len(part.rows.keys) for part in self._parts)
        step = max(1, _NUM_SHARDS * _TASK_ROWS // max(num_rows, 1))
        firsts = range(0, _NUM_SHARDS, step)

        def count(first: int) -> UserPairs:
            return self._count_shards(first, min(first + step, _NUM_SHARDS))

        everyones = self._ranks.gather(_join(list(self._pool.map(count, firsts))))
        return _join(everyones)

    def _count_shards(self, first: int, stop: int) -> UserPairs:
        rows = _concatenate(
            [
                part.rows.take(slice(part.offsets[first], part.offsets[stop]))
                for part in self._parts
            ]
        )
        users, num_users = _number(rows.keys)
        scored = ScoredRows(
            users, num_users, rows.is_positive, rows.scores, rows.weights, rows.clicks
        )
        return count_users(scored, self._convention)

    def _count_pooled(self) -> GroupPairs:
        """Return the pairs of all rows of all ranks: every rank a range of scores."""
        parts = [part.rows for part in self._parts]
        self._parts = []
        if self._ranks.size > 1:
            mine = _concatenate(parts)
            edges = self._edges([mine], self._ranks.size)
            owners = np.searchsorted(edges, mine.scores, side="right")
            parts = [_exchange(mine, owners, self._ranks)]
        if any(part.weights is not None for part in parts):
            counts = self._count_weighted_ranges(parts)
        else:
            counts = self._count_ranges(parts)
        return _stack(self._ranks.gather(_stack(counts)))

    def _count_ranges(self, parts: list[_Rows]) -> list[GroupPairs]:
        """Sort the scores of each class, then count range by range."""
        negatives, positives = (
            np.concatenate(
                [np.zeros(0, np.float32)]
                + [part.scores[part.is_positive == is_positive] for part in parts]
            )
            for is_positive in (False, True)
        )
        parts.clear()
        list(self._pool.map(lambda scores: scores.sort(), (negatives, positives)))
        starts = range(0, len(positives), _TASK_ROWS)
        ties = self._convention.ties

        def count(start: int) -> float:
            mine = positives[start : start + _TASK_ROWS]
            first = np.searchsorted(negatives, mine[0], side="left")
            stop = np.searchsorted(negatives, mine[-1], side="right")
            rivals = negatives[first:stop]
            lower, upper = (
                int(np.searchsorted(rivals, mine, side=side).sum())
                for side in ("left", "right")
            )
            below = {"half": (lower + upper) / 2, "positive": upper, "negative": lower}
            return float(first) * len(mine) + below[ties]

        won = math.fsum(self._pool.map(count, starts))
        return [_pairs(won, len(positives), len(negatives))]

    def _count_weighted_ranges(self, parts: list[_Rows]) -> list[GroupPairs]:
        """Gather the rows of one range of scores at a time, and count them."""
        num_rows = sum(len(part.scores) for part in parts)
        edges = self._edges(parts, num_rows // _RANGE_ROWS + 1, among_ranks=False)
        lows, highs = [-math.inf, *edges], [*edges, math.inf]

        def count(low: float, high: float) -> GroupPairs:
            rows = _concatenate(
                [
                    part.take((part.scores >= low) & (part.scores < high))
                    for part in parts
                ]
            )
            everyone = np.zeros(len(rows.scores), np.int64)
            columns = (rows.is_positive, rows.scores, rows.weights)
            return count_pairs(everyone, 1, *columns, self._convention.ties)

        return list(self._pool.map(count, lows, highs))

    def _edges(
        self, parts: list[_Rows], num_ranges: int, among_ranks: bool = True
    ) -> Scores:
        """Return scores [num_ranges - 1] that divide the rows about evenly."""
        samples = [
            part.scores[:: len(part.scores) // _EDGE_SAMPLES + 1] for part in parts
        ]
        sample = np.concatenate([np.zeros(0), *samples])
        if among_ranks:
            sample = np.concatenate(self._ranks.gather(sample))
        if not len(sample):
            return np.zeros(num_ranges - 1)
        return np.quantile(sample, np.arange(1, num_ranges) / num_ranges)


def _mix(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return other ids [N], one to one, whose high bits spread over the shards."""
    keys = ids.view(np.uint64) * _MIX
    keys ^= keys >> np.uint64(32)
    keys *= _MIX
    return keys


def _prepare(rows: _Rows) -> tuple[_Part, ProbabilitySums]:
    sums = probability_sums(rows.is_positive, rows.scores, rows.weights)
    return _by_shard(rows), sums


def _by_shard(rows: _Rows) -> _Part:
    shards = (rows.keys >> np.uint64(64 - _SHARD_BITS)).astype(np.uint16)
    order = np.argsort(shards, kind="stable")
    counts = np.bincount(shards, minlength=_NUM_SHARDS)
    return _Part(rows.take(order), np.concatenate(([0], np.cumsum(counts))))


def _number(keys: npt.NDArray[np.uint64]) -> tuple[Int64Array, int]:
    """Return int64 [N] in the order of the keys, and how many are distinct."""
    encoded = pa.array(keys).dictionary_encode()
    distinct = encoded.dictionary.to_numpy()
    ranks = np.empty(len(distinct), np.int64)
    ranks[np.argsort(distinct)] = np.arange(len(distinct))
    return ranks[encoded.indices.to_numpy()], len(distinct)


def _concatenate(parts: list[_Rows]) -> _Rows:
    """Return the rows of several parts, or none."""
    if not parts:
        no_scores = np.zeros(0, np.float32)
        return _Rows(np.zeros(0, np.uint64), no_scores, no_scores > 0, None, None)
    return _Rows._make(
        None if columns[0] is None else np.concatenate(columns)
        for columns in zip(*parts, strict=True)
    )


def _exchange(mine: _Rows, owners: Int64Array, ranks: Ranks) -> _Rows:
    """Send every row to its owner; return the rows this rank owns."""
    kinds = [
        kind
        for kind in ranks.gather(_kinds(mine) if len(mine.keys) else None)
        if kind is not None
    ]
    order = np.argsort(owners, kind="stable")
    cuts = np.cumsum(np.bincount(owners, minlength=ranks.size))[:-1]
    received: list[Any] = []
    for number, column in enumerate(mine):
        dtypes = {kind[number] for kind in kinds}
        if not dtypes or None in dtypes:  # no rows anywhere, or no such column
            received.append(column)
            continue
        dtype = np.result_type(*dtypes)
        if column is None or not len(column):
            column = np.zeros(0, dtype)
        parts = np.split(column.astype(dtype)[order], cuts)
        received.append(np.concatenate(ranks.exchange(parts)))
    return _Rows._make(received)


def _kinds(rows: _Rows) -> list[str | None]:
    return [None if column is None else column.dtype.str for column in rows]


def _join(parts: Sequence[UserPairs]) -> UserPairs:
    return UserPairs._make(
        None if columns[0] is None else np.concatenate(columns)
        for columns in zip(*parts, strict=True)
    )


def _pairs(won: float, positives: float, negatives: float) -> GroupPairs:
    return GroupPairs(*(np.array([float(x)]) for x in (won, positives, negatives)))


def _stack(ranges: Sequence[GroupPairs]) -> GroupPairs:
    """Return the pairs of ranges of scores, lowest first, taken together."""
    won = positives = negatives = 0.0
    for one in ranges:
        won += float(one.won.sum()) + float(one.positives.sum()) * negatives
        positives += float(one.positives.sum())
        negatives += float(one.negatives.sum())
    return _pairs(won, positives, negatives)
