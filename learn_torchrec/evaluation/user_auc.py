"""AUC within every user, and its means over users: UAUC and WUAUC.

Users whose rows are all of one class are left out, as is usual for these two metrics of
the paper's ranker; `conventions.py` has the other conventions.

U distinct users, K users that count.
"""

from typing import NamedTuple

import numpy as np

from learn_torchrec.arrays import Float64Array
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.metric import PerUser, UserMean, mean_of_users
from learn_torchrec.evaluation.pairs import count_pairs
from learn_torchrec.evaluation.rows import ScoredRows
from learn_torchrec.schema import CLICK


class UserPairs(NamedTuple):
    """The sums of each user that conventions need, float64 [U].

    Attributes:
        won: pairs in which the positive outranks the negative.
        positives: sum of the positives' weights.
        negatives: sum of the negatives' weights.
        clicks: sum of the clicks, or None where there is no such column.
    """

    won: Float64Array
    positives: Float64Array
    negatives: Float64Array
    clicks: Float64Array | None


def count_users(rows: ScoredRows, convention: Convention = PAPER) -> UserPairs:
    """Return every user's pairs and clicks."""
    columns = (rows.is_positive, rows.scores, rows.weights, convention.ties)
    clicks: Float64Array | None = None
    if rows.clicks is not None:
        clicks = np.bincount(rows.users, rows.clicks, rows.num_users).astype(np.float64)
    pairs = count_pairs(rows.users, rows.num_users, *columns)
    return UserPairs(*pairs, clicks)


def user_means(users: UserPairs, convention: Convention) -> tuple[float, float]:
    """Return (UAUC, WUAUC) under a convention; NaN without users.

    Raises:
        UserError: the convention weights by clicks, and there are none.
    """
    counted = users_that_count(users, convention)
    return mean_of_users(counted, False), mean_of_users(counted, True)


def users_that_count(users: UserPairs, convention: Convention) -> PerUser:
    """Return the AUC and the weight of the users that a convention counts.

    Raises:
        UserError: the convention weights by clicks, and there are none.
    """
    pairs = users.positives * users.negatives
    auc = np.full(len(pairs), 0.5)
    np.divide(users.won, pairs, out=auc, where=pairs > 0)
    is_counted = pairs > 0
    if convention.single_class == "half":
        is_counted = np.ones(len(pairs), dtype=bool)
    counted = np.flatnonzero(is_counted)
    weights = _user_weights(users, convention)
    return PerUser(counted, auc[counted], weights[counted])


def _user_weights(users: UserPairs, convention: Convention) -> Float64Array:
    if convention.user_weight == "positives":
        return users.positives
    if convention.user_weight == "none":
        return np.ones(len(users.won))
    if convention.user_weight == "impressions":
        return users.positives + users.negatives
    if users.clicks is None:
        raise UserError(
            f"{CLICK}: no such column, but user_weight=clicks needs it; add it to the "
            "predictions, or weight users by impressions"
        )
    return users.clicks


UAUC = UserMean(name="uauc", user_statistic=count_users, per_user=users_that_count)
WUAUC = UserMean(
    name="wuauc",
    user_statistic=count_users,
    per_user=users_that_count,
    is_weighted=True,
)
