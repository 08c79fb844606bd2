"""The split into training and holdout by user and time, the same for every stage.

- Before `towers_until` the towers learn.
- From `towers_until` to `test_from` the ranker learns.
- From `test_from` on the ranker is tested.

`holdout` says which users and events test the towers: by default the users who first
appear after `towers_until`; for data without a ranker also the paper's split at a
moment, and leave-one-out.
"""

import datetime
import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from learn_torchrec.arrays import Float64Array, Int64Array
from learn_torchrec.config import Share, configuration, require
from learn_torchrec.datasets.moments import Moments
from learn_torchrec.errors import UserError
from learn_torchrec.schema import TIMESTAMP


@configuration
class SplitConfig:
    """Times are a share of the interactions (`50%`), an ISO date, or unix seconds.

    Attributes:
        towers_until: the towers learn from interactions strictly before it.
        test_from: the ranker learns from impressions in [towers_until, test_from)
            and is tested on those at or after it.
        actions: the actions that make up a history.
        holdout: the users and events that test the towers.
            `new_users`: users who first appear at or after towers_until; the towers
            learn from nothing as late, so that a ranker may learn next.
            `time` (the paper): users are disjoint, and the moment towers_until
            separates every user's history from the targets, in training and test.
            `leave_one_out`: all users train; each one's last event is the test, the
            one before it the validation. Times only order a user's events.
        validation_users: share of the towers' users held out for validation; not
            in `leave_one_out`.
        test_users: share of the users held out for the test, in `time` only.
        min_events: users with fewer events are left out of the towers' training and
            evaluation.
        history_share: share of an evaluated user's events that is history; the rest
            are targets. In `new_users`, and for its validation.
    """

    towers_until: str = "50%"
    test_from: str = "80%"
    actions: Annotated[tuple[str, ...], Field(min_length=1)] = ("like",)
    holdout: Literal["new_users", "time", "leave_one_out"] = "new_users"
    validation_users: Share = 0.1
    test_users: Share = 0.2
    min_events: Annotated[int, Field(ge=2)] = 10
    history_share: Share = 0.8

    def __post_init__(self) -> None:
        require(
            self.validation_users + self.test_users < 1,
            "validation_users and test_users must add up to less than 1",
        )


@dataclass(frozen=True, kw_only=True)
class SplitTimes:
    """The two moments of a split, unix seconds."""

    towers_until: int
    test_from: int


def resolve_times(
    config: SplitConfig, log: pa.Table | Int64Array | Moments
) -> SplitTimes:
    """Return the moments of the split in unix seconds.

    Args:
        config: with the moments.
        log: the interactions, or their times, int64 [N] or counted.

    Raises:
        UserError: a moment that cannot be parsed, or moments in the wrong order.
    """
    times = Moments.of(log[TIMESTAMP].to_numpy() if isinstance(log, pa.Table) else log)
    if config.holdout == "leave_one_out":
        end = times.last + 1
        return SplitTimes(towers_until=end, test_from=end)
    towers_until = moment("split.towers_until", config.towers_until, times)
    test_from = moment("split.test_from", config.test_from, times)
    # Impressions may be later than the log.
    first, end = times.first, times.last + 1
    if not first < towers_until <= test_from or towers_until > end:
        raise UserError(
            f"split.towers_until={config.towers_until} and split.test_from="
            f"{config.test_from} must be in this order, and the first inside the log, "
            f"which runs from {_iso(first)} to {_iso(end - 1)}"
        )
    return SplitTimes(towers_until=towers_until, test_from=test_from)


def validation_from(
    shown: Int64Array | Moments, times: SplitTimes, share: float
) -> int:
    """Return the moment from which the latest share of a ranker's rows validates.

    Rows of one second stay together, so that the share may be a little larger.

    Args:
        shown: times of all impressions, unix seconds, int64 [N] or counted.
        times: the ranker's are those in [towers_until, test_from).
        share: of them, above 0 and below 1.
    """
    inside = Moments.of(shown).between(times.towers_until, times.test_from)
    if not len(inside):
        return times.test_from
    return inside.quantile(1 - share, "higher")


def nothing_between(
    name: str, times: SplitTimes, shown: Moments, log: Moments
) -> UserError:
    """Return the error that a ranker has no impression to learn from.

    Args:
        name: of the impressions.
        times: the moments.
        shown: times of all impressions.
        log: times of the interactions.
    """
    spans = (
        f"{_iso(one.first)} to {_iso(one.last)}" if len(one) else "no time to another"
        for one in (shown, log)
    )
    return UserError(
        f"{name}: no impression lies between split.towers_until and split.test_from "
        f"({_iso(times.towers_until)} and {_iso(times.test_from)}); they run from "
        f"{next(spans)}, the log from {next(spans)}; a ranker learns from impressions "
        "that are later than a part of the log, and is tested on still later ones"
    )


def user_draws(user_ids: pa.Array) -> Float64Array:
    """Return a hash of each user's id in [0, 1), float64 [U]; the same in every run."""
    buckets = [
        int.from_bytes(hashlib.blake2b(str(user).encode(), digest_size=4).digest())
        for user in user_ids.to_pylist()
    ]
    return np.asarray(buckets, np.float64) / 2**32


def moment(option: str, text: str, times: Int64Array | Moments) -> int:
    """Return the unix seconds of a share of the log, an ISO date or unix seconds.

    Args:
        option: that has the text, for the message.
        text: such as `80%`, `2011-09-10` or `1315612800`.
        times: of the log, int64 [N] or counted.

    Raises:
        UserError: another text.
    """
    try:
        if text.endswith("%"):
            return Moments.of(times).quantile(float(text[:-1]) / 100)
        if text.lstrip("-").isdigit():
            return int(text)
        time = datetime.datetime.fromisoformat(text)
        return int(time.replace(tzinfo=time.tzinfo or datetime.UTC).timestamp())
    except ValueError:
        raise UserError(
            f"{option}={text}: write a share such as 80%, an ISO date such as "
            "2011-09-10, or unix seconds"
        ) from None


def _iso(seconds: int) -> str:
    """Return a moment of any year, even where milliseconds were taken for seconds."""
    return f"{np.datetime64(int(seconds), 's')}+00:00"
