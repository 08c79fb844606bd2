"""Exact metrics of rows that arrive in batches, on all cores and on many ranks.

Users are distributed over shards by a bijective mix of their 64-bit ids, so that a
shard's rows fit a core's cache and all rows of a user are in one shard, on one rank. Of
a row only id, score and label are kept. The pooled AUC needs no users: positives and
negatives are sorted by score and counted range by range.

Users are ordered by their mixed ids, whatever the order of the rows, the batches and
the number of ranks, so without weights the metrics are the same to the last bit.
Weights and probabilities are summed in the order of the rows.

N rows of a batch, S shards, U users.
"""

import math
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import Column
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import (
    DEFAULT_METRICS,
    RankingMetrics,
    metrics_of,
    user_statistics,
)
from learn_torchrec.evaluation.communicator import Communicator, LocalCommunicator
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.metric import Metric, Totals, UserStatistic
from learn_torchrec.evaluation.pairs import GroupPairs, Scores, count_pairs
from learn_torchrec.evaluation.probability import ProbabilitySums
from learn_torchrec.evaluation.rows import ScoredRows, check_columns
from learn_torchrec.evaluation.shards import (
    NUM_SHARDS,
    ShardedRows,
    StreamedRows,
    by_shard,
    concatenate,
    exchange,
    mix_ids,
    number_users,
    owners_of,
    prepare_shards,
)
from learn_torchrec.ids import as_ids
from learn_torchrec.schema import CLICK, LABEL, SCORE, USER_ID, WEIGHT

_TASK_ROWS = 1 << 17  # rows that one core sorts at a time: a few MB, within its cache
_RANGE_ROWS = 1 << 22  # rows of one score range where whole rows are sorted
_EDGE_SAMPLES = 4096


class MetricsStream:
    """Takes rows in batches, then returns their metrics.

    Args:
        convention: which users count, by what weight, and who wins a tie.
        threads: cores to use, by default all.
        communicator: of the processes that together hold the rows; each adds its own.
        metrics: as for `auc.evaluate_auc`.
        names: of the columns of labels and of scores, for messages.

    Example:
        >>> stream = MetricsStream()
        >>> stream.add([1, 1], [1, 0], [0.9, 0.2])
        >>> stream.add([2, 2], [1, 0], [0.5, 0.5])
        >>> stream.finish()["uauc"]
        0.75
    """

    def __init__(
        self,
        convention: Convention = PAPER,
        threads: int | None = None,
        communicator: Communicator | None = None,
        *,
        metrics: Sequence[Metric] = DEFAULT_METRICS,
        names: tuple[str, str] = (LABEL, SCORE),
    ) -> None:
        if convention.ties == "first":
            raise UserError(
                "ties=first: needs all rows in their order; choose another rule for "
                "ties, or do not stream"
            )
        self._convention, self._metrics, self._names = convention, metrics, names
        self._communicator = communicator or LocalCommunicator()
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads)
        self._pending: deque[Future[tuple[ShardedRows, ProbabilitySums]]] = deque()
        self._parts: list[ShardedRows] = []
        self._sums = ProbabilitySums()
        # String ids are numbered when all are known.
        self._strings: list[tuple[pa.DictionaryArray, StreamedRows]] = []
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
        sampling_rates: Column | None = None,
        first_row: int | None = None,
    ) -> None:
        """Take a batch of the columns of `auc.evaluate_auc`.

        `first_row` is the first row's number, for messages; None continues from the
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
        ids = as_ids(user_ids, USER_ID)
        first = self._first_row if first_row is None else first_row
        columns = check_columns(
            *(len(ids), labels, scores, weights, clicks, first, self._names),
            sampling_rates=sampling_rates,
        )
        self._first_row = first + len(ids)
        if columns.kept is not None:
            ids = ids.filter(columns.kept)
        rows = StreamedRows(np.zeros(0, np.uint64), *columns[:-1])
        if pa.types.is_integer(ids.type):
            keys = mix_ids(ids.to_numpy(zero_copy_only=False))
            self._submit(rows._replace(keys=keys))
        else:
            self._strings.append((ids.dictionary_encode(), rows))

    def finish(self) -> RankingMetrics:
        """Return the metrics of all rows of all ranks, on every rank."""
        return metrics_of(self.totals(), self._convention, self._metrics)

    def totals(self) -> Totals:
        """Return the statistics of all rows of all ranks, on every rank."""
        self._encode_strings()
        while self._pending:
            self._collect()
        with self._pool:
            self._move_to_owners()
            users = self._count_users()
            pooled = self._count_pooled()
        sums = sum(self._communicator.gather(self._sums), ProbabilitySums())
        return Totals(users, pooled, sums)

    def _submit(self, rows: StreamedRows) -> None:
        self._pending.append(self._pool.submit(prepare_shards, rows))
        if len(self._pending) > 2 * self._threads:
            self._collect()

    def _collect(self) -> None:
        part, sums = self._pending.popleft().result()
        self._parts.append(part)
        self._sums = self._sums + sums

    def _encode_strings(self) -> None:
        """Number the distinct strings of all ranks, and submit their rows."""
        dictionaries = [encoded.dictionary for encoded, _ in self._strings]
        mine = pa.chunked_array(dictionaries, pa.large_string()).unique()
        of_all_ranks = self._communicator.gather(mine)
        known = pa.chunked_array(of_all_ranks, pa.large_string()).unique()
        known = known.take(pc.sort_indices(known))  # independent of the rows' order
        for encoded, rows in self._strings:
            codes = pc.index_in(encoded.dictionary, known).to_numpy()
            keys = mix_ids(codes[encoded.indices.to_numpy()].astype(np.int64))
            self._submit(rows._replace(keys=keys))
        self._strings = []

    def _move_to_owners(self) -> None:
        """Move every row to the rank that owns its user's shard."""
        if self._communicator.size > 1:
            mine = concatenate([part.rows for part in self._parts])
            owners = owners_of(mine, self._communicator.size)
            self._parts = [by_shard(exchange(mine, owners, self._communicator))]

    def _count_users(self) -> dict[UserStatistic, Any]:
        """Return the statistics of all users of all ranks, in the order of the keys."""
        num_rows = sum(len(part.rows.keys) for part in self._parts)
        step = max(1, NUM_SHARDS * _TASK_ROWS // max(num_rows, 1))
        firsts = range(0, NUM_SHARDS, step)
        statistics = user_statistics(self._metrics)

        def count(first: int) -> list[Any]:
            rows = self._rows_of_shards(first, min(first + step, NUM_SHARDS))
            return [statistic(rows, self._convention) for statistic in statistics]

        mine = list(map(_join, zip(*self._pool.map(count, firsts), strict=True)))
        of_all_ranks = zip(*self._communicator.gather(mine), strict=True)
        return dict(zip(statistics, map(_join, of_all_ranks), strict=True))

    def _rows_of_shards(self, first: int, stop: int) -> ScoredRows:
        rows = concatenate(
            [
                part.rows.take(slice(part.offsets[first], part.offsets[stop]))
                for part in self._parts
            ]
        )
        users, num_users = number_users(rows.keys)
        return ScoredRows(users, num_users, *rows[1:])

    def _count_pooled(self) -> GroupPairs:
        """Return the pairs of all rows; each rank counts a range of scores."""
        parts = [part.rows for part in self._parts]
        self._parts = []
        if self._communicator.size > 1:
            mine = concatenate(parts)
            edges = self._edges([mine], self._communicator.size)
            owners = np.searchsorted(edges, mine.scores, side="right")
            parts = [exchange(mine, owners, self._communicator)]
        if any(part.weights is not None for part in parts):
            counts = self._count_weighted_ranges(parts)
        else:
            counts = self._count_ranges(parts)
        return _stack(self._communicator.gather(_stack(counts)))

    def _count_ranges(self, parts: list[StreamedRows]) -> list[GroupPairs]:
        """Sort the scores of each class, then count in ranges of positives."""
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

    def _count_weighted_ranges(self, parts: list[StreamedRows]) -> list[GroupPairs]:
        """Count the rows of one range of scores at a time."""
        num_rows = sum(len(part.scores) for part in parts)
        edges = self._edges(parts, num_rows // _RANGE_ROWS + 1, among_ranks=False)
        lows, highs = [-math.inf, *edges], [*edges, math.inf]

        def count(low: float, high: float) -> GroupPairs:
            rows = concatenate(
                [
                    part.take((part.scores >= low) & (part.scores < high))
                    for part in parts
                ]
            )
            one_group = np.zeros(len(rows.scores), np.int64)
            columns = (rows.is_positive, rows.scores, rows.weights)
            return count_pairs(one_group, 1, *columns, self._convention.ties)

        return list(self._pool.map(count, lows, highs))

    def _edges(
        self, parts: list[StreamedRows], num_ranges: int, among_ranks: bool = True
    ) -> Scores:
        """Return scores [num_ranges - 1] that split the rows about evenly."""
        samples = [
            part.scores[:: len(part.scores) // _EDGE_SAMPLES + 1] for part in parts
        ]
        sample = np.concatenate([np.zeros(0), *samples])
        if among_ranks:
            sample = np.concatenate(self._communicator.gather(sample))
        if not len(sample):
            return np.zeros(num_ranges - 1)
        return np.quantile(sample, np.arange(1, num_ranges) / num_ranges)


def _join(parts: Sequence[Any]) -> Any:
    """Concatenate a user statistic of several parts."""
    return type(parts[0])._make(
        None if columns[0] is None else np.concatenate(columns)
        for columns in zip(*parts, strict=True)
    )


def _pairs(won: float, positives: float, negatives: float) -> GroupPairs:
    return GroupPairs(*(np.array([float(x)]) for x in (won, positives, negatives)))


def _stack(ranges: Sequence[GroupPairs]) -> GroupPairs:
    """Merge the pairs of ranges of scores, lowest first."""
    won = positives = negatives = 0.0
    for one in ranges:
        won += float(one.won.sum()) + float(one.positives.sum()) * negatives
        positives += float(one.positives.sum())
        negatives += float(one.negatives.sum())
    return _pairs(won, positives, negatives)
