"""NDCG over all of a user's rows, and its mean over users: "undcg".

A positive at rank i (from 1) gains its weight over log2(i + 1); the sum is divided by
that of the ideal order. Rows of equal scores share the mean of their ranks' discounts
(McSherry and Najork, ECIR 2008), unless the convention gives ties to one class.

N rows, U users.
"""

import math
from typing import NamedTuple

import numpy as np

from learn_torchrec.arrays import Float64Array
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.metric import PerUser, UserMean
from learn_torchrec.evaluation.pairs import break_ties
from learn_torchrec.evaluation.rows import ScoredRows
from learn_torchrec.jagged import positions_in


class UserNdcg(NamedTuple):
    """NDCG of every user, float64 [U]; NaN for users of one class."""

    ndcg: Float64Array


def user_ndcg(rows: ScoredRows, convention: Convention) -> UserNdcg:
    """Return every user's NDCG."""
    sizes = np.bincount(rows.users, minlength=rows.num_users)
    # Both orders are by user first, so discounts are the same in both.
    discounts = 1 / np.log2(positions_in(sizes) + 2)
    gains = rows.row_weights() * rows.is_positive
    ideal_order = np.lexsort((-gains, rows.users))
    users = rows.users[ideal_order]
    ideal = np.bincount(users, gains[ideal_order] * discounts, rows.num_users)

    scores = break_ties(rows.scores) if convention.ties == "first" else rows.scores
    preferred = rows.is_positive == (convention.ties == "positive")
    order = np.lexsort((~preferred, -scores, rows.users))
    gains, scores = gains[order], scores[order]
    if convention.ties == "half" and len(scores):
        is_new = (np.diff(users, prepend=-1) != 0) | (
            np.diff(scores, prepend=math.nan) != 0
        )
        starts = np.flatnonzero(is_new)
        lengths = np.diff(starts, append=len(scores))
        means = np.add.reduceat(discounts, starts) / lengths
        discounts = np.repeat(means, lengths)
    gained = np.bincount(users, gains * discounts, rows.num_users)

    positives = np.bincount(rows.users, rows.is_positive, rows.num_users)
    ndcg = np.full(rows.num_users, math.nan)
    has_both = (positives > 0) & (positives < sizes)
    np.divide(gained, ideal, out=ndcg, where=has_both)
    return UserNdcg(ndcg)


def _per_user(users: UserNdcg, convention: Convention) -> PerUser:
    counted = np.flatnonzero(~np.isnan(users.ndcg))
    return PerUser(counted, users.ndcg[counted], np.ones(len(counted)))


UNDCG = UserMean(name="undcg", user_statistic=user_ndcg, per_user=_per_user)
