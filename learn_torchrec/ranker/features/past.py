"""Past counts and rates of an impression's user and item, from the log before it.

| column | value |
|---|---|
| `user_past_events`, `item_past_events` | log(1 + events of `split.actions`) |
| `user_past_rate`, `item_past_rate` | log odds of the labels of earlier impressions, |
| | less those of all earlier impressions: 0 where nothing is known |

Only what lies strictly before an impression's second counts, so that the rows of one
request do not see each other's labels. Impressions without a label count for nothing.
Labels that are known much later than their impressions make rates too fresh in
training: leave the rates out then.
With several tasks each has its rates, such as `user_past_rate_ctr`: a click and a
purchase are different signals.

A process holds 32 bytes for each event of these actions and, for each task, for each
labelled impression and again for each positive one; see `point_in_time`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import Float32Array
from learn_torchrec.datasets.adapters.base import Dataset
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
    """A column that can be computed.

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


@dataclass(frozen=True)
class PastValues:
    """What a column is computed from.

    Attributes:
        column: to compute.
        events: that it counts; for a rate, the labelled impressions.
        positives: those of them with label 1; None for a count.
    """

    column: PastColumn
    events: PastEvents
    positives: PastEvents | None

    def of(self, table: pa.Table) -> Float32Array:
        """Return the column's values for checked impressions, float32 [N]."""
        ids, times = table[self.column.id_column], table[TIMESTAMP].to_numpy()
        count = self.events.before(ids, times)
        if self.positives is None:
            return np.log1p(count).astype(np.float32)
        yes = self.positives.before(ids, times)
        all_yes = self.positives.all_before(times)
        overall = (all_yes + 1) / (self.events.all_before(times) + 2)
        odds = (yes + _PRIOR_IMPRESSIONS * overall) / (
            count - yes + _PRIOR_IMPRESSIONS * (1 - overall)
        )
        relative = np.log(odds) - np.log(overall / (1 - overall))
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
) -> list[PastValues]:
    """Read what some columns count; of both logs only the columns that are needed.

    Raises:
        UserError: bad interactions or impressions.
    """
    return [
        _events(dataset, column, actions)
        if column.label is None
        else _labels(dataset, column, column.label)
        for column in columns
    ]


def _events(dataset: Dataset, column: PastColumn, actions: Sequence[str]) -> PastValues:
    table = _read(dataset, INTERACTIONS_FILE, [column.id_column, TIMESTAMP, ACTION])
    wanted = pc.is_in(table[ACTION], pa.array(actions, pa.string()))
    events = _past(dataset, INTERACTIONS_FILE, column, table.filter(wanted))
    return PastValues(column, events, None)


def _labels(dataset: Dataset, column: PastColumn, label: str) -> PastValues:
    names = [column.id_column, TIMESTAMP]
    if label in dataset.schema(IMPRESSIONS_FILE).names:
        table = _read(dataset, IMPRESSIONS_FILE, names, label)
        is_one = pc.equal(table[label].cast(pa.float64(), safe=False), 1)
    else:
        table = _read(dataset, IMPRESSIONS_FILE, names).slice(0, 0)
        is_one = pa.array([], pa.bool_())
    events, positives = (
        _past(dataset, IMPRESSIONS_FILE, column, rows)
        for rows in (table, table.filter(is_one))
    )
    return PastValues(column, events, positives)


def _read(
    dataset: Dataset, file: str, names: Sequence[str], label: str | None = None
) -> pa.Table:
    """Return checked columns of a log, and the label of the rows that have one."""
    table = dataset.columns(file, [*names, label] if label else names)
    if label:
        table = table.filter(pc.is_valid(table[label]))
    return dataset.check(file, table, names) if table.num_rows else table


def _past(
    dataset: Dataset, file: str, column: PastColumn, table: pa.Table
) -> PastEvents:
    name = f"{dataset.name(file)}: column {column.id_column!r}"
    times = table[TIMESTAMP].cast(pa.int64()).to_numpy()
    return PastEvents(table[column.id_column], times, name)
