"""Fixed rows of a bundle: the latest impressions, moved to the bundle's moment.

At that moment the training data and the bundle know the same of the past, so that
every way to score them must agree. They are stored in the bundle.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.errors import UserError
from learn_torchrec.schema import IMPRESSIONS_FILE, ITEM_ID, TIMESTAMP, USER_ID
from learn_torchrec.serving.request import RankRequest

ROWS_FILE = "parity.parquet"


def latest_impressions(
    dataset: Dataset, columns: Sequence[str], optional: Sequence[str], count: int
) -> pa.Table:
    """Return the latest impressions, at most `count`.

    `columns` are those besides ids and time, `optional` those that may be missing.

    Raises:
        UserError: there are none, or they are bad.
    """
    times = np.sort(dataset.impression_times)
    if not len(times):
        name = dataset.name(IMPRESSIONS_FILE)
        raise UserError(f"{name}: no impression to compare scores on; give some")
    first = int(times[-min(count, len(times))])
    source = dataset.impressions_between(first)
    pieces = [piece for n in range(len(source)) for piece in source.pieces(n)]
    table = pa.concat_tables(pieces)
    known = [name for name in optional if name in table.column_names]
    names = dict.fromkeys([USER_ID, ITEM_ID, TIMESTAMP, *columns, *known])
    table = table.select(list(names)).sort_by(TIMESTAMP)
    return table.slice(max(0, table.num_rows - count))


def at_moment(rows: pa.Table, time: int) -> pa.Table:
    """Return impressions as if they were made at `time`, ordered by user."""
    moved = pa.array(np.full(rows.num_rows, time))
    place = rows.column_names.index(TIMESTAMP)
    return rows.set_column(place, TIMESTAMP, moved).sort_by(USER_ID)


def requests_of(rows: pa.Table, context: Sequence[str]) -> list[RankRequest]:
    """Return stored rows as requests, one for each user.

    Scores of the requests, one after another, are those of the rows.
    """
    users = rows[USER_ID].to_pylist()
    starts = [n for n, user in enumerate(users) if n == 0 or user != users[n - 1]]
    columns = {name: rows[name].to_pylist() for name in context}
    items, times = rows[ITEM_ID].to_pylist(), rows[TIMESTAMP].to_pylist()
    return [
        RankRequest(
            user_id=users[start],
            item_ids=items[start:end],
            timestamp=times[start],
            context={name: values[start:end] for name, values in columns.items()},
        )
        for start, end in zip(starts, [*starts[1:], len(users)], strict=True)
    ]
