"""Activity cohorts of users and items (paper, the A/B test's table).

The paper counts a user's clicks, impressions and purchases, and an item's
purchases, over the previous six months; it leaves an item with exactly 30
purchases in no cohort, we count it among the others.
"""

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from learn_torchrec.arrays import BoolArray, Int64Array, name_rows
from learn_torchrec.config import configuration, require
from learn_torchrec.errors import UserError

ALL = "all"
COLD = "cold"
LONG_TAIL = "long_tail"
OTHERS = "others"

_TITLES = {COLD: "cold-start", LONG_TAIL: "long-tail", OTHERS: "others"}
_COHORT_TITLES = {
    f"{side}_{name}": f"{side} {title}"
    for side in ("user", "item")
    for name, title in _TITLES.items()
}


@configuration
class CohortConfig:
    """Bounds of the cohorts, in events within the window; the paper's by default.

    Attributes:
        user_long_tail_from: fewest events of a long-tail user; fewer is cold.
        user_others_from: fewest events of a user among the others.
        item_long_tail_from: fewest events of a long-tail item; fewer is cold.
        item_others_from: fewest events of an item among the others.
        window_days: days before the impression's UTC day whose events count.
    """

    user_long_tail_from: NonNegativeInt = 1
    user_others_from: NonNegativeInt = 36
    item_long_tail_from: NonNegativeInt = 1
    item_others_from: NonNegativeInt = 30
    window_days: PositiveInt = 180

    def __post_init__(self) -> None:
        for side in ("user", "item"):
            long_tail_from = getattr(self, f"{side}_long_tail_from")
            others_from = getattr(self, f"{side}_others_from")
            require(
                long_tail_from <= others_from,
                f"{side}_others_from: {others_from} is less than "
                f"{side}_long_tail_from, {long_tail_from}",
            )


def assign_cohorts(
    counts: Int64Array, long_tail_from: int, others_from: int
) -> dict[str, BoolArray]:
    """Split rows by activity; every row is in exactly one cohort.

    Args:
        counts: int64 [N] events of the row's user or item.
        long_tail_from: fewest events of the long tail.
        others_from: fewest events of the others.

    Returns:
        Masks bool [N] named "cold", "long_tail" and "others".

    Raises:
        UserError: negative counts.
    """
    values = np.asarray(counts)
    if (values < 0).any():
        raise UserError(
            f"activity: negative count in {name_rows(values < 0)}; counts start at 0"
        )
    return {
        COLD: values < long_tail_from,
        LONG_TAIL: (values >= long_tail_from) & (values < others_from),
        OTHERS: values >= others_from,
    }


def cohort_title(name: str) -> str:
    """Return what a reader calls a cohort: "user long-tail" for "user_long_tail"."""
    return _COHORT_TITLES.get(name, name)
