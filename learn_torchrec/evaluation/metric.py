"""Ranking metrics: their value on a table, and their difference when resampled.

A new metric is one file that defines a `Metric`, and one entry in `auc.METRICS`. Most
are means over users of a number that a user's own rows decide: a `UserMean` works in
memory, in a stream and in the paired bootstrap.

N rows, U distinct users, K users that count, R resamples in a block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from learn_torchrec.arrays import Float64Array, Int64Array
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
    """

    def __init__(self, rows: ScoredRows, convention: Convention) -> None:
        self.rows, self.convention = rows, convention
        self._known: dict[Any, Any] = {}

    def get(
        self, statistic: Callable[[ScoredRows, Convention], _Statistic]
    ) -> _Statistic:
        """Return a statistic of the rows, computed on first use."""
        if statistic not in self._known:
            self._known[statistic] = statistic(self.rows, self.convention)
        found: _Statistic = self._known[statistic]
        return found


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
        before, after = (
            self.per_user(side.get(self.user_statistic), side.convention)
            for side in (baseline, candidate)
        )
        gain, weight = after.values - before.values, before.weights

        def resampled(counts: Float64Array) -> Float64Array:
            kept = counts[:, before.user_index]
            if self.is_weighted:
                return divide(kept @ (weight * gain), kept @ weight)
            return divide(kept @ gain, kept.sum(axis=1))

        return resampled


def mean_of_users(users: PerUser, is_weighted: bool) -> float:
    """Return the plain or weighted mean over users; NaN where undefined."""
    if not len(users.values):
        return math.nan
    if not is_weighted:
        return float(users.values.mean())
    total = float(users.weights.sum())
    return float((users.weights * users.values).sum()) / total if total else math.nan


def divide(numerator: Float64Array, denominator: Float64Array) -> Float64Array:
    """Return quotients [R], NaN where the denominator is not positive."""
    result = np.full(len(numerator), math.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
