"""Sequences: every user's events in time order, as ranges of shared arrays."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import (
    BoolArray,
    Column,
    Int16Array,
    Int64Array,
    IntArray,
    joined,
)
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import first_at_or_after, offsets_of, spread
from learn_torchrec.schema import ACTION, TIMESTAMP, USER_ID

_EVENTS_IN_BLOCK = 1 << 24

NO_ACTION = -1  # the code of an unknown action, and of an item without an event

# An optional column of interactions: times finer than seconds, int64 of any unit.
TICK = "_tick"


class ItemRows(Protocol):
    """What numbers the items: a content store, or the item table itself."""

    @property
    def directory(self) -> Path:
        """Where the items are, for messages."""

    def rows_of(self, ids: Column) -> Int64Array:
        """Return the row of every id, int64 [n]; -1 for null and unknown ids."""


@dataclass(frozen=True, kw_only=True)
class SequenceSet:
    """Users and their events, oldest first: each user owns a range of shared arrays.

    Selecting users, or the first events of each, copies no events, so that
    memory-mapped arrays stay mapped and are shared by the ranks of a host.

    Letters: U users, E events of all arrays, V events of these users.

    Attributes:
        user_ids: int64 or string [U].
        starts: int64 [U], ascending, the first event of each user.
        lengths: int64 [U], events of each user; ranges do not overlap.
        items: int32 or int64 [E], rows of the content store.
        times: int32 or int64 [E], unix seconds, non-decreasing within a user.
        actions: int16 [E], codes: positions in `action_names`, or NO_ACTION.
        action_names: of the codes.
    """

    user_ids: pa.Array
    starts: Int64Array
    lengths: Int64Array
    items: IntArray
    times: IntArray
    actions: Int16Array
    action_names: tuple[str, ...]

    @classmethod
    def of_offsets(cls, offsets: Int64Array, **columns: Any) -> Self:
        """Return a packed set, where user u owns events offsets[u] to offsets[u + 1].

        Args:
            offsets: int64 [U + 1].
            columns: the other attributes.
        """
        return cls(starts=offsets[:-1], lengths=np.diff(offsets), **columns)

    def __len__(self) -> int:
        return len(self.user_ids)

    @functools.cached_property
    def num_events(self) -> int:
        """V."""
        return int(self.lengths.sum())

    @property
    def ends(self) -> Int64Array:
        """One past the last event of each user, int64 [U]."""
        return self.starts + self.lengths

    @property
    def offsets(self) -> Int64Array:
        """Offsets of the users' events in a packed set, int64 [U + 1]."""
        if not self._is_packed:
            raise ValueError("events of other users lie between; see `packed`")
        return offsets_of(self.lengths)

    @functools.cached_property
    def _is_packed(self) -> bool:
        if self.num_events != len(self.items):
            return False
        has_events = self.lengths > 0
        return bool((offsets_of(self.lengths)[:-1] == self.starts)[has_events].all())

    def of(self, user: int) -> IntArray:
        """Return the item rows of one user's events."""
        return self.items[self.starts[user] :][: self.lengths[user]]

    def events(self) -> Int64Array:
        """Return the indices of these users' events, ascending int64 [V]."""
        return spread(self.starts, self.lengths)[0]

    def owners(self, events: Int64Array) -> Int64Array:
        """Return the user of each of some of these users' events, int64 [n]."""
        has_events = np.flatnonzero(self.lengths > 0)
        found = np.searchsorted(self.starts[has_events], events, side="right") - 1
        return has_events[found]

    def packed(self) -> "SequenceSet":
        """Return these users' events alone: a copy, if others lie between them."""
        return self if self._is_packed else self.select_events(self.events())

    def select_users(self, keep: BoolArray) -> "SequenceSet":
        """Return the set with only the users where `keep` [U] is true."""
        return dataclasses.replace(
            self,
            user_ids=self.user_ids.filter(pa.array(keep)),
            starts=self.starts[keep],
            lengths=self.lengths[keep],
        )

    def select_events(self, events: Int64Array) -> "SequenceSet":
        """Return a packed copy with only some of the events, ascending int64 [n].

        Users without remaining events stay, with an empty sequence.
        """
        before = np.searchsorted(events, self.starts)
        lengths = np.searchsorted(events, self.ends) - before
        return dataclasses.replace(
            self,
            starts=offsets_of(lengths)[:-1],
            lengths=lengths,
            items=self.items[events],
            times=self.times[events],
            actions=self.actions[events],
        )

    def first_at_or_after(self, time: int) -> Int64Array:
        """Return each user's first event at or after `time`, or its end, int64 [U]."""
        wanted = np.full(len(self), time)
        return first_at_or_after(self.times, self.starts, self.ends, wanted)

    def before(self, time: int) -> "SequenceSet":
        """Return the set with only events strictly before `time`, no empty users."""
        lengths = self.first_at_or_after(time) - self.starts
        trimmed = dataclasses.replace(self, lengths=lengths)
        return trimmed.select_users(lengths > 0)

    def without_last(self, count: int) -> "SequenceSet":
        """Return the set without each user's last `count` events.

        Every user must have more than `count`.
        """
        return dataclasses.replace(self, lengths=self.lengths - count)

    def first_times(self) -> IntArray:
        """Time of each user's first event, [U]; no user may be empty."""
        return self.times[self.starts]

    def item_counts(self, num_items: int) -> Int64Array:
        """Return the number of events of each item row, int64 [num_items].

        Events are read in blocks, so that a memory-mapped log is not held in memory.
        """
        counts = np.zeros(num_items, np.int64)
        ends = offsets_of(self.lengths)
        blocks = np.searchsorted(ends, np.arange(0, self.num_events, _EVENTS_IN_BLOCK))
        for first, last in itertools.pairwise(np.r_[blocks, len(self)]):
            events, _ = spread(self.starts[first:last], self.lengths[first:last])
            counts += np.bincount(self.items[events], minlength=num_items)
        return counts

    def with_action_names(self, names: Sequence[str]) -> "SequenceSet":
        """Return the set with codes that are positions in `names`.

        A model uses the codes of its training; another data set may order the same
        actions differently. Actions that are not in `names` get NO_ACTION.
        """
        names = tuple(names)
        if names == self.action_names:
            return self
        code_of = {name: code for code, name in enumerate(names)}
        # NO_ACTION, -1, selects the last entry.
        codes = [code_of.get(name, NO_ACTION) for name in self.action_names]
        recoded = np.array([*codes, NO_ACTION], np.int16)[self.actions]
        return dataclasses.replace(self, actions=recoded, action_names=names)


def build_sequences(
    interactions: pa.Table, item_rows: Int64Array, actions: Sequence[str]
) -> SequenceSet:
    """Sort the wanted interactions by user and time.

    Events of equal user and time keep the log's order, or that of `TICK` if present.

    Args:
        interactions: `user_id`, `timestamp`, `action` and perhaps `TICK`.
        item_rows: int64 [N], the content row of each interaction's item.
        actions: the wanted actions, in the order of their codes.

    Raises:
        UserError: no interaction has one of the actions.
    """
    refuse_unknown_actions(actions, pc.unique(interactions[ACTION]).to_pylist())
    found = pc.index_in(interactions[ACTION], value_set=pa.array(actions))
    wanted = found.is_valid()
    mask = wanted.to_numpy(zero_copy_only=False)
    users = joined(interactions[USER_ID].filter(wanted)).dictionary_encode()
    codes = users.indices.to_numpy().astype(np.int64)
    times = interactions[TIMESTAMP].to_numpy()[mask]
    has_ticks = TICK in interactions.column_names
    ticks = interactions[TICK].to_numpy()[mask] if has_ticks else times
    # Users are sorted by id, so that their order does not depend on the log.
    ranks = np.empty(len(users.dictionary), np.int64)
    by_id = pc.sort_indices(users.dictionary).to_numpy()
    ranks[by_id] = np.arange(len(by_id))
    order = np.lexsort((ticks, ranks[codes]))
    lengths = np.bincount(ranks[codes], minlength=len(by_id))
    return SequenceSet.of_offsets(
        offsets_of(lengths),
        user_ids=users.dictionary.take(pa.array(by_id)),
        items=item_rows[mask][order],
        times=times[order],
        actions=found.filter(wanted).to_numpy().astype(np.int16)[order],
        action_names=tuple(actions),
    )


def refuse_unknown_actions(
    actions: Sequence[str], present: Sequence[str], option: str = "split.actions="
) -> None:
    """Check that the log has at least one of the actions, which `option` names.

    Raises:
        UserError: none of `actions` is `present`.
    """
    if not set(actions) & set(present):
        raise UserError(
            f"{option}{','.join(actions)}: no interaction has such an action; "
            f"name some of {', '.join(map(str, present[:8]))}"
        )
