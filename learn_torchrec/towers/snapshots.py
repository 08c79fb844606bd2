"""The events after which a user's vector is exported.

A vector knows its user's events up to one of them and has that event's time; a lookup
finds the latest strictly before a moment. Fewer vectors are older ones, except where
nobody asks: `as-of-impressions` exports what the impressions will look up, and no more.

Letters: E events, n of them.
"""

import numpy as np

from learn_torchrec.arrays import BoolArray, Int64Array, IntArray
from learn_torchrec.datasets.loading.row_groups import RowSource
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.ids import UNKNOWN, IdIndex, as_ids, refuse_other_type
from learn_torchrec.jagged import first_at_or_after
from learn_torchrec.schema import TIMESTAMP, USER_ID
from learn_torchrec.times import as_seconds
from learn_torchrec.towers.export import AS_OF_IMPRESSIONS, ExportConfig

_DAY = 86_400


def snapshot_events(
    sequences: SequenceSet,
    config: ExportConfig,
    times: SplitTimes,
    since: int | None = None,
    asked: BoolArray | None = None,
) -> Int64Array:
    """Return the events after which a user vector is exported, ascending int64 [n].

    Args:
        sequences: packed.
        config: says which.
        times: the split's moments.
        since: the moment of `config.since`, unix seconds.
        asked: bool [E], from `asked_for`, where `config` says `as-of-impressions`.
    """
    if config.snapshots == AS_OF_IMPRESSIONS:
        if asked is None:
            raise ValueError("say after which events the impressions ask for a vector")
        return np.flatnonzero(asked)
    if config.snapshots == "latest":
        return (sequences.ends - 1)[sequences.lengths > 0]
    if config.snapshots == "last":
        moments = (times.towers_until, times.test_from)
        return np.unique(np.concatenate([_before(sequences, one) for one in moments]))
    is_daily = config.snapshots == "daily"
    # Looked up strictly before a second, only the last vector of one is found.
    return _closing(sequences, sequences.times // (_DAY if is_daily else 1), since)


def asked_for(
    sequences: SequenceSet, shown: RowSource, rank: int = 0, ranks: int = 1
) -> BoolArray:
    """Return whether an impression looks up the vector after each event, bool [E].

    Args:
        sequences: packed.
        shown: the impressions.
        rank: reads its part of the row groups alone.
        ranks: that share them.

    Raises:
        UserError: ids of another type than the log's, or impressions that cannot be
            read.
    """
    index = IdIndex.build(sequences.user_ids, USER_ID)
    asked = np.zeros(len(sequences.times), bool)
    of_users, of_times = (
        f"{shown.name}: column {column!r}" for column in (USER_ID, TIMESTAMP)
    )
    for group in range(rank, len(shown), ranks):
        for piece in shown.pieces(group):
            wanted = as_ids(piece[USER_ID], of_users)
            refuse_other_type(wanted, index.type, of_users, "the log")
            users = index.rows_of(wanted)
            known = users != UNKNOWN
            users, times = users[known], as_seconds(piece[TIMESTAMP], of_times)[known]
            first, end = sequences.starts[users], sequences.ends[users]
            after = first_at_or_after(sequences.times, first, end, times)
            asked[after[after > first] - 1] = True
    return asked


def _before(sequences: SequenceSet, time: int) -> Int64Array:
    """Return the last event before a time of each user who has one."""
    after = sequences.first_at_or_after(time)
    return after[after > sequences.starts] - 1


def _closing(
    sequences: SequenceSet, periods: IntArray, since: int | None
) -> Int64Array:
    """Return the last event of each user and period, of those before `since` the last.

    An older vector is found by nobody if the user's next one is old, too.
    """
    is_last = np.zeros(len(periods), bool)
    is_last[(sequences.ends - 1)[sequences.lengths > 0]] = True
    chosen = np.flatnonzero(
        is_last | np.append(np.diff(periods) != 0, True)[: len(periods)]
    )
    if since is None:
        return chosen
    next_is_new = np.append(sequences.times[chosen][1:] >= since, True)[: len(chosen)]
    return chosen[is_last[chosen] | next_is_new]
