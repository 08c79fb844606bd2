"""Held-out users and events: what the towers learn from and are judged on."""

from dataclasses import dataclass

import numpy as np

from learn_torchrec.arrays import Int64Array
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitConfig, SplitTimes, user_draws
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import Jagged, positions_in

_LEAST_LEAVE_ONE_OUT = 4  # two events to learn from, one to validate, one to test


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Users whose later events are to be found from their earlier ones.

    Attributes:
        sequences: the users and all their events.
        last_history: int64 [U], the event index that closes each user's history.
        history: the history's items.
        targets: the items to find.
    """

    sequences: SequenceSet
    last_history: Int64Array
    history: Jagged
    targets: Jagged


@dataclass(frozen=True, kw_only=True)
class TowersSplit:
    """What the towers learn from, and what they are judged on.

    Attributes:
        train: the training users' events.
        cuts: int64 [U], each training user's events before the moment that parts
            history from targets; None where there is no such moment.
        validation: to choose the best epoch by.
        test: what no choice may look at.
        known_until: the towers know events strictly before it, unix seconds.
    """

    train: SequenceSet
    cuts: Int64Array | None
    validation: RetrievalTask
    test: RetrievalTask
    known_until: int


def split_towers(
    sequences: SequenceSet, times: SplitTimes, split: SplitConfig
) -> TowersSplit:
    """Hold users or events out as `split.holdout` says.

    Raises:
        UserError: one of the three sets has no user with enough events.
    """
    if split.holdout == "new_users":
        return _hold_out_new_users(sequences, times.towers_until, split)
    active = _with_enough(sequences, split)
    if split.holdout == "leave_one_out":
        return _leave_one_out(active, split)
    return _split_at_a_moment(active, times.towers_until, split)


def _hold_out_new_users(
    sequences: SequenceSet, moment: int, split: SplitConfig
) -> TowersSplit:
    """Test on users who first appear at or after `moment`; know nothing as late.

    There may be none: only an evaluation needs them.
    """
    active = sequences.select_users(sequences.lengths > 0)
    arrived = active.first_times() >= moment
    known = _with_enough(active.select_users(~arrived).before(moment), split)
    validates = user_draws(known.user_ids) < split.validation_users
    test = _with_enough(active.select_users(arrived), split)
    train, validation = known.select_users(~validates), known.select_users(validates)
    _refuse_empty(split, train, "train", "move split.towers_until later")
    _refuse_empty(split, validation, "validation", "raise split.validation_users")
    return TowersSplit(
        train=train,
        cuts=None,
        validation=retrieval_task(validation, _shares(validation, split)),
        test=retrieval_task(test, _shares(test, split)),
        known_until=moment,
    )


def _split_at_a_moment(
    active: SequenceSet, moment: int, split: SplitConfig
) -> TowersSplit:
    """The paper's split: users are disjoint, `moment` parts history from targets."""
    draws = user_draws(active.user_ids)
    validates = draws < split.validation_users
    tests = draws >= 1 - split.test_users
    train = active.select_users(~validates & ~tests)
    _refuse_empty(split, train, "train", "lower split.test_users")
    tasks = []
    for name, chosen in (("validation", validates), ("test", tests)):
        users = active.select_users(chosen)
        cuts = _events_before(users, moment)
        has_both = (cuts > 0) & (cuts < users.lengths)
        users = users.select_users(has_both)
        _refuse_empty(
            split, users, name, f"raise split.{name}_users or move split.towers_until"
        )
        tasks.append(retrieval_task(users, cuts[has_both]))
    return TowersSplit(
        train=train,
        cuts=_events_before(train, moment),
        validation=tasks[0],
        test=tasks[1],
        known_until=int(active.times.max()) + 1,
    )


def _leave_one_out(active: SequenceSet, split: SplitConfig) -> TowersSplit:
    """All users train; the last event is the test, the one before the validation."""
    users = active.select_users(active.lengths >= _LEAST_LEAVE_ONE_OUT)
    _refuse_empty(split, users, "train", "use users with 4 events or more")
    without_test = users.without_last(1)
    return TowersSplit(
        train=users.without_last(2),
        cuts=None,
        validation=retrieval_task(without_test, without_test.lengths - 1),
        test=retrieval_task(users, users.lengths - 1),
        known_until=int(users.times.max()) + 1,
    )


def retrieval_task(
    sequences: SequenceSet, history_lengths: Int64Array
) -> RetrievalTask:
    """Make the first `history_lengths` [U] events of users history, the rest targets.

    Args:
        sequences: U users with at least 2 events.
        history_lengths: int64 [U], at least 1 and below the user's events.
    """
    lengths = sequences.lengths
    in_history = positions_in(lengths) < np.repeat(history_lengths, lengths)
    return RetrievalTask(
        sequences=sequences,
        last_history=sequences.offsets[:-1] + history_lengths - 1,
        history=Jagged.from_lengths(sequences.items[in_history], history_lengths),
        targets=Jagged.from_lengths(
            sequences.items[~in_history], lengths - history_lengths
        ),
    )


def _refuse_empty(split: SplitConfig, users: SequenceSet, name: str, fix: str) -> None:
    if len(users) == 0:
        raise UserError(
            f"split: no {name} user has split.min_events={split.min_events} "
            f"events; {fix} or lower split.min_events"
        )


def _shares(sequences: SequenceSet, split: SplitConfig) -> Int64Array:
    """Events of each user that are history, by `split.history_share`, int64 [U]."""
    lengths = sequences.lengths
    return np.clip((lengths * split.history_share).astype(int), 1, lengths - 1)


def _events_before(sequences: SequenceSet, moment: int) -> Int64Array:
    """Events of each user strictly before `moment`, int64 [U]."""
    earlier = np.r_[0, np.cumsum(sequences.times < moment)]
    return np.diff(earlier[sequences.offsets])


def _with_enough(sequences: SequenceSet, split: SplitConfig) -> SequenceSet:
    return sequences.select_users(sequences.lengths >= max(split.min_events, 2))
