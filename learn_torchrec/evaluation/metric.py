"""Ranking metrics: their value on a table, and their difference when resampled.

A new metric is one file that defines a `Metric`, and one entry in `auc.METRICS`. Most
are means over users of a number that a user's own rows decide: a `UserMean` works in
memory, in a stream, in the paired bootstrap and with influence functions.

N rows, U distinct users, K users that count, R resamples in a block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from learn_torchrec.arrays import Float64Array, Int64Array
from learn_torchrec.evaluation.class_ranks import ClassRanks, exact_ranks
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.pairs import GroupPairs
from learn_torchrec.evaluation.probability import ProbabilitySums
from learn_torchrec.evaluation.rows import ScoredRows

# Maps rows of whole users to a named tuple of arrays [U] by user, or None if absent.
UserStatistic: TypeAlias = Callable[[ScoredRows, Convention], Any]
# Maps how often each user was drawn, float64 [R, U], to the differences [R].
Resampled: TypeAlias = Callable[[Float64Array], Float64Array]

_Statistic = TypeVar("_Statistic")


class Totals(NamedTuple):
    """The statistics that the metrics of a table are computed from.

    Attributes:
        users: result of each user statistic on all users.
        pooled: pairs of all rows, in one group.
        probabilities: sums over all rows.
    """

    users: dict[UserStatistic, Any]
    pooled: GroupPairs
    probabilities: ProbabilitySums


class PreparedRows:
    """Checked rows of one score column, and the statistics that metrics share.

    Args:
        rows: checked.
        convention: which users count, by what weight, and who wins a tie.
        ranks: of the scores in the table that the rows are a part of; None if they
            are all of it.
    """

    def __init__(
        self,
        rows: ScoredRows,
        convention: Convention,
        ranks: ClassRanks | None = None,
    ) -> None:
        self.rows, self.convention, self._ranks = rows, convention, ranks
        self._known: dict[Any, Any] = {}

    def get(
        self, statistic: Callable[[ScoredRows, Convention], _Statistic]
    ) -> _Statistic:
        """Return a statistic of the rows, computed on first use."""
        if statistic not in self._known:
            self._known[statistic] = statistic(self.rows, self.convention)
        found: _Statistic = self._known[statistic]
        return found

    @property
    def ranks(self) -> ClassRanks:
        """Ranks of the scores in the whole table."""
        return self._ranks or self.get(exact_ranks)


class PairedSums(NamedTuple):
    """A difference of metrics as a function of sums over users.

    Such a function, linear near the observed sums, gives each user's influence on the
    difference, and the influences its variance (Hampel 1974; for the AUC of clustered
    rows Obuchowski 1997).

    Attributes:
        vectors: maps both sides, rows of the same whole users, to the users' summands,
            float64 [D, U].
        gradient: maps the sums [D] over all users to the derivatives [D] of the
            difference by a sum; NaN where the metric is undefined.
    """

    vectors: Callable[[PreparedRows, PreparedRows], Float64Array]
    gradient: Callable[[Float64Array], Float64Array]


class Metric(Protocol):
    """A number by which rankers are compared."""

    @property
    def name(self) -> str:
        """Key in the JSON, column of the tables, name in gates."""

    @property
    def user_statistic(self) -> UserStatistic | None:
        """The statistic that it needs in `Totals.users`; None if it needs none."""

    def value(self, totals: Totals, convention: Convention) -> float:
        """Return the metric of a table; NaN where undefined."""

    def difference(
        self, baseline: PreparedRows, candidate: PreparedRows
    ) -> Resampled | None:
        """Return a function that computes candidate minus baseline; None for none.

        Both sides hold the same users, in the same order, under the same convention.
        """

    @property
    def paired_sums(self) -> PairedSums | None:
        """The difference as a function of sums over users; None for none."""


class PerUser(NamedTuple):
    """One number for each user that counts.

    Attributes:
        user_index: int64 [K], ascending; users are numbered by their first row of
            positive weight.
        values: float64 [K].
        weights: float64 [K], of the users in a weighted mean.
    """

    user_index: Int64Array
    values: Float64Array
    weights: Float64Array


@dataclass(frozen=True, kw_only=True)
class UserMean:
    """The mean over users of one number per user, plain or weighted.

    Attributes:
        name: see `Metric`.
        user_statistic: what the numbers are computed from.
        per_user: computes them; which users count must depend on the labels alone.
        is_weighted: whether the mean is weighted.
    """

    name: str
    user_statistic: UserStatistic
    per_user: Callable[[Any, Convention], PerUser]
    is_weighted: bool = False

    def value(self, totals: Totals, convention: Convention) -> float:
        """Return the mean; NaN without users that count."""
        users = self.per_user(totals.users[self.user_statistic], convention)
        return mean_of_users(users, self.is_weighted)

    def difference(self, baseline: PreparedRows, candidate: PreparedRows) -> Resampled:
        """Return the difference of the means over resampled users."""
        before, after = self._users_of(baseline), self._users_of(candidate)
        gain, weight = after.values - before.values, before.weights

        def resampled(counts: Float64Array) -> Float64Array:
            kept = counts[:, before.user_index]
            if self.is_weighted:
                return divide(kept @ (weight * gain), kept @ weight)
            return divide(kept @ gain, kept.sum(axis=1))

        return resampled

    @property
    def paired_sums(self) -> PairedSums:
        """The difference as weighted gains over weights."""
        return PairedSums(self._gains, ratio_gradient)

    def _gains(self, baseline: PreparedRows, candidate: PreparedRows) -> Float64Array:
        before, after = self._users_of(baseline), self._users_of(candidate)
        weights = before.weights if self.is_weighted else np.ones(len(before.weights))
        return np.stack([weights * (after.values - before.values), weights])

    def _users_of(self, side: PreparedRows) -> PerUser:
        return self.per_user(side.get(self.user_statistic), side.convention)


def mean_of_users(users: PerUser, is_weighted: bool) -> float:
    """Return the plain or weighted mean over users; NaN where undefined."""
    if not len(users.values):
        return math.nan
    if not is_weighted:
        return float(users.values.mean())
    total = float(users.weights.sum())
    return float((users.weights * users.values).sum()) / total if total else math.nan


def ratio_gradient(sums: Float64Array) -> Float64Array:
    """Return the derivatives [2] of `sums[0] / sums[1]`; NaN without a denominator."""
    numerator, denominator = sums
    if denominator <= 0:
        return np.full(2, math.nan)
    return np.array([1.0, -numerator / denominator]) / denominator


def divide(numerator: Float64Array, denominator: Float64Array) -> Float64Array:
    """Return quotients [R], NaN where the denominator is not positive."""
    result = np.full(len(numerator), math.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
