"""Held-out users and events: training, validation and test of the towers."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from learn_torchrec.arrays import Int64Array
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitConfig, SplitTimes, user_draws
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import Jagged, positions_in

_MIN_EVENTS = 4  # two events to learn from, one to validate, one to test


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Users whose later events are to be retrieved from their earlier ones.

    Attributes:
        sequences: the users and all their events.
        last_history: int64 [U], index of the last event of each user's history.
        history: items of the histories.
        targets: items to retrieve.
    """

    sequences: SequenceSet
    last_history: Int64Array
    history: Jagged
    targets: Jagged


@dataclass(frozen=True, kw_only=True)
class TowersSplit:
    """The towers' training users, and the tasks that evaluate them.

    Attributes:
        train: events of the training users.
        cuts: int64 [U], events of each training user before the split time; None where
            there is no split time.
        validation: selects the best epoch.
        test: must not influence any choice.
        known_until: the towers know only events strictly before it, unix seconds.
        all_items: int64 [E], items of the events of all training users, where `train`
            are some of them; see `recently_active`.
    """

    train: SequenceSet
    cuts: Int64Array | None
    validation: RetrievalTask
    test: RetrievalTask
    known_until: int
    all_items: Int64Array | None = None

    @property
    def counted_items(self) -> Int64Array:
        """Items of the events that say how well known each item is, int64 [E]."""
        return self.train.items if self.all_items is None else self.all_items


def split_towers(
    sequences: SequenceSet, times: SplitTimes, split: SplitConfig
) -> TowersSplit:
    """Hold out users or events according to `split.holdout`.

    Raises:
        UserError: one of the three sets has no user with enough events.
    """
    if split.holdout == "new_users":
        return _hold_out_new_users(sequences, times.towers_until, split)
    active = _with_enough(sequences, split)
    if split.holdout == "leave_one_out":
        return _leave_one_out(active, split)
    return _split_by_time(active, times.towers_until, split)


def _hold_out_new_users(
    sequences: SequenceSet, time: int, split: SplitConfig
) -> TowersSplit:
    """Test on users whose first event is at or after `time`; train before it.

    The test set may be empty: only evaluation needs it.
    """
    active = sequences.select_users(sequences.lengths > 0)
    arrived = active.first_times() >= time
    known = _with_enough(active.select_users(~arrived).before(time), split)
    validates = user_draws(known.user_ids) < split.validation_users
    test = _with_enough(active.select_users(arrived), split)
    train, validation = known.select_users(~validates), known.select_users(validates)
    _refuse_empty(split, train, "train", "move split.towers_until later")
    _refuse_empty(split, validation, "validation", "raise split.validation_users")
    return TowersSplit(
        train=train,
        cuts=None,
        validation=retrieval_task(validation, _history_lengths(validation, split)),
        test=retrieval_task(test, _history_lengths(test, split)),
        known_until=time,
    )


def _split_by_time(active: SequenceSet, time: int, split: SplitConfig) -> TowersSplit:
    """The paper's split: disjoint users; `time` splits history from targets."""
    draws = user_draws(active.user_ids)
    validates = draws < split.validation_users
    tests = draws >= 1 - split.test_users
    train = active.select_users(~validates & ~tests)
    _refuse_empty(split, train, "train", "lower split.test_users")
    tasks = []
    for name, chosen in (("validation", validates), ("test", tests)):
        users = active.select_users(chosen)
        cuts = _events_before(users, time)
        has_both = (cuts > 0) & (cuts < users.lengths)
        users = users.select_users(has_both)
        _refuse_empty(
            split, users, name, f"raise split.{name}_users or move split.towers_until"
        )
        tasks.append(retrieval_task(users, cuts[has_both]))
    return TowersSplit(
        train=train,
        cuts=_events_before(train, time),
        validation=tasks[0],
        test=tasks[1],
        known_until=int(active.times.max()) + 1,
    )


def _leave_one_out(active: SequenceSet, split: SplitConfig) -> TowersSplit:
    """All users train; the last event is for test, the one before for validation."""
    users = active.select_users(active.lengths >= _MIN_EVENTS)
    _refuse_empty(split, users, "train", "use users with 4 events or more")
    without_test = users.without_last(1)
    return TowersSplit(
        train=users.without_last(2),
        cuts=None,
        validation=retrieval_task(without_test, without_test.lengths - 1),
        test=retrieval_task(users, users.lengths - 1),
        known_until=int(users.times.max()) + 1,
    )


def recently_active(
    data: TowersSplit, since: int, replay: float, least: int
) -> TowersSplit:
    """Return the training users to learn from after a day: those with new events.

    Args:
        data: none of its training users is without events.
        since: unix seconds; events at or after it are new.
        replay: share of the other users to learn from too, which their ids choose.
        least: users that a batch needs; where there are fewer, those whose last events
            are the latest are added.
    """
    train = data.train
    last = train.times[train.offsets[1:] - 1]
    chosen = (last >= since) | (user_draws(train.user_ids) < replay)
    if chosen.sum() < least:
        latest = np.argsort(-last, kind="stable")
        others = latest[~chosen[latest]]
        chosen[others[: least - chosen.sum()]] = True
    return dataclasses.replace(
        data,
        train=train.select_users(chosen),
        cuts=None if data.cuts is None else data.cuts[chosen],
        all_items=train.items,
    )


def retrieval_task(
    sequences: SequenceSet, history_lengths: Int64Array
) -> RetrievalTask:
    """Split events into the first `history_lengths` [U] of each user, and targets.

    Every user has at least one event on either side.
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
            f"split: no {name} user has split.min_events={split.min_events} events; "
            f"{fix} or lower split.min_events"
        )


def _history_lengths(sequences: SequenceSet, split: SplitConfig) -> Int64Array:
    """Events of each user's history by `split.history_share`, int64 [U]."""
    lengths = sequences.lengths
    return np.clip((lengths * split.history_share).astype(int), 1, lengths - 1)


def _events_before(sequences: SequenceSet, time: int) -> Int64Array:
    """Events of each user strictly before `time`, int64 [U]."""
    earlier = np.r_[0, np.cumsum(sequences.times < time)]
    return np.diff(earlier[sequences.offsets])


def _with_enough(sequences: SequenceSet, split: SplitConfig) -> SequenceSet:
    return sequences.select_users(sequences.lengths >= max(split.min_events, 2))
