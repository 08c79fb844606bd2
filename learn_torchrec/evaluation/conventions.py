"""The choices that a "grouped AUC" hides, each with a name.

Libraries that print one number under that name disagree on all of them, and the same
predictions then differ by far more than rankers do.
"""

from typing import Literal

from learn_torchrec.config import configuration
from learn_torchrec.evaluation.pairs import Ties

SingleClass = Literal["exclude", "half"]
UserWeight = Literal["impressions", "clicks", "positives", "none"]


@configuration
class Convention:
    """How users' AUCs become one number; by default the paper's (section 4).

    Attributes:
        single_class: users without a positive or without a negative: leave them out
            (`exclude`) or count them as 0.5 (`half`).
        user_weight: weight of a user in WUAUC: `impressions` (the sum of the row
            weights), `clicks` (the sum of the column `click`), `positives` or `none`.
        ties: who wins a pair of equal scores: nobody (`half`), the `positive`, the
            `negative`, or the row that comes `first`.
    """

    single_class: SingleClass = "exclude"
    user_weight: UserWeight = "impressions"
    ties: Ties = "half"

    @property
    def needs_clicks(self) -> bool:
        """Whether a column of clicks counts, if there is one."""
        return self.user_weight == "clicks"


PAPER = Convention()
