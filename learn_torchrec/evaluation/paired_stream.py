"""Two score columns of the same rows compared, by cohort, from batches on many ranks.

A row is read and kept once for all cohorts. Metrics are exact, as `stream.py` computes
them; intervals are those of `influence.py`. For these, what a row outranks among all
rows is exact in cohorts of up to a million rows, else known to 1 part in 65,536.

N rows of a batch, C cohorts.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from learn_torchrec.arrays import BoolArray, Column
from learn_torchrec.evaluation.auc import (
    DEFAULT_METRICS,
    RankingMetrics,
    metrics_of,
    user_statistics,
)
from learn_torchrec.evaluation.class_ranks import (
    ClassRanks,
    equal_shares,
    rank_classes,
    single_scores,
)
from learn_torchrec.evaluation.cohorts import ALL
from learn_torchrec.evaluation.communicator import Communicator, LocalCommunicator
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.influence import UserMoments, moments_of, summarise
from learn_torchrec.evaluation.likelihood import total_sums
from learn_torchrec.evaluation.metric import Metric, PreparedRows, Totals
from learn_torchrec.evaluation.pairs import Scores
from learn_torchrec.evaluation.pooled_stream import PooledPairs
from learn_torchrec.evaluation.probability import ProbabilitySums
from learn_torchrec.evaluation.row_store import RowStore
from learn_torchrec.evaluation.rows import ScoredRows, check_columns
from learn_torchrec.evaluation.shards import (
    ShardedRows,
    StreamedRows,
    by_shard,
    number_users,
    rows_of_shards,
)
from learn_torchrec.evaluation.significance import PairedDifference
from learn_torchrec.evaluation.stream import join, refuse_ties_by_order, shard_ranges
from learn_torchrec.ids import as_ids
from learn_torchrec.schema import LABEL, SCORE, USER_ID

_EXACT_ROWS = 1 << 20  # of a cohort, all of whose scores are sorted for exact ranks
_SAMPLE_ROWS = 1 << 19
_SHARES = 1 << 16  # of the rows of a larger cohort
_SIDES = (0, 1)  # baseline, candidate


class Comparison(NamedTuple):
    """The metrics of one cohort, and their differences.

    Attributes:
        baseline: metrics and counts.
        candidate: of the same rows.
        differences: candidate minus baseline, by metric.
    """

    baseline: RankingMetrics
    candidate: RankingMetrics
    differences: dict[str, PairedDifference]


class _Counted(NamedTuple):
    """What a comparison needs of some users' rows.

    Attributes:
        statistics: user statistics of each side.
        sums: of each side.
        moments: by metric.
    """

    statistics: list[list[Any]]
    sums: list[ProbabilitySums]
    moments: dict[str, UserMoments]


class PairedStream:
    """Takes rows with two scores in batches, then compares the scores.

    Args:
        cohorts: names of the cohorts beside all rows, at most 64.
        convention: which users count, by what weight, and who wins a tie.
        threads: cores to use, by default all.
        communicator: of the processes that together hold the rows; each adds its own.
        metrics: as for `auc.evaluate_auc`.
        names: of the columns of labels and of both scores, for messages.

    Raises:
        UserError: ties that the first row wins.

    Example:
        >>> stream = PairedStream()
        >>> stream.add([1, 1, 2, 2], [1, 0, 1, 0], [.2, .9, .5, .5], [.9, .2, .5, .5])
        >>> stream.finish()["all"].differences["uauc"].difference
        0.5
    """

    def __init__(
        self,
        cohorts: Sequence[str] = (),
        convention: Convention = PAPER,
        threads: int | None = None,
        communicator: Communicator | None = None,
        *,
        metrics: Sequence[Metric] = DEFAULT_METRICS,
        names: tuple[str, str, str] = (LABEL, SCORE, SCORE),
    ) -> None:
        refuse_ties_by_order(convention)
        self._cohorts = list(cohorts)
        self._convention, self._metrics, self._names = convention, metrics, names
        self._communicator = communicator or LocalCommunicator()
        threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(threads)
        self._store = RowStore(_by_shard, self._pool, threads, self._communicator)
        self._first_row = 0

    def add(  # noqa: PLR0913  the columns of a batch
        self,
        user_ids: Column,
        labels: Column,
        baseline_scores: Column,
        candidate_scores: Column,
        weights: Column | None = None,
        clicks: Column | None = None,
        *,
        sampling_rates: Column | None = None,
        cohorts: Mapping[str, BoolArray] | None = None,
        first_row: int | None = None,
    ) -> None:
        """Take a batch of the columns of `auc.evaluate_auc`.

        `cohorts` are the rows of each cohort, bool [N]; `first_row` is the first row's
        number, for messages, None continues from the batch before.

        Raises:
            UserError: see `auc.evaluate_auc`.
        """
        ids = as_ids(user_ids, USER_ID)
        first = self._first_row if first_row is None else first_row
        label, *score_names = self._names
        before, after = (
            check_columns(
                *(len(ids), labels, scores, weights, clicks, first, (label, name)),
                sampling_rates=sampling_rates,
            )
            for scores, name in zip(
                (baseline_scores, candidate_scores), score_names, strict=True
            )
        )
        self._first_row = first + len(ids)
        members = self._members(len(ids), cohorts or {})
        if before.kept is not None:
            ids, members = ids.filter(before.kept), members[before.kept]
        rows = StreamedRows(np.zeros(0, np.uint64), *before[:-1], after.scores, members)
        self._store.add(ids, rows)

    def finish(self) -> dict[str, Comparison]:
        """Return the comparison of each cohort, "all" first, on every rank."""
        with self._pool:
            parts = self._store.finish()
            return {
                name: self._compare(parts, place)
                for place, name in enumerate([ALL, *self._cohorts])
            }

    def _members(self, length: int, cohorts: Mapping[str, BoolArray]) -> Any:
        """Return the cohorts of each row as bits of the smallest integer."""
        kind = np.min_scalar_type((1 << len(self._cohorts)) - 1)
        members = np.zeros(length, kind)
        for place, name in enumerate(self._cohorts):
            members |= cohorts[name].astype(kind) << kind.type(place)
        return members

    def _compare(self, parts: Sequence[ShardedRows], cohort: int) -> Comparison:
        ranks = [self._ranks(parts, cohort, side) for side in _SIDES]

        def count(first: int, stop: int) -> _Counted:
            rows = rows_of_shards(parts, first, stop)
            return self._count(_of_cohort(rows, cohort), ranks)

        mine = _merge(list(self._pool.map(count, *shard_ranges(parts))))
        statistics, sums, moments = _merge(self._communicator.gather(mine))
        pooled = PooledPairs(self._convention.ties, self._pool, self._communicator)
        needed = user_statistics(self._metrics)
        before, after = (
            metrics_of(
                Totals(
                    dict(zip(needed, statistics[side], strict=True)),
                    pooled.count(list(_columns(parts, cohort, side))),
                    sums[side],
                ),
                self._convention,
                self._metrics,
            )
            for side in _SIDES
        )
        differences = summarise(before, after, moments, self._metrics)
        return Comparison(before, after, differences)

    def _count(self, rows: StreamedRows, ranks: Sequence[ClassRanks]) -> _Counted:
        users, num_users = number_users(rows.keys)
        scored = ScoredRows(users, num_users, *rows[1:6])
        sides = [
            PreparedRows(scored._replace(scores=one), self._convention, of_table)
            for one, of_table in zip(_scores(rows), ranks, strict=True)
        ]
        needed = user_statistics(self._metrics)
        return _Counted(
            [[side.get(one) for one in needed] for side in sides],
            [total_sums(side) for side in sides],
            moments_of(sides[0], sides[1], self._metrics),
        )

    def _ranks(
        self, parts: Sequence[ShardedRows], cohort: int, side: int
    ) -> ClassRanks:
        """Return what rows of a cohort outrank among the rows of all ranks."""
        columns = list(_columns(parts, cohort, side))
        num_rows = sum(
            self._communicator.gather(sum(len(one.scores) for one in columns))
        )
        is_exact = num_rows <= _EXACT_ROWS
        step = 1 if is_exact else num_rows // _SAMPLE_ROWS + 1
        sample = np.concatenate(
            [np.zeros(0, np.float32), *(one.scores[::step] for one in columns)]
        )
        sample = np.concatenate(self._communicator.gather(sample))
        ranges = single_scores(sample) if is_exact else equal_shares(sample, _SHARES)

        def weigh(rows: StreamedRows) -> Any:
            return ranges.weigh(rows.is_positive, rows.scores, rows.weights)

        mine = sum(self._pool.map(weigh, columns), np.zeros((2, len(ranges.is_single))))
        weights = sum(self._communicator.gather(mine))
        return rank_classes(ranges, weights, self._convention.ties)


def _merge(blocks: Sequence[_Counted]) -> _Counted:
    """Return what was counted of several blocks' users together."""
    moments = dict(blocks[0].moments)
    for other in blocks[1:]:
        moments = {
            name: one.merge(other.moments[name]) for name, one in moments.items()
        }
    return _Counted(
        [
            list(map(join, zip(*(one.statistics[side] for one in blocks), strict=True)))
            for side in _SIDES
        ],
        [sum((one.sums[side] for one in blocks), ProbabilitySums()) for side in _SIDES],
        moments,
    )


def _scores(rows: StreamedRows) -> tuple[Scores, Scores]:
    assert rows.candidate_scores is not None
    return rows.scores, rows.candidate_scores


def _by_shard(rows: StreamedRows) -> tuple[ShardedRows, ProbabilitySums]:
    return by_shard(rows), ProbabilitySums()


def _of_cohort(rows: StreamedRows, cohort: int) -> StreamedRows:
    """Return a cohort's rows; cohort 0 is all rows."""
    if not cohort or rows.cohorts is None:
        return rows
    return rows.take((rows.cohorts & (1 << (cohort - 1))) != 0)


def _columns(
    parts: Sequence[ShardedRows], cohort: int, side: int
) -> Iterator[StreamedRows]:
    """Yield the columns of a cohort's rows that pooled pairs need, part by part."""
    for part in parts:
        rows = part.rows
        needed = StreamedRows(
            # Keys, of one byte: these rows are sent to other ranks by their scores.
            rows.is_positive.view(np.uint8),
            rows.is_positive,
            _scores(rows)[side],
            rows.weights,
            None,
            cohorts=rows.cohorts if cohort else None,
        )
        yield _of_cohort(needed, cohort)._replace(cohorts=None)
