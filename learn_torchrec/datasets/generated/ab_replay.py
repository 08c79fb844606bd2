"""A simulated A/B test: outcomes of generated users over some days.

Users and items are in the paper's cohorts with the paper's shares; the treatment
raises conversion by planted lifts. Nothing was observed: the file's metadata mark it as
simulated, and so does every report on it.
"""

from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveFloat

from learn_torchrec.config import Days, configuration, require
from learn_torchrec.outputs import replacing
from learn_torchrec.page_checksums import WRITTEN
from learn_torchrec.schema import SIMULATED

COHORTS = ("cold", "long_tail", "others")
Number = TypeVar("Number")
Amount = Annotated[FiniteFloat, Field(ge=0)]
ByCohort = Annotated[tuple[Number, ...], Field(min_length=3, max_length=3)]
_ARMS = np.array(["control", "treatment"])


@configuration
class AbReplayConfig:
    """The simulated test; by default the paper's (section 4, online A/B test).

    Attributes:
        users: in total; only those of the two arms are written.
        days: length of the test.
        treatment_share: of all users.
        control_share: of all users.
        user_shares: of cold-start, long-tail and other users.
        item_shares: of impressions on cold-start, long-tail and other items.
        user_impressions: mean impressions per day, by user cohort.
        conversion_rate: mean over users, whose rates are gamma-distributed.
        price: median of the log-normal price, one draw per row.
        user_lifts: planted relative lift of conversion, by user cohort.
        item_lifts: planted relative lift, by item cohort; added to the user's.
        seed: of everything random.
    """

    users: Annotated[int, Field(ge=10)] = 100_000
    days: Days = 9
    treatment_share: PositiveFloat = 0.2
    control_share: PositiveFloat = 0.2
    user_shares: ByCohort[Amount] = (0.0716, 0.2754, 0.6530)
    item_shares: ByCohort[Amount] = (0.0315, 0.2647, 0.7038)
    user_impressions: ByCohort[Amount] = (4.0, 8.0, 20.0)
    conversion_rate: Annotated[float, Field(ge=0, le=1)] = 0.03
    price: Amount = 40.0
    user_lifts: ByCohort[FiniteFloat] = (0.0156, 0.0579, 0.0032)
    item_lifts: ByCohort[FiniteFloat] = (0.0, 0.0, 0.0)
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        require(
            self.treatment_share + self.control_share <= 1,
            "treatment_share and control_share must add up to at most 1",
        )
        for name in ("user_shares", "item_shares"):
            # The random generator's own tolerance.
            require(
                abs(sum(getattr(self, name)) - 1) < 1e-8,
                f"{name}: {getattr(self, name)} do not add up to 1",
            )
        # Lifts add up, and a conversion rate is not negative.
        require(
            min(self.user_lifts) + min(self.item_lifts) >= -1,
            "user_lifts and item_lifts must add up to at least -1",
        )


def is_replay(path: Path) -> bool:
    """Whether a file is one that `write_ab_replay` wrote, which may be replaced."""
    try:
        metadata = pq.read_schema(path).metadata if path.is_file() else None
    except (pa.ArrowException, OSError):
        return False
    return (metadata or {}).get(SIMULATED) == b"true"


def write_ab_replay(path: Path, config: AbReplayConfig) -> int:
    """Simulate a test and write its outcomes; return the number of rows.

    A row is a user's day with the items of a cohort, and has the columns of
    `evaluation.ab_outcomes.read_outcomes`, `user_cohort` and `item_cohort`. Days
    without impressions have no row.
    """
    random = np.random.default_rng(config.seed)
    shares = (config.control_share, config.treatment_share)
    arm_of_all = random.choice(3, size=config.users, p=[*shares, 1 - sum(shares)])
    users = np.flatnonzero(arm_of_all < 2)
    arms = arm_of_all[users]
    cohorts = random.choice(len(COHORTS), size=len(users), p=config.user_shares)
    # Users differ in activity and in conversion rate.
    activity = np.array(config.user_impressions)[cohorts]
    activity = activity * random.gamma(2.0, 1 / 2.0, len(users))
    base_rates = config.conversion_rate * random.gamma(2.0, 1 / 2.0, len(users))
    lifts = np.array(config.user_lifts)[cohorts, None] + np.array(config.item_lifts)
    rates = np.minimum(base_rates[:, None] * (1 + arms[:, None] * lifts), 1)
    means = activity[:, None] * np.array(config.item_shares)
    names, tables = np.array(COHORTS), []
    for day in range(config.days):
        impressions = random.poisson(means)
        conversions = random.binomial(impressions, rates)
        # One price per row: a user's conversions of the day in an item cohort.
        price = config.price * np.exp(random.normal(0, 0.5, impressions.shape))
        row, item_cohort = np.nonzero(impressions)
        columns = {
            "user_id": users[row],
            "arm": _ARMS[arms[row]],
            "day": np.full(len(row), day),
            "user_cohort": names[cohorts[row]],
            "item_cohort": names[item_cohort],
            "impressions": impressions[row, item_cohort],
            "conversions": conversions[row, item_cohort],
            "revenue": (conversions * price)[row, item_cohort],
        }
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables).replace_schema_metadata({SIMULATED: b"true"})
    with replacing(path) as working:
        pq.write_table(table, working, **WRITTEN)
    return int(table.num_rows)
