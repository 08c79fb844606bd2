"""Names for the choices behind a "grouped AUC".

Libraries differ in all of them, and so print numbers for the same predictions that
differ by far more than rankers do.
"""

from typing import Literal

from learn_torchrec.config import configuration
from learn_torchrec.evaluation.pairs import Ties

SingleClass = Literal["exclude", "half"]
UserWeight = Literal["impressions", "clicks", "positives", "none"]


@configuration
class Convention:
    """How users' AUCs become one number, by default as in the paper (section 4).

    Attributes:
        single_class: users without a positive or without a negative are left out
            (`exclude`) or count as 0.5 (`half`).
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
        """Whether users are weighted by clicks."""
        return self.user_weight == "clicks"


PAPER = Convention()
