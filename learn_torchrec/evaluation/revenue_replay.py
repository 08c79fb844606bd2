"""A replay of shown items: how much of a visit's revenue its first places would hold.

Each visit's impressions are ordered by score; of what was paid for them, the first k
hold a share. It says how well an order finds what people spent money on. It cannot say
what they would have bought had they been shown other items, or the same in that order.

Letters: N impressions.
"""

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Float64Array, Int64Array, joined
from learn_torchrec.schema import TIMESTAMP, USER_ID


def visits_of(impressions: pa.Table) -> Int64Array:
    """Number the visits, a user at a moment, for each impression, int64 [N]."""
    users = joined(impressions[USER_ID]).dictionary_encode().indices.to_numpy()
    times = impressions[TIMESTAMP].to_numpy()
    return np.unique(np.stack([users, times]), axis=1, return_inverse=True)[1]


def in_first_places(
    visits: Int64Array, scores: Float64Array, places: int
) -> Float64Array:
    """Return the chance of each impression to be in its visit's first places, [N].

    It is 0 or 1 but for those that share the last place with others of the same score,
    which are equally likely to get it.

    Args:
        visits: int64 [N].
        scores: float64 [N].
        places: k.
    """
    order = np.lexsort((-scores, visits))
    visit, score = visits[order], scores[order]
    starts_visit = np.diff(visit, prepend=-1) != 0
    starts_tie = starts_visit | (np.diff(score, prepend=np.nan) != 0)
    rows = np.arange(len(order))
    visit_start = np.maximum.accumulate(np.where(starts_visit, rows, 0))
    tie = np.cumsum(starts_tie) - 1
    first = rows[starts_tie] - visit_start[starts_tie]  # places before a tie
    sizes = np.bincount(tie)
    chance = np.empty(len(order))
    chance[order] = np.clip((places - first) / sizes, 0, 1)[tie]
    return chance
