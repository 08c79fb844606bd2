"""Past counts and rates of an impression's user and item, from the log before it.

| column | value |
|---|---|
| `user_past_events`, `item_past_events` | log(1 + events of `split.actions`) |
| `user_past_rate`, `item_past_rate` | log odds of the labels of earlier impressions, |
| | less those of all earlier impressions: 0 where nothing is known |

Only what lies strictly before an impression's second counts, so that the rows of one
request do not see each other's labels. Impressions without a label count for nothing.
With several tasks each has its rates, such as `user_past_rate_ctr`: a click and a
purchase are different signals.

A process holds 32 to 48 bytes for each event of the log, and for each impression and
task; see `point_in_time`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import Float32Array
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading.tables import REQUIRED
from learn_torchrec.datasets.point_in_time import PastEvents
from learn_torchrec.ranker.tasks import TaskConfig
from learn_torchrec.schema import (
    ACTION,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    TIMESTAMP,
    USER_ID,
)

# Impressions that a rate is drawn to the overall rate by.
_PRIOR_IMPRESSIONS = 10.0


@dataclass(frozen=True)
class PastColumn:
    """A column to be computed.

    Attributes:
        name: of the column.
        id_column: whose events count.
        label: of the impressions that a rate is of; None for a count of events.
    """

    name: str
    id_column: str
    label: str | None = None

    @property
    def side(self) -> str:
        """Whose events count, "user" or "item"."""
        return self.id_column.removesuffix("_id")

    def values(self, table: pa.Table, events: PastEvents) -> Float32Array:
        """Return the values for checked impressions, float32 [N]."""
        times = table[TIMESTAMP].to_numpy()
        count, positives = events.before(table[self.id_column], times)
        if self.label is None:
            return np.log1p(count).astype(np.float32)
        all_count, all_positives = events.all_before(times)
        overall = (all_positives + 1) / (all_count + 2)
        yes = positives + _PRIOR_IMPRESSIONS * overall
        no = count - positives + _PRIOR_IMPRESSIONS * (1 - overall)
        relative = np.log(yes / no) - np.log(overall / (1 - overall))
        return relative.astype(np.float32)


def past_columns(tasks: Sequence[TaskConfig]) -> dict[str, PastColumn]:
    """Return the columns that can be computed, by name."""
    sides = (("user", USER_ID), ("item", ITEM_ID))
    found = [PastColumn(f"{side}_past_events", column) for side, column in sides]
    for task in tasks:
        suffix = "" if len(tasks) == 1 else f"_{task.name}"
        found += [
            PastColumn(f"{side}_past_rate{suffix}", column, task.label)
            for side, column in sides
        ]
    return {column.name: column for column in found}


def read_past(
    dataset: Dataset, columns: Iterable[PastColumn], actions: Sequence[str]
) -> list[tuple[PastColumn, PastEvents]]:
    """Read what some columns count; of both logs only the columns that are needed.

    Raises:
        UserError: bad interactions or impressions.
    """
    return [(column, _events(dataset, column, actions)) for column in columns]


def _events(dataset: Dataset, column: PastColumn, actions: Sequence[str]) -> PastEvents:
    file = INTERACTIONS_FILE if column.label is None else IMPRESSIONS_FILE
    marked = ACTION if column.label is None else column.label
    names = [column.id_column, TIMESTAMP, marked]
    table = dataset.columns(file, [n for n in names if n in dataset.schema(file).names])
    if marked not in table.column_names:  # impressions without labels
        table = table.slice(0, 0).append_column(marked, pa.array([], pa.int64()))
    kinds = {name: REQUIRED[file][name] for name in names if name != column.label}
    positives = None
    if column.label is None:
        table = dataset.check(file, table, kinds)
        table = table.filter(pc.is_in(table[ACTION], pa.array(actions, pa.string())))
    else:
        table = table.filter(pc.is_valid(table[column.label]))
        if table.num_rows:
            table = dataset.check(file, table, kinds)
        labels = table[column.label].cast(pa.float64(), safe=False)
        positives = pc.equal(labels, 1).to_numpy()
    return PastEvents(
        table[column.id_column],
        table[TIMESTAMP].to_numpy(),
        positives,
        f"{dataset.name(file)}: column {column.id_column!r}",
    )
