"""Sequences: every user's events in time order, as jagged arrays."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import BoolArray, Column, Int16Array, Int64Array
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import offsets_of, positions_in
from learn_torchrec.schema import ACTION, TIMESTAMP, USER_ID

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
    """Users and their events, oldest first; memory-mapped arrays stay mapped.

    Attributes:
        user_ids: int64 or string [U].
        offsets: int64 [U + 1]; user u owns events offsets[u] to offsets[u + 1].
        items: int64 [E], rows of the content store.
        times: int64 [E], unix seconds, non-decreasing within a user.
        actions: int16 [E], codes: positions in `action_names`, or NO_ACTION.
        action_names: of the codes.
    """

    user_ids: pa.Array
    offsets: Int64Array
    items: Int64Array
    times: Int64Array
    actions: Int16Array
    action_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def lengths(self) -> Int64Array:
        """Events of each user, int64 [U]."""
        return np.diff(self.offsets)

    def of(self, user: int) -> Int64Array:
        """Return the item rows of one user's events."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def select_users(self, keep: BoolArray) -> "SequenceSet":
        """Return the set with only the users where `keep` [U] is true."""
        return dataclasses.replace(
            self.select_events(np.repeat(keep, self.lengths)),
            user_ids=self.user_ids.filter(pa.array(keep)),
            offsets=offsets_of(self.lengths[keep]),
        )

    def select_events(self, keep: BoolArray) -> "SequenceSet":
        """Return the set with only the events where `keep` [E] is true.

        Users without remaining events stay, with an empty sequence.
        """
        kept = np.add.reduceat(np.r_[keep, False], self.offsets[:-1], dtype=np.int64)
        return dataclasses.replace(
            self,
            offsets=offsets_of(kept * (self.lengths > 0)),
            items=self.items[keep],
            times=self.times[keep],
            actions=self.actions[keep],
        )

    def before(self, time: int) -> "SequenceSet":
        """Return the set with only events strictly before `time`, no empty users."""
        trimmed = self.select_events(self.times < time)
        return trimmed.select_users(trimmed.lengths > 0)

    def without_last(self, count: int) -> "SequenceSet":
        """Return the set without each user's last `count` events.

        Every user must have more than `count`.
        """
        kept = np.repeat(self.lengths - count, self.lengths)
        return self.select_events(positions_in(self.lengths) < kept)

    def first_times(self) -> Int64Array:
        """Time of each user's first event, int64 [U]; no user may be empty."""
        return self.times[self.offsets[:-1]]

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
    users = interactions[USER_ID].filter(wanted).combine_chunks().dictionary_encode()
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
    return SequenceSet(
        user_ids=users.dictionary.take(pa.array(by_id)),
        offsets=offsets_of(lengths),
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
