"""Sequences: every user's events in time order, as one jagged set of item rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.schema import ACTION, ITEM_ID, TIMESTAMP, USER_ID

Ints = NDArray[np.int64]

# An optional column of interactions: times finer than seconds, int64 of any unit.
TICK = "_tick"


@dataclass(frozen=True, kw_only=True)
class SequenceSet:
    """Users and their events, oldest first.

    Attributes:
        user_ids: int64 or string [U].
        offsets: int64 [U + 1]; user u owns events offsets[u] to offsets[u + 1].
        items: int64 [E], rows of the content store.
        times: int64 [E], unix seconds, non-decreasing within a user.
    """

    user_ids: pa.Array
    offsets: Ints
    items: Ints
    times: Ints

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def lengths(self) -> Ints:
        """Events of each user, int64 [U]."""
        return np.diff(self.offsets)

    def of(self, user: int) -> Ints:
        """Return the item rows of one user's events."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def select_users(self, keep: NDArray[np.bool_]) -> "SequenceSet":
        """Return the set with only the users where `keep` [U] is true."""
        events = np.repeat(keep, self.lengths)
        return SequenceSet(
            user_ids=self.user_ids.filter(pa.array(keep)),
            offsets=np.r_[0, np.cumsum(self.lengths[keep])],
            items=self.items[events],
            times=self.times[events],
        )

    def select_events(self, keep: NDArray[np.bool_]) -> "SequenceSet":
        """Return the set with only the events where `keep` [E] is true.

        Users without any left stay, with an empty sequence.
        """
        kept = np.add.reduceat(np.r_[keep, False], self.offsets[:-1], dtype=np.int64)
        return SequenceSet(
            user_ids=self.user_ids,
            offsets=np.r_[0, np.cumsum(kept * (self.lengths > 0))],
            items=self.items[keep],
            times=self.times[keep],
        )

    def before(self, time: int) -> "SequenceSet":
        """Return the set with only events strictly before `time`, no empty users."""
        trimmed = self.select_events(self.times < time)
        return trimmed.select_users(trimmed.lengths > 0)

    def without_last(self, count: int) -> "SequenceSet":
        """Return the set without each user's last `count` events.

        Every user must have more than `count`.
        """
        lengths = self.lengths
        position = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], lengths)
        keep = position < np.repeat(lengths - count, lengths)
        return SequenceSet(
            user_ids=self.user_ids,
            offsets=np.r_[0, np.cumsum(lengths - count)],
            items=self.items[keep],
            times=self.times[keep],
        )

    def first_times(self) -> Ints:
        """Time of each user's first event, int64 [U]; no user may be empty."""
        return self.times[self.offsets[:-1]]


def build_sequences(
    interactions: pa.Table, item_rows: Ints, actions: Sequence[str]
) -> SequenceSet:
    """Sort the wanted interactions by user and time.

    Events of equal user and time keep the order of the log. Those of one second are
    sorted by `TICK`, where the log has it.

    Args:
        interactions: `user_id`, `timestamp`, `action` and perhaps `TICK`.
        item_rows: int64 [N], the content row of each interaction's item.
        actions: the actions that count; other rows are left out.

    Raises:
        UserError: no interaction has one of the actions.
    """
    wanted = pc.is_in(interactions[ACTION], value_set=pa.array(actions))
    refuse_unknown_actions(actions, pc.unique(interactions[ACTION]).to_pylist())
    mask = wanted.to_numpy(zero_copy_only=False)
    users = interactions[USER_ID].filter(wanted).combine_chunks().dictionary_encode()
    codes = users.indices.to_numpy().astype(np.int64)
    times = interactions[TIMESTAMP].to_numpy()[mask]
    has_ticks = TICK in interactions.column_names
    ticks = interactions[TICK].to_numpy()[mask] if has_ticks else times
    # Users in the order of their ids, so that the set does not depend on the log's.
    ranks = np.empty(len(users.dictionary), np.int64)
    by_id = pc.sort_indices(users.dictionary).to_numpy()
    ranks[by_id] = np.arange(len(by_id))
    order = np.lexsort((ticks, ranks[codes]))
    lengths = np.bincount(ranks[codes], minlength=len(by_id))
    return SequenceSet(
        user_ids=users.dictionary.take(pa.array(by_id)),
        offsets=np.r_[0, np.cumsum(lengths)],
        items=item_rows[mask][order],
        times=times[order],
    )


def refuse_unknown_actions(actions: Sequence[str], present: Sequence[str]) -> None:
    """Refuse actions of which the log has none.

    Raises:
        UserError: none of `actions` is `present`.
    """
    if not set(actions) & set(present):
        raise UserError(
            f"split.actions={','.join(actions)}: no interaction has such an action; "
            f"the log has: {', '.join(map(str, present[:8]))}"
        )


def item_rows(interactions: pa.Table, store: ContentStore) -> Ints:
    """Return the content row of every interaction's item.

    Raises:
        UserError: an item that the content store does not hold.
    """
    rows = store.rows_of(interactions[ITEM_ID])
    if len(rows) and rows.min() < 0:
        row = int(np.argmin(rows))
        raise UserError(
            f"{store.directory}: has no content vector of item "
            f"{interactions[ITEM_ID][row].as_py()!r}, which row {row} of the "
            "interactions names; encode the items again"
        )
    return rows
