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

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

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
from learn_torchrec.evaluation.pooled_stream import PooledPairs
from learn_torchrec.evaluation.probability import ProbabilitySums
from learn_torchrec.evaluation.row_store import RowStore
from learn_torchrec.evaluation.rows import ScoredRows, check_columns
from learn_torchrec.evaluation.shards import (
    NUM_SHARDS,
    ShardedRows,
    StreamedRows,
    number_users,
    prepare_shards,
    rows_of_shards,
)
from learn_torchrec.ids import as_ids
from learn_torchrec.schema import CLICK, LABEL, SCORE, USER_ID, WEIGHT

_TASK_ROWS = 1 << 17  # rows that one core sorts at a time: a few MB, within its cache


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
        refuse_ties_by_order(convention)
        self._convention, self._metrics, self._names = convention, metrics, names
        self._communicator = communicator or LocalCommunicator()
        threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(threads)
        self._store = RowStore(prepare_shards, self._pool, threads, self._communicator)
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
        self._store.add(ids, StreamedRows(np.zeros(0, np.uint64), *columns[:-1]))

    def finish(self) -> RankingMetrics:
        """Return the metrics of all rows of all ranks, on every rank."""
        return metrics_of(self.totals(), self._convention, self._metrics)

    def totals(self) -> Totals:
        """Return the statistics of all rows of all ranks, on every rank."""
        with self._pool:
            parts = self._store.finish()
            users = self._count_users(parts)
            rows = [part.rows for part in parts]
            parts.clear()
            pooled = PooledPairs(
                self._convention.ties, self._pool, self._communicator
            ).count(rows)
        sums = sum(self._communicator.gather(self._store.sums), ProbabilitySums())
        return Totals(users, pooled, sums)

    def _count_users(self, parts: Sequence[ShardedRows]) -> dict[UserStatistic, Any]:
        """Return the statistics of all users of all ranks, in the order of the keys."""
        statistics = user_statistics(self._metrics)

        def count(first: int, stop: int) -> list[Any]:
            rows = rows_of_shards(parts, first, stop)
            users, num_users = number_users(rows.keys)
            # Probabilities are summed already: no population weights are left.
            scored = ScoredRows(users, num_users, *rows[1:6])
            return [statistic(scored, self._convention) for statistic in statistics]

        counted = self._pool.map(count, *shard_ranges(parts))
        mine = list(map(join, zip(*counted, strict=True)))
        of_all_ranks = zip(*self._communicator.gather(mine), strict=True)
        return dict(zip(statistics, map(join, of_all_ranks), strict=True))


def refuse_ties_by_order(convention: Convention) -> None:
    """Refuse the one rule for ties that the order of all rows decides.

    Raises:
        UserError: it is the convention's.
    """
    if convention.ties == "first":
        raise UserError(
            "ties=first: needs all rows in their order; choose another rule for ties, "
            "or do not stream"
        )


def join(parts: Sequence[Any]) -> Any:
    """Return a user statistic of the users of several parts."""
    return type(parts[0])._make(
        None if columns[0] is None else np.concatenate(columns)
        for columns in zip(*parts, strict=True)
    )


def shard_ranges(parts: Sequence[ShardedRows]) -> tuple[list[int], list[int]]:
    """Return the first and the last shard, exclusive, of what one core does at a time.

    All rows of a user are in one range.
    """
    num_rows = sum(len(part.rows.keys) for part in parts)
    step = max(1, NUM_SHARDS * _TASK_ROWS // max(num_rows, 1))
    firsts = list(range(0, NUM_SHARDS, step))
    return firsts, [*firsts[1:], NUM_SHARDS]
