"""Held-out users and events: training, validation and test of the towers."""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np

from learn_torchrec.arrays import BoolArray, Int64Array, UInt64Array
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitConfig, SplitTimes, user_draws
from learn_torchrec.errors import UserError
from learn_torchrec.ids import hash_ids
from learn_torchrec.jagged import Jagged, spread

_MIN_EVENTS = 4  # two events to learn from, one to validate, one to test


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Users whose later events are to be retrieved from their earlier ones.

    Events are read when they are asked for: a training has no use for the test's.

    Attributes:
        sequences: the users and all their events.
        history_lengths: int64 [U], the first events of each user that are its history;
            there is at least one, and one more event.
    """

    sequences: SequenceSet
    history_lengths: Int64Array

    @property
    def last_history(self) -> Int64Array:
        """Index of the last event of each user's history, int64 [U]."""
        return self.sequences.starts + self.history_lengths - 1

    @functools.cached_property
    def history(self) -> Jagged:
        """Items of the histories."""
        return self._items(self.sequences.starts, self.history_lengths)

    @functools.cached_property
    def targets(self) -> Jagged:
        """Items to retrieve."""
        starts = self.last_history + 1
        return self._items(starts, self.sequences.ends - starts)

    def sample(self, most: int) -> "RetrievalTask":
        """Return the task of up to `most` users, evenly spaced."""
        count = len(self.sequences)
        keep = np.zeros(count, bool)
        keep[np.linspace(0, count - 1, min(most, count)).astype(np.int64)] = True
        return self.where(keep)

    def where(self, keep: BoolArray) -> "RetrievalTask":
        """Return the task of the users where `keep` [U] is true."""
        return RetrievalTask(
            sequences=self.sequences.select_users(keep),
            history_lengths=self.history_lengths[keep],
        )

    def _items(self, starts: Int64Array, lengths: Int64Array) -> Jagged:
        events, offsets = spread(starts, lengths)
        return Jagged(self.sequences.items[events].astype(np.int64), offsets)


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
        all_train: events of all training users, where `train` are some of them; see
            `recently_active`.
        held_out_from: time of the first event to retrieve, unix seconds.
    """

    train: SequenceSet
    cuts: Int64Array | None
    validation: RetrievalTask
    test: RetrievalTask
    known_until: int
    all_train: SequenceSet | None = None
    held_out_from: int | None = None

    @property
    def counted(self) -> SequenceSet:
        """Events that say how well known each item is."""
        return self.train if self.all_train is None else self.all_train


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
        validation=_by_share(validation, split),
        test=_by_share(test, split),
        known_until=time,
        held_out_from=time,
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
        tasks.append(RetrievalTask(sequences=users, history_lengths=cuts[has_both]))
    return TowersSplit(
        train=train,
        cuts=_events_before(train, time),
        validation=tasks[0],
        test=tasks[1],
        known_until=_known_until(active),
        held_out_from=time,
    )


def _leave_one_out(active: SequenceSet, split: SplitConfig) -> TowersSplit:
    """All users train; the last event is for test, the one before for validation."""
    users = active.select_users(active.lengths >= _MIN_EVENTS)
    _refuse_empty(split, users, "train", "use users with 4 events or more")
    without_test = users.without_last(1)
    return TowersSplit(
        train=users.without_last(2),
        cuts=None,
        validation=_all_but_last(without_test),
        test=_all_but_last(users),
        known_until=_known_until(users),
        held_out_from=int(users.times[users.ends - 2].min()),
    )


def with_share_of_users(data: TowersSplit, share: float) -> TowersSplit:
    """Return the training users whose ids draw the lowest numbers, at least one.

    The towers know nothing of the others; who validates and tests stays the same.
    """
    if share == 1:
        return data
    draws = user_draws(data.train.user_ids)
    wanted = max(1, round(share * len(draws)))
    chosen = draws <= np.sort(draws)[wanted - 1]
    return dataclasses.replace(
        data,
        train=data.train.select_users(chosen),
        cuts=None if data.cuts is None else data.cuts[chosen],
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
    last = train.times[train.ends - 1]
    chosen = (last >= since) | (user_draws(train.user_ids) < replay)
    if chosen.sum() < least:
        latest = np.argsort(-last, kind="stable")
        others = latest[~chosen[latest]]
        chosen[others[: least - chosen.sum()]] = True
    return dataclasses.replace(
        data,
        train=train.select_users(chosen),
        cuts=None if data.cuts is None else data.cuts[chosen],
        all_train=train,
    )


def _all_but_last(users: SequenceSet) -> RetrievalTask:
    return RetrievalTask(sequences=users, history_lengths=users.lengths - 1)


def _by_share(users: SequenceSet, split: SplitConfig) -> RetrievalTask:
    """Let `split.history_share` of each user's events be the history."""
    lengths = users.lengths
    history = np.clip((lengths * split.history_share).astype(int), 1, lengths - 1)
    return RetrievalTask(sequences=users, history_lengths=history)


def _known_until(users: SequenceSet) -> int:
    """Return a second after the last event; no user may be empty."""
    return int(users.times[users.ends - 1].max()) + 1


def only_unknown_users(task: RetrievalTask, trained: UInt64Array) -> RetrievalTask:
    """Return the task without users that towers were trained on.

    `trained` are the sorted hashes of their ids, see `hash_ids`.
    """
    is_known = np.isin(hash_ids(task.sequences.user_ids), trained)
    return task.where(~is_known)


def _refuse_empty(split: SplitConfig, users: SequenceSet, name: str, fix: str) -> None:
    if len(users) == 0:
        raise UserError(
            f"split: no {name} user has split.min_events={split.min_events} events; "
            f"{fix} or lower split.min_events"
        )


def _events_before(sequences: SequenceSet, time: int) -> Int64Array:
    """Events of each user strictly before `time`, int64 [U]."""
    return sequences.first_at_or_after(time) - sequences.starts


def _with_enough(sequences: SequenceSet, split: SplitConfig) -> SequenceSet:
    return sequences.select_users(sequences.lengths >= max(split.min_events, 2))
