"""Users' histories before each impression, as jagged rows of the item vectors.

Letters: U users, E events, B rows of a batch, V history items of a batch, M distinct
items of a batch.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Int64Array, IntArray
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.ids import UNKNOWN, IdIndex, as_ids, refuse_other_type
from learn_torchrec.jagged import (
    first_at_or_after,
    offsets_of,
    positions_in,
    spread,
)
from learn_torchrec.schema import USER_ID

# Of one history, so that a user with a million events costs no more than others.
_MOST_EVENTS = 20_000


@dataclass(frozen=True, kw_only=True)
class EventTimes:
    """Where a user's events before a moment are.

    Attributes:
        index: of the U user ids.
        offsets: int64 [U + 1] of the users' events.
        times: integers [E], unix seconds, non-decreasing within a user.
    """

    index: IdIndex
    offsets: Int64Array
    times: IntArray

    def before(self, user_ids: pa.Array, times: Int64Array, source: str) -> Int64Array:
        """Return the first event of each user, and the first at or after a time.

        Args:
            user_ids: [n] integers or strings.
            times: int64 [n], unix seconds.
            source: of the ids, for messages.

        Returns:
            int64 [n, 2]; equal where there is no event before.

        Raises:
            UserError: ids of another type than the log's.
        """
        name = f"{source}: column {USER_ID!r}"
        wanted = as_ids(user_ids, name)
        refuse_other_type(wanted, self.index.type, name, "the log")
        users = self.index.rows_of(wanted)
        bounds = np.zeros((len(wanted), 2), np.int64)
        known = np.flatnonzero(users != UNKNOWN)
        first, end = self.offsets[users[known]], self.offsets[users[known] + 1]
        bounds[known, 0] = first
        bounds[known, 1] = first_at_or_after(self.times, first, end, times[known])
        return bounds


@dataclass(frozen=True, kw_only=True)
class JaggedHistory:
    """Histories of rows: each item once, the latest last.

    Attributes:
        items: int64 [V], rows of the item vectors.
        offsets: int64 [B + 1].
        counts: int64 [V], events of the item so far.
        times: int64 [V], of the item's last event so far, unix seconds.
    """

    items: Int64Array
    offsets: Int64Array
    counts: Int64Array
    times: Int64Array


@dataclass(frozen=True, kw_only=True)
class Histories:
    """All users' events, and which of them repeat an item.

    Attributes:
        events: the users' events in time.
        items: integers [E], rows of the item vectors.
        next_of_item: int64 [E], the user's next event with the same item; E if none.
        counts: int64 [E], the user's events with this item up to this one.
    """

    events: EventTimes
    items: IntArray
    next_of_item: Int64Array
    counts: Int64Array

    @classmethod
    def build(cls, sequences: SequenceSet) -> Self:
        """Prepare the histories of sequences; sorts their events once by item."""
        sequences = sequences.packed()
        users = np.repeat(np.arange(len(sequences)), sequences.lengths)
        order = np.lexsort((sequences.items, users))  # stable: by time within both
        keys = np.stack([users[order], sequences.items[order]])
        repeats = np.r_[False, (keys[:, 1:] == keys[:, :-1]).all(axis=0)]
        starts = np.flatnonzero(~repeats)
        counts = np.empty(len(order), np.int64)
        counts[order] = 1 + positions_in(np.diff(np.r_[starts, len(order)]))
        following = np.full(len(order), len(order))
        again = np.flatnonzero(repeats)
        following[order[again - 1]] = order[again]
        return cls(
            events=EventTimes(
                index=IdIndex.build(sequences.user_ids, USER_ID),
                offsets=sequences.offsets,
                times=sequences.times,
            ),
            items=sequences.items,
            next_of_item=following,
            counts=counts,
        )

    def gather(self, bounds: Int64Array, length: int) -> JaggedHistory:
        """Return the last `length` distinct items of each history.

        `bounds` are int64 [B, 2], from `EventTimes.before`. Of a longer history only
        the last 20,000 events are looked through; counts are those of all.
        """
        ends = bounds[:, 1]
        starts = np.maximum(bounds[:, 0], ends - _MOST_EVENTS)
        lengths = ends - starts
        events, offsets = spread(starts, lengths)
        # The last event of an item before the row: the next one is not before it.
        is_last = self.next_of_item[events] >= np.repeat(ends, lengths)
        if not is_last.all():
            lengths = np.diff(np.r_[0, np.cumsum(is_last)][offsets])
            events = events[is_last]
        if lengths.max(initial=0) > length:
            from_end = np.repeat(lengths, lengths) - positions_in(lengths)
            events, lengths = events[from_end <= length], np.minimum(lengths, length)
        return JaggedHistory(
            items=self.items[events].astype(np.int64),
            offsets=offsets_of(lengths),
            counts=self.counts[events],
            times=self.events.times[events].astype(np.int64),
        )
