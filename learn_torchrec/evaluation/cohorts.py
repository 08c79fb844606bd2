"""Activity cohorts of users and items (the paper's table of its A/B test).

The paper counts a user's clicks, impressions and purchases, and an item's purchases,
over the previous six months. It puts an item with exactly 30 purchases in no cohort; we
count it among the others.
"""

import numpy as np
from pydantic import NonNegativeInt

from learn_torchrec.arrays import BoolArray, Int64Array, name_rows
from learn_torchrec.config import Days, configuration, require
from learn_torchrec.errors import UserError

SIDES = ("user", "item")
MOST_COHORTS = 50  # of the columns that a user names
ALL = "all"
COLD = "cold"
LONG_TAIL = "long_tail"
OTHERS = "others"


@configuration
class CohortConfig:
    """Bounds of the cohorts in events within the window, by default the paper's.

    Attributes:
        user_long_tail_from: fewest events of a long-tail user; with fewer, a user is
            cold.
        user_others_from: fewest events of a user among the others.
        item_long_tail_from: as for users.
        item_others_from: as for users.
        window_days: events count in so many days before the impression's UTC day.
    """

    user_long_tail_from: NonNegativeInt = 1
    user_others_from: NonNegativeInt = 36
    item_long_tail_from: NonNegativeInt = 1
    item_others_from: NonNegativeInt = 30
    window_days: Days = 180

    def __post_init__(self) -> None:
        for side in SIDES:
            long_tail_from, others_from = self.bounds(side)
            require(
                long_tail_from <= others_from,
                f"{side}_others_from: {others_from} is less than "
                f"{side}_long_tail_from, {long_tail_from}",
            )

    def bounds(self, side: str) -> tuple[int, int]:
        """Return the fewest events of the long tail and of the others, of a side."""
        names = (f"{side}_long_tail_from", f"{side}_others_from")
        long_tail_from, others_from = (getattr(self, name) for name in names)
        return long_tail_from, others_from


def assign_cohorts(
    side: str, activity: Int64Array, config: CohortConfig
) -> dict[str, BoolArray]:
    """Split rows by the activity of their user or item, each into one cohort.

    Args:
        side: one of `SIDES`.
        activity: int64 [N] events of the row's user or item.
        config: the bounds.

    Returns:
        Masks bool [N]; for users "user_cold", "user_long_tail" and "user_others".

    Raises:
        UserError: negative counts.
    """
    values = np.asarray(activity)
    long_tail_from, others_from = config.bounds(side)
    if (values < 0).any():
        raise UserError(
            f"activity: negative count in {name_rows(values < 0)}; counts start at 0"
        )
    return {
        f"{side}_{COLD}": values < long_tail_from,
        f"{side}_{LONG_TAIL}": (values >= long_tail_from) & (values < others_from),
        f"{side}_{OTHERS}": values >= others_from,
    }
