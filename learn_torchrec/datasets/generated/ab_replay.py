"""A simulated A/B test: the outcomes of generated users over some days.

Users and items fall into the paper's cohorts with the paper's shares; a treatment
raises conversion by planted factors. Nothing here was observed: the file says so of
itself, and everything made from it repeats that.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.config import require

COHORTS = ("cold", "long_tail", "others")
SIMULATED = {b"simulated": b"true"}
_ARMS = np.array(["control", "treatment"])


@dataclass(frozen=True, kw_only=True)
class AbReplayConfig:
    """The simulated test; by default the paper's (section 4, online A/B test).

    Attributes:
        users: users there are; only those of the two arms are written.
        days: length of the test.
        treatment_share: of all users.
        control_share: of all users.
        user_shares: of cold-start, long-tail and other users.
        item_shares: of impressions on cold-start, long-tail and other items.
        user_impressions: mean impressions a day, by user cohort.
        conversion_rate: mean over users; they differ by a gamma factor.
        price: median of the log-normal price, one draw a row.
        user_lifts: planted relative lift of conversion, by user cohort.
        item_lifts: planted relative lift, by item cohort; adds to the user's.
        seed: of everything random.
    """

    users: int = 100_000
    days: int = 9
    treatment_share: float = 0.2
    control_share: float = 0.2
    user_shares: tuple[float, ...] = (0.0716, 0.2754, 0.6530)
    item_shares: tuple[float, ...] = (0.0315, 0.2647, 0.7038)
    user_impressions: tuple[float, ...] = (4.0, 8.0, 20.0)
    conversion_rate: float = 0.03
    price: float = 40.0
    user_lifts: tuple[float, ...] = (0.0156, 0.0579, 0.0032)
    item_lifts: tuple[float, ...] = (0.0, 0.0, 0.0)
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.users >= 10 and self.days >= 1,
            f"users={self.users} and days={self.days}: use 10 and 1 or more",
        )
        shares = self.treatment_share, self.control_share
        require(
            min(shares) > 0 and sum(shares) <= 1,
            f"treatment_share and control_share {shares}: positive, and 1 at most "
            "together",
        )
        parts = ("user_shares", "item_shares")
        for name in (*parts, "user_impressions", "user_lifts", "item_lifts"):
            values = getattr(self, name)
            require(
                len(values) == len(COHORTS) and bool(np.isfinite(values).all()),
                f"{name}={values}: one number for each of {', '.join(COHORTS)}",
            )
        for name in (*parts, "user_impressions", "price", "seed"):
            values = getattr(self, name)
            require(bool(np.min(values) >= 0), f"{name}={values}: use 0 or more")
        for name in parts:
            values = getattr(self, name)
            # As near to 1 as the random generator asks.
            require(
                abs(sum(values) - 1) < 1e-8,
                f"{name}={values}: three shares that add up to 1",
            )
        require(
            0 <= self.conversion_rate <= 1,
            f"conversion_rate={self.conversion_rate}: use 0 to 1",
        )
        # An item's lift adds to the user's, and no user buys less than nothing.
        require(
            min(self.user_lifts) + min(self.item_lifts) >= -1,
            f"user_lifts={self.user_lifts} and item_lifts={self.item_lifts}: a user's "
            "and an item's lift are -1 or more together",
        )


def write_ab_replay(path: Path, config: AbReplayConfig) -> int:
    """Simulate a test and write its outcomes; return the number of rows.

    Rows are a user's day on the items of one cohort, with the columns that
    `evaluation.ab_outcomes.read_outcomes` reads and `user_cohort`, `item_cohort`. Days
    on which a user met no such item have no row.
    """
    random = np.random.default_rng(config.seed)
    shares = (config.control_share, config.treatment_share)
    arm_of_all = random.choice(3, size=config.users, p=[*shares, 1 - sum(shares)])
    users = np.flatnonzero(arm_of_all < 2)
    arms = arm_of_all[users]
    cohorts = random.choice(len(COHORTS), size=len(users), p=config.user_shares)
    # Users differ: in how often they come, and in how readily they buy.
    activity = np.array(config.user_impressions)[cohorts]
    activity = activity * random.gamma(2.0, 1 / 2.0, len(users))
    readiness = config.conversion_rate * random.gamma(2.0, 1 / 2.0, len(users))
    lifts = np.array(config.user_lifts)[cohorts, None] + np.array(config.item_lifts)
    rates = readiness[:, None] * (1 + arms[:, None] * lifts)
    tables = [
        _day(
            random, day, config, users, (arms, cohorts, activity, np.minimum(rates, 1))
        )
        for day in range(config.days)
    ]
    table = pa.concat_tables(tables).replace_schema_metadata(SIMULATED)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return int(table.num_rows)


def _day(
    random: np.random.Generator,
    day: int,
    config: AbReplayConfig,
    users: npt.NDArray[np.int64],
    facts: tuple[npt.NDArray[Any], ...],
) -> pa.Table:
    arms, cohorts, activity, rates = facts
    means = activity[:, None] * np.array(config.item_shares)
    impressions = random.poisson(means)
    conversions = random.binomial(impressions, rates)
    # One price a row: the day's conversions of a user on a cohort's items.
    price = config.price * np.exp(random.normal(0, 0.5, impressions.shape))
    row, item_cohort = np.nonzero(impressions)
    names = np.array(COHORTS)
    return pa.table(
        {
            "user_id": users[row],
            "arm": _ARMS[arms[row]],
            "day": np.full(len(row), day),
            "user_cohort": names[cohorts[row]],
            "item_cohort": names[item_cohort],
            "impressions": impressions[row, item_cohort],
            "conversions": conversions[row, item_cohort],
            "revenue": (conversions * price)[row, item_cohort],
        }
    )
