"""Past counts of requests: a bundle's totals and the user's own later events."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Float32Array, Int64Array
from learn_torchrec.ranker.features.past import PastColumn, PastPairs
from learn_torchrec.schema import ITEM_ID, USER_ID
from learn_torchrec.serving.snapshot import Past


@dataclass(frozen=True)
class LaterEvents:
    """What the users of some requests did since a bundle's moment.

    Attributes:
        owners: int64 [E], the request of each event.
        item_ids: [E].
        rows: int64 [N], the request of each row.
    """

    owners: Int64Array
    item_ids: pa.Array
    rows: Int64Array


@dataclass(frozen=True)
class PastNow:
    """Stands for a past count where rows are encoded."""

    past: Past
    later: LaterEvents

    @property
    def column(self) -> PastColumn:
        """The column that it adds."""
        return self.past.column

    def of(self, table: pa.Table) -> Float32Array:
        """Return the column's values for the rows of requests, float32 [N].

        The user's own events since then count. What others did, and impressions, are
        those of the bundle.
        """
        later, column = self.later, self.column
        if column.id_column != USER_ID or column.label is not None:
            return self.past.of(table)
        if not isinstance(self.past, PastPairs):
            events = np.bincount(later.owners, minlength=_requests(later))
            return self.past.of(table, events[later.rows])
        did = self.past.codes_of(later.item_ids)
        shown = self.past.codes_of(table[ITEM_ID])
        return self.past.of(table, _pairs(did, later.owners, shown, later.rows))


def _requests(later: LaterEvents) -> int:
    return int(later.rows.max(initial=-1)) + 1


def _pairs(
    did: Int64Array, owners: Int64Array, shown: Int64Array, rows: Int64Array
) -> Int64Array:
    """Count, for each row, its request's events with the row's code."""
    stride = int(max(did.max(initial=-1), shown.max(initial=-1))) + 1
    known = did >= 0
    keys, counts = np.unique(owners[known] * stride + did[known], return_counts=True)
    if not len(keys):
        return np.zeros(len(rows), np.int64)
    wanted = rows * stride + shown
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((keys[place] == wanted) & (shown >= 0), counts[place], 0)
