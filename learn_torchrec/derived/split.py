"""Which actions make up a history, and which times and users test."""

import datetime
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.datasets.split import user_draws
from learn_torchrec.derived.draft import Draft, LogCounts
from learn_torchrec.schema import ACTION

# Actions that say no, and rows of what was merely shown: no history of preferences.
NEGATIVE_ACTIONS = frozenset(
    {
        *("dislike", "unlike", "downvote", "thumbs_down", "hide", "skip", "block"),
        *("report", "return", "refund", "cancel", "remove", "remove_from_cart"),
        *("impression", "exposure", "show", "shown", "display", "no_click"),
    }
)
_EARLIEST_DATE = 10_000_000  # smaller times (April 1970) are positions, not seconds
_FEW_NEW_USERS, _FEW_NEW_SHARE = 50, 0.1  # fewer test users say little
_FEW_USERS = 200  # of more, chance holds some out


def derive_split(draft: Draft, for_ranker: bool) -> None:
    """Derive the split from the actions and times of log and impressions.

    `for_ranker`: whether a ranker learns after the towers, from the impressions.
    """
    _actions(draft)
    draft.respect("split")
    if for_ranker:
        _moments(draft)
    else:
        _holdout(draft)
    draft.respect("split")
    _users(draft)


def _actions(draft: Draft) -> None:
    counts = {
        entry["values"]: entry["counts"]
        for entry in pc.value_counts(draft.dataset.interactions[ACTION]).to_pylist()
    }
    counts = dict(sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0]))))
    wanted = tuple(name for name in counts if name.lower() not in NEGATIVE_ACTIONS)
    if not wanted:
        wanted = tuple(counts)
    total = sum(counts.values())
    shares = ", ".join(f"{name} {n / total:.0%}" for name, n in counts.items())
    reason = f"the log's actions: {shares}"
    if len(wanted) < len(counts):
        reason += "; the others are no sign of interest"
    draft.put("split.actions", wanted, reason)


def _moments(draft: Draft) -> None:
    """Choose the moments so that towers, ranker and test each get a part."""
    dataset = draft.dataset
    times = dataset.times
    shown = np.sort(dataset.impression_times)
    if not len(shown):
        return
    halves = np.quantile(times, [0.5, 0.8], method="lower")
    before, tested = np.searchsorted(shown, halves)
    count = len(shown)
    is_spread = tested - before >= 0.2 * count and count - tested >= 0.1 * count
    if before and is_spread:
        reason = "half of the log for the towers, 30 % for the ranker, 20 % for tests"
        draft.put("split.towers_until", "50%", reason)
        draft.put("split.test_from", "80%", reason)
        return
    # Impressions cover another time than the log: all of them, if much of it is older.
    towers_until = int(shown[0])
    if np.mean(times < towers_until) < 0.1:
        towers_until = int(np.quantile(shown, 0.3, method="lower"))
    towers_until = int(np.clip(towers_until, times.min() + 1, times.max() + 1))
    later = shown[shown >= towers_until]
    if not len(later):
        return
    test_from = int(np.quantile(later, 0.7, method="lower"))
    draft.put(
        "split.towers_until",
        _moment(towers_until),
        f"impressions run from {_moment(shown[0])} to {_moment(shown[-1])}",
    )
    reason = "the last 30 % of the later impressions are the test"
    draft.put("split.test_from", _moment(test_from), reason)


def _holdout(draft: Draft) -> None:
    """Without a ranker, users who were seen before can test the towers, too."""
    if draft.is_set("split.holdout"):
        return
    if draft.dataset.times.max() < _EARLIEST_DATE:
        reason = "times are positions, not dates: a user's last event is the test"
        draft.put("split.holdout", "leave_one_out", reason)
        return
    log = LogCounts.of(draft)
    fewest = draft.run.towers.sampling.min_history + 1
    new_users = int((log.arrived >= fewest).sum())
    users = len(log.known) + len(log.arrived)
    if new_users >= max(_FEW_NEW_USERS, _FEW_NEW_SHARE * users) or not log.both:
        return
    reason = f"only {new_users} of {users} users first appear after split.towers_until"
    draft.put("split.holdout", "time", reason)
    draft.put("split.towers_until", "80%", "the last fifth of the log are targets")


def _users(draft: Draft) -> None:
    """Choose the fewest events so that at least half of the users remain."""
    log = LogCounts.of(draft)
    fewest = draft.run.towers.sampling.min_history + 1
    median = int(np.median(log.known)) if len(log.known) else 0
    chosen = max(fewest, min(10, median))
    reason = f"half of the users have {median} events or more"
    draft.put("split.min_events", chosen, reason)
    draft.respect("split")
    _held_out(draft)


def _held_out(draft: Draft) -> None:
    """Raise the shares of held-out users where a small log would have none of them."""
    split, log, time = draft.run.split, draft.sequences, draft.times().towers_until
    earlier = log.first_at_or_after(time) - log.starts
    fits = earlier >= split.min_events
    if split.holdout == "time":
        fits = (earlier > 0) & (earlier < log.lengths)
        fits &= log.lengths >= split.min_events
    if split.holdout == "leave_one_out" or not 2 <= fits.sum() <= _FEW_USERS:
        return
    draws = user_draws(log.user_ids.filter(pa.array(fits)))
    nearest = {"validation_users": draws.min()}
    if split.holdout == "time":
        nearest["test_users"] = 1 - draws.max()
    shares = {
        "validation_users": split.validation_users,
        "test_users": split.test_users,
    }
    raised = {
        name: math.ceil(1000 * draw + 1) / 1000
        for name, draw in nearest.items()
        if draw >= shares[name]
    }
    if sum((shares | raised).values()) < 1:
        for name, share in raised.items():
            draft.put(
                f"split.{name}",
                share,
                f"less would hold out none of {len(draws)} users",
            )


def _moment(seconds: Any) -> str:
    moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    return moment.isoformat(sep=" ").removesuffix("+00:00").removesuffix(" 00:00:00")
