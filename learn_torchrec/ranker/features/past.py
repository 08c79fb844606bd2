"""Past counts and rates of an impression's user and item, from the log before it.

| column | value |
|---|---|
| `user_past_events`, `item_past_events` | log(1 + events of `split.actions`) |
| `user_item_past_events` | the same, of the user with the item |
| `user_C_past_events` | the same, of the user with items that share the item's value |
| | of the catalogue's column C |
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

from learn_torchrec.arrays import Column, Float32Array, Int64Array, joined
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.point_in_time import PastEvents, PastTotals
from learn_torchrec.ids import UNKNOWN, IdIndex, as_ids, refuse_other_type
from learn_torchrec.ranker.tasks import TaskConfig
from learn_torchrec.schema import (
    ACTION,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
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
        shared: the user's events count with items that share this column's value;
            `item_id` for the item itself. None for all.
    """

    name: str
    id_column: str
    label: str | None = None
    shared: str | None = None

    @property
    def side(self) -> str:
        """Whose events count, "user" or "item", perhaps with what."""
        side = self.id_column.removesuffix("_id")
        if self.shared == ITEM_ID:
            return f"{side} with the item"
        return f"{side} with its {self.shared}" if self.shared else side


@dataclass(frozen=True)
class PastValues:
    """What a column is computed from.

    Attributes:
        column: to compute.
        events: that it counts; for a rate, the labelled impressions.
        positives: those of them with label 1; None for a count.
    """

    column: PastColumn
    events: PastEvents | PastTotals
    positives: PastEvents | PastTotals | None

    def of(self, table: pa.Table, later: Int64Array | int = 0) -> Float32Array:
        """Return the column's values for checked impressions, float32 [N].

        `later` are events to count that `events` lacks, [N].
        """
        ids, times = table[self.column.id_column], table[TIMESTAMP].to_numpy()
        count = self.events.before(ids, times) + later
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


@dataclass(frozen=True)
class PastPairs:
    """What a count of a user's events with similar items is computed from.

    Attributes:
        column: to compute.
        users: of the users of the events.
        items: of the catalogue's items.
        codes: int64, of each item's value; -1 without one.
        events: that it counts, by user and value.
    """

    column: PastColumn
    users: IdIndex
    items: IdIndex
    codes: Int64Array
    events: PastEvents | PastTotals

    def of(self, table: pa.Table, later: Int64Array | int = 0) -> Float32Array:
        """Return the column's values for checked impressions, float32 [N].

        `later` are events to count that `events` lacks, [N].

        Raises:
            UserError: ids of another type than the log's or the catalogue's.
        """
        keys = self._keys(table, self.users, self.items, self.codes)
        count = self.events.before(keys, table[TIMESTAMP].to_numpy())
        return np.log1p(count + later).astype(np.float32)

    def codes_of(self, item_ids: Column) -> Int64Array:
        """Return the code of each item's value, int64 [N]; -1 without one."""
        wanted = as_ids(item_ids, ITEM_ID)
        refuse_other_type(wanted, self.items.type, ITEM_ID, "the catalogue")
        rows = self.items.rows_of(wanted)
        return np.where(rows == UNKNOWN, -1, self.codes[rows])

    @classmethod
    def read(
        cls, dataset: Dataset, column: PastColumn, actions: Sequence[str]
    ) -> "PastPairs":
        """Count the events of `actions`.

        Raises:
            UserError: a bad catalogue or log.
        """
        shared, name = column.shared or ITEM_ID, dataset.name(ITEMS_FILE)
        names = list(dict.fromkeys([ITEM_ID, shared]))
        catalogue = dataset.check(ITEMS_FILE, dataset.columns(ITEMS_FILE, names))
        catalogue = dataset.tolerance.one_row_each(catalogue, name)
        items = IdIndex.build(catalogue[ITEM_ID], f"{name}: column {ITEM_ID!r}")
        values = joined(catalogue[shared]).dictionary_encode()
        codes = pc.fill_null(values.indices, -1).to_numpy().astype(np.int64)
        log = _read(dataset, INTERACTIONS_FILE, [USER_ID, ITEM_ID, TIMESTAMP, ACTION])
        log = log.filter(pc.is_in(log[ACTION], pa.array(actions, pa.string())))
        source = f"{dataset.name(INTERACTIONS_FILE)}: column {USER_ID!r}"
        users = IdIndex.build(as_ids(log[USER_ID], source).unique(), source)
        keys = cls._keys(log, users, items, codes)
        known, times = keys >= 0, log[TIMESTAMP].cast(pa.int64()).to_numpy()
        events = PastEvents(keys[known], times[known])
        return cls(column, users, items, codes, events)

    @staticmethod
    def _keys(
        table: pa.Table, users: IdIndex, items: IdIndex, codes: Int64Array
    ) -> Int64Array:
        """Return a number for each row's user and value, -1 where one is unknown."""
        rows = []
        for index, column in ((users, USER_ID), (items, ITEM_ID)):
            wanted = as_ids(table[column], column)
            refuse_other_type(wanted, index.type, column, "the log")
            rows.append(index.rows_of(wanted))
        user, item = rows
        code = np.where(item == UNKNOWN, -1, codes[item])
        key: Int64Array = user * (codes.max(initial=0) + 1) + code
        return np.where((user == UNKNOWN) | (code < 0), -1, key)


def past_columns(
    tasks: Sequence[TaskConfig], catalogue: Iterable[str] = ()
) -> dict[str, PastColumn]:
    """Return the columns that can be computed, by name.

    `catalogue` are the item table's columns, whose values a user's events may share.
    """
    sides = (("user", USER_ID), ("item", ITEM_ID))
    found = [PastColumn(f"{side}_past_events", column) for side, column in sides]
    for shared in dict.fromkeys([ITEM_ID, *catalogue]):
        what = "item" if shared == ITEM_ID else shared
        found.append(PastColumn(f"user_{what}_past_events", USER_ID, shared=shared))
    for task in tasks:
        suffix = "" if len(tasks) == 1 else f"_{task.name}"
        found += [
            PastColumn(f"{side}_past_rate{suffix}", column, task.label)
            for side, column in sides
        ]
    return {column.name: column for column in found}


def read_past(
    dataset: Dataset, columns: Iterable[PastColumn], actions: Sequence[str]
) -> list[PastValues | PastPairs]:
    """Read what some columns count; of both logs only the columns that are needed.

    Raises:
        UserError: bad interactions or impressions.
    """
    return [_read_one(dataset, column, actions) for column in columns]


def _read_one(
    dataset: Dataset, column: PastColumn, actions: Sequence[str]
) -> PastValues | PastPairs:
    if column.shared is not None:
        return PastPairs.read(dataset, column, actions)
    if column.label is None:
        return _events(dataset, column, actions)
    return _labels(dataset, column, column.label)


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
