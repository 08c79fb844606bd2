"""The contract of an adapter: a foreign data set as three tables in our schema.

To add one: a file here with a subclass of `Dataset`, and its name in `ADAPTERS`
(`adapters/__init__.py`). The subclass says which files a table is read from
(`sources`) and reads the tables: `read_items`, `read_interactions` and, where there
are impressions to rank, `read_impressions`. Everything else has a default. The tables
that it returns, in any row order, are:

| table | columns |
|---|---|
| items | `item_id`, one row for each item; any of the six text fields, and others |
| interactions | `user_id`, `item_id`, `timestamp`, `action` (text) |
| impressions | `user_id`, `item_id`, `timestamp`, `label` (0 or 1; null or absent in |
| | rows to score), perhaps `weight`, and feature columns |

Ids are integers or strings. Times are unix seconds, Arrow timestamps or ISO 8601 texts.
An adapter need not check its tables or clean its texts: the base does both, and leaves
out rows that cannot be used (`tolerance`).
Mistakes in its files are `UserError`s that name the file, the line or column, and the
fix. `adapters/jsonl.py` is a small example.
"""

import abc
import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import Int64Array, as_arrow, decoded
from learn_torchrec.datasets.adapters.item_texts import unescape
from learn_torchrec.datasets.adapters.text_files import readable
from learn_torchrec.datasets.loading import tables
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import (
    ROW_NUMBER,
    RowGroups,
    RowSource,
    open_parquet,
)
from learn_torchrec.datasets.loading.time_range import Interval
from learn_torchrec.datasets.moments import Moments
from learn_torchrec.datasets.preparation.day_counts import DayCounts
from learn_torchrec.datasets.sequences import (
    TICK,
    ItemRows,
    SequenceSet,
    build_sequences,
)
from learn_torchrec.datasets.tolerance import Tolerance
from learn_torchrec.errors import UserError, require_columns
from learn_torchrec.ids import normal_type, refuse_other_types
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    LABEL,
    TIMESTAMP,
    USER_ID,
)
from learn_torchrec.times import as_seconds, as_ticks


class Dataset(abc.ABC):
    """A data set: three tables, read and checked on first use.

    A table's name is that of its file in our own schema: `ITEMS_FILE`,
    `INTERACTIONS_FILE` or `IMPRESSIONS_FILE`.

    Args:
        where: the folder, a path or URI.

    Attributes:
        location: the folder, on any file system.
        map_of: the adapter's name if options can name its columns, for messages.

    Raises:
        UserError: no such folder.
    """

    map_of = ""

    def __init__(self, where: str | Path) -> None:
        self.location = Location.of(where)
        if not self.location.is_dir():
            raise UserError(
                f"--data {self.location}: no such directory; name the folder that "
                "holds the data set"
            )

    # What an adapter implements.

    @abc.abstractmethod
    def sources(self, table: str) -> Sequence[Location]:
        """Return the files that hold a table; messages name the first."""

    @abc.abstractmethod
    def read_items(self) -> pa.Table:
        """Return the items."""

    @abc.abstractmethod
    def read_interactions(self) -> pa.Table:
        """Return the behaviour log."""

    def read_impressions(self) -> pa.Table:
        """Return the ranker's rows; an adapter that implements it may have some."""
        raise NotImplementedError

    # What an adapter may override if it can do better.

    @property
    def has_impressions(self) -> bool:
        """Whether there are impressions to rank, answered without reading a table."""
        can_read = type(self).read_impressions is not Dataset.read_impressions
        return can_read and all(
            source.exists() for source in self.sources(IMPRESSIONS_FILE)
        )

    def fingerprint(self, table: str) -> str:
        """Return the digest of a table's files; see `refuse_changed`."""
        self._states[table] = self._state(table)
        return tables.files_fingerprint(self.sources(table))

    @functools.cached_property
    def _states(self) -> dict[str, list[tuple[str, object]]]:
        """The state of the files of each table whose fingerprint was taken."""
        return {}

    def refuse_changed(self) -> None:
        """Refuse tables whose files changed since their fingerprints were taken.

        To be called when they have been read: the fingerprints say what was read.

        Raises:
            UserError: names the table.
        """
        for table, state in self._states.items():
            if self._state(table) != state:
                raise UserError(
                    f"{self.name(table)}: changed while it was read; run again, once "
                    "nobody writes to it"
                )

    def _state(self, table: str) -> list[tuple[str, object]]:
        files = (file for source in self.sources(table) for file in source.files())
        return [(file.path, file.state()) for file in files]

    def parquet(self, table: str) -> Location | None:
        """Return the location of a table that is stored as Parquet with our columns.

        Engines and the loader scan it there, unchecked and never whole in memory. If it
        is None, they use the table in memory.
        """
        return None

    @property
    def item_ids(self) -> pa.ChunkedArray:
        """The ids of the item table; an override may read them alone."""
        return self.items[ITEM_ID]

    def columns(self, table: str, names: Sequence[str]) -> pa.Table:
        """Return some columns of a table, unchecked; of Parquet only these are read."""
        where = self.parquet(table)
        if where is None or self._is_read(table):
            return self._whole(table).select(names)
        read = tables.read_parquet(where, names)
        return unescape(read) if table == ITEMS_FILE else read

    def schema(self, table: str) -> pa.Schema:
        """Return a table's columns and types; of Parquet only the footers are read."""
        if table == IMPRESSIONS_FILE:
            self._refuse_no_impressions()
        where = self.parquet(table)
        if where is not None and not self._is_read(table):
            return open_parquet(where).schema
        schema = self._whole(table).schema
        return pa.schema([field for field in schema if field.name != ROW_NUMBER])

    def rows(self, table: str) -> RowSource:
        """Return all rows of a table, unchecked, to be read group by group."""
        where = self.parquet(table)
        if where is None or self._is_read(table):
            return TableRows(self._whole(table), None, self.name(table))
        return RowGroups(where)

    def num_rows(self, table: str) -> int:
        """Return the number of a table's rows; of Parquet the footers tell it."""
        return self.rows(table).num_rows

    def sequences(self, store: ItemRows, actions: Sequence[str]) -> SequenceSet:
        """Return every user's events of the wanted actions, as rows of the store.

        Events of items without a content vector are left out.

        Raises:
            UserError: bad interactions, or most events have no content vector.
        """
        log = self.interactions
        rows = store.rows_of(log[ITEM_ID])
        if len(rows) and rows.min() < 0:
            lacking = log[ITEM_ID].filter(pa.array(rows < 0))
            name = self.name(INTERACTIONS_FILE)
            self.tolerance.without_content(
                name, store, lacking, len(lacking), len(rows)
            )
            log, rows = log.filter(pa.array(rows >= 0)), rows[rows >= 0]
        return build_sequences(log, rows, actions)

    @property
    def times(self) -> Int64Array:
        """Times of all interactions, unix seconds, int64 [N], in any order.

        Those of events that are left out count too, so that a share of the log is the
        same moment whichever columns a stage reads.
        """
        return self._log[1]

    @property
    def impression_times(self) -> Int64Array:
        """Times of all impressions that have one, unix seconds, int64 [N]."""
        table = self.columns(IMPRESSIONS_FILE, [TIMESTAMP])
        name = self.name(IMPRESSIONS_FILE)
        require_columns(table.column_names, [TIMESTAMP], name)
        return _seconds_of(table, name)

    @functools.cached_property
    def moments(self) -> Moments:
        """The `times`, counted."""
        return Moments.of(self.times)

    @functools.cached_property
    def impression_moments(self) -> Moments:
        """The `impression_times`, counted; of Parquet a row group at a time."""
        where, name = self.parquet(IMPRESSIONS_FILE), self.name(IMPRESSIONS_FILE)
        if where is None or self._is_read(IMPRESSIONS_FILE):
            return Moments.of(self.impression_times)
        rows = RowGroups(where, [TIMESTAMP])
        return Moments.of_parts(
            _seconds_of(piece, name)
            for group in range(len(rows))
            for piece in rows.pieces(group)
        )

    def day_counts(self, item_actions: Sequence[str]) -> DayCounts | None:
        """Return the log's events by user, and those of some actions by item, by day.

        None if they were not counted before, and `interactions` has them.
        """
        return None

    # What stages use.

    def fingerprints(self, *names: str) -> dict[str, str]:
        """Return the digests of some tables by name."""
        return {name: self.fingerprint(name) for name in names}

    def local_files(self) -> Iterator[Path]:
        """Yield the files and folders of all tables that this machine's disk holds."""
        for table in tables.REQUIRED:
            with contextlib.suppress(UserError):  # a data set without the table
                for source in self.sources(table):
                    if source.is_local:
                        yield Path(source.path)

    @functools.cached_property
    def tolerance(self) -> Tolerance:
        """What happens to rows that cannot be used."""
        return Tolerance()

    def read(self, table: str) -> pa.Table:
        """Return a table as the adapter reads it.

        Raises:
            UserError: names its first file, and what cannot be read in it.
        """
        with readable(self.name(table)):
            if table == ITEMS_FILE:
                return self.read_items()
            if table == INTERACTIONS_FILE:
                return self.read_interactions()
            return self.read_impressions()

    @functools.cached_property
    def items(self) -> pa.Table:
        """The items, one row each, their texts without HTML entities."""
        table = self.check(ITEMS_FILE, self.read(ITEMS_FILE))
        return unescape(self.tolerance.one_row_each(table, self.name(ITEMS_FILE)))

    @property
    def interactions(self) -> pa.Table:
        """The behaviour log, in file order, without events that cannot be used.

        A column `TICK` holds times in full resolution if rows within a second are not
        in their order.
        """
        return self._log[0]

    @functools.cached_property
    def _log(self) -> tuple[pa.Table, Int64Array]:
        """The events that can be used, and the times of all."""
        read = self.read(INTERACTIONS_FILE)
        timed = self.check(INTERACTIONS_FILE, read, (TIMESTAMP,))
        name, needed = self.name(INTERACTIONS_FILE), tables.REQUIRED[INTERACTIONS_FILE]
        read = self.tolerance.complete(read, needed, name)
        table = _with_ticks(self.check(INTERACTIONS_FILE, read), read)
        return self._of_known_items(table), timed[TIMESTAMP].to_numpy()

    @functools.cached_property
    def impressions(self) -> pa.Table:
        """The ranker's rows, in file order; their labels may be null or absent.

        Raises:
            UserError: there are none, or they are bad.
        """
        self._refuse_no_impressions()
        table = self.check(IMPRESSIONS_FILE, self.read(IMPRESSIONS_FILE))
        if LABEL in table.column_names:
            name = self.name(IMPRESSIONS_FILE)
            table = tables.check(table, {LABEL: tables.BINARY}, name)
        self._refuse_other_users(table.schema, self.schema(INTERACTIONS_FILE))
        return table

    def impressions_between(
        self,
        first: int,
        end: int = sys.maxsize,
        columns: Sequence[str] | None = None,
        optional: Sequence[str] = (),
        in_memory: bool = False,
        labels: Sequence[str] = (),
    ) -> RowSource:
        """Return the impressions of [first, end), to be read group by group.

        Of Parquet only the times are read at first, and the table is not checked. Items
        need not be in the item table. Rows without a user, an item, a time or a label
        are left out.

        Args:
            first: unix seconds.
            end: unix seconds.
            columns: to read from Parquet; None for all.
            optional: further columns to read from Parquet if the files have them.
            in_memory: read the whole table even if it is Parquet.
            labels: further columns that a row must have a value in.

        Raises:
            UserError: there are no impressions, or none can be used.
        """
        self._refuse_no_impressions()
        needed = tuple(dict.fromkeys((USER_ID, ITEM_ID, *labels)))
        interval = Interval(TIMESTAMP, first, end, needed)
        where, name = self.parquet(IMPRESSIONS_FILE), self.name(IMPRESSIONS_FILE)
        source: RowSource
        if where is None or in_memory:
            source = TableRows(self.impressions, interval, name)
        else:
            rows = RowGroups(where, columns, interval, optional)
            log = self.parquet(INTERACTIONS_FILE)
            if USER_ID in rows.schema.names and log is not None and log.exists():
                self._refuse_other_users(rows.schema, open_parquet(log).schema)
            source = rows
        self.tolerance.lacking(name, source.lacking, source.num_rows)
        return source

    def _refuse_other_users(self, rows: pa.Schema, log: pa.Schema) -> None:
        """Refuse impressions whose users cannot be joined to the log's."""
        if USER_ID in log.names:
            where = f"{self.name(IMPRESSIONS_FILE)}: column {USER_ID!r}"
            ours, theirs = (
                normal_type(decoded(one.field(USER_ID).type), where)
                for one in (rows, log)
            )
            refuse_other_types(ours, theirs, where, self.name(INTERACTIONS_FILE))

    def _is_read(self, table: str) -> bool:
        name = "_log" if table == INTERACTIONS_FILE else table.removesuffix(".parquet")
        return name in vars(self)

    def _whole(self, table: str) -> pa.Table:
        whole: pa.Table = getattr(self, table.removesuffix(".parquet"))
        return whole

    def name(self, table: str) -> str:
        """Return what messages call a table: its first file."""
        sources = self.sources(table)
        return str(sources[0] if sources else self.location / table)

    def check(
        self, table: str, rows: pa.Table, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Return a table's rows in normal form, see `tables.check`.

        Rows without a value in a checked column are left out.

        Args:
            table: its name.
            rows: as they were read.
            columns: to check; None for all required ones.

        Raises:
            UserError: a column that is missing or wrong.
        """
        kinds = tables.REQUIRED[table]
        kinds = {name: kinds[name] for name in columns or kinds}
        rows = self.tolerance.complete(rows, kinds, self.name(table))
        stem = table.removesuffix(".parquet")
        prefix = f"{self.map_of}:DIR#{stem}" if self.map_of else ""
        checked = tables.check(rows, kinds, self.name(table), prefix)
        if ROW_NUMBER in checked.column_names and table != IMPRESSIONS_FILE:
            return checked.drop_columns([ROW_NUMBER])  # only features name rows later
        return checked

    def _of_known_items(self, log: pa.Table) -> pa.Table:
        """Leave out events of items that the item table lacks."""
        ids, known, name = log[ITEM_ID], self.item_ids, self.name(INTERACTIONS_FILE)
        where = f"{name}: column {ITEM_ID!r}"
        refuse_other_types(ids.type, known.type, where, "the item table")
        is_known = pc.is_in(ids, value_set=known)
        if pc.all(is_known).as_py():
            return log
        unknown = ids.filter(pc.invert(is_known))
        items = self.name(ITEMS_FILE)
        self.tolerance.unknown(name, items, unknown, len(unknown), len(ids))
        return log.filter(is_known)

    def _refuse_no_impressions(self) -> None:
        if not self.has_impressions:
            raise UserError(
                f"{self.location}: this data set has no impressions to rank; the "
                "stages from encode-content to evaluate-retrieval need none, and "
                "`learn-torchrec data impressions` draws some from the interactions"
            )

    def only_file(self, suffix: str, fix: str) -> Location:
        """Return the folder's only file of a suffix.

        Raises:
            UserError: there is none, or there are several; ends with `fix`.
        """
        found = self.location.files(suffix)
        if len(found) != 1:
            raise UserError(
                f"{self.location}: has {len(found)} *{suffix} files, one is needed; "
                + fix
            )
        return found[0]


def _seconds_of(table: pa.Table, name: str) -> Int64Array:
    """Return the times that there are; `name` is the table's."""
    times = table[TIMESTAMP].drop_null()
    return as_seconds(times, f"{name}: column {TIMESTAMP!r}")


def _with_ticks(table: pa.Table, read: pa.Table) -> pa.Table:
    """Add `TICK` to a checked table if rows within a second are out of order.

    `read` has the same rows, with times in full resolution.
    """
    times = as_ticks(as_arrow(read[TIMESTAMP]), TIMESTAMP)
    if not pa.types.is_timestamp(times.type) or times.type.unit == "s":
        return table
    ticks = times.cast(pa.int64()).to_numpy()
    by_second = np.argsort(table[TIMESTAMP].to_numpy(), kind="stable")
    if (np.diff(ticks[by_second]) >= 0).all():
        return table
    return table.append_column(TICK, pa.array(ticks))
