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
| impressions | `user_id`, `item_id`, `timestamp`, `label` (0 or 1), perhaps `weight`, |
| | and the feature columns that the ranker's configuration names |

Ids are integers or strings. Times are unix seconds, or Arrow timestamps if they are
finer. An adapter need not check its tables or clean its texts: the base does both.
Mistakes in its files are `UserError`s that name the file, the line or column, and the
fix. `adapters/jsonl.py` is a small example.
"""

import abc
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Int64Array, as_arrow, decoded
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.adapters.item_texts import unescape
from learn_torchrec.datasets.loading import tables
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import (
    RowGroups,
    RowSource,
    open_parquet,
)
from learn_torchrec.datasets.loading.time_range import Interval
from learn_torchrec.datasets.sequences import (
    TICK,
    SequenceSet,
    build_sequences,
    item_rows,
)
from learn_torchrec.errors import UserError
from learn_torchrec.ids import normal_type, refuse_duplicates, refuse_other_types
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    TIMESTAMP,
    USER_ID,
)


class Dataset(abc.ABC):
    """A data set: three tables, read and checked on first use.

    A table's name is that of its file in our own schema: `ITEMS_FILE`,
    `INTERACTIONS_FILE` or `IMPRESSIONS_FILE`.

    Args:
        where: the folder, a path or URI.

    Attributes:
        location: the folder, on any file system.

    Raises:
        UserError: no such folder.
    """

    def __init__(self, where: str | Path) -> None:
        self.location = Location.of(where)
        if not self.location.is_dir():
            raise UserError(
                f"--data {where}: no such directory; name the folder that holds the "
                "data set"
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
        """Return the ranker's rows.

        Raises:
            UserError: by default: there are none.
        """
        raise UserError(
            f"{self.location}: this data set has no impressions to rank; it serves "
            "encode-content, train-towers and evaluate-retrieval"
        )

    # What an adapter may override if it can do better.

    def fingerprint(self, table: str) -> str:
        """Return the digest of a table's files."""
        return tables.files_fingerprint(self.sources(table))

    def parquet(self, table: str) -> Location | None:
        """Return the location of a table that is stored as Parquet with our columns.

        Engines and the loader scan it there, unchecked and never whole in memory. If it
        is None, they use the table in memory.
        """
        return None

    def column(self, table: str, name: str) -> pa.ChunkedArray:
        """Return one checked column; an override may read it alone."""
        checked: pa.Table = getattr(self, table.removesuffix(".parquet"))
        return checked[name]

    def sequences(self, store: ContentStore, actions: Sequence[str]) -> SequenceSet:
        """Return every user's events of the wanted actions, as rows of the store.

        Raises:
            UserError: bad interactions, or items without a content vector.
        """
        rows = item_rows(self.interactions, store)
        return build_sequences(self.interactions, rows, actions)

    # What stages use.

    def fingerprints(self, *names: str) -> dict[str, str]:
        """Return the digests of some tables by name."""
        return {name: self.fingerprint(name) for name in names}

    @functools.cached_property
    def items(self) -> pa.Table:
        """The items, their texts without HTML entities."""
        return unescape(self.check(ITEMS_FILE, self.read_items()))

    @functools.cached_property
    def interactions(self) -> pa.Table:
        """The behaviour log, in file order.

        A column `TICK` holds times in full resolution if rows within a second are not
        in their order.
        """
        read = self.read_interactions()
        table = self.check(INTERACTIONS_FILE, read)
        known = self.column(ITEMS_FILE, ITEM_ID)
        tables.check_known(table[ITEM_ID], known, self.name(INTERACTIONS_FILE))
        return _with_ticks(table, read)

    @functools.cached_property
    def impressions(self) -> pa.Table:
        """The ranker's rows, in file order."""
        table = self.check(IMPRESSIONS_FILE, self.read_impressions())
        self._refuse_other_users(table.schema, self.interactions.schema)
        return table

    def impressions_between(
        self,
        first: int,
        end: int = sys.maxsize,
        columns: Sequence[str] | None = None,
        optional: Sequence[str] = (),
        in_memory: bool = False,
    ) -> RowSource:
        """Return the impressions of [first, end), to be read group by group.

        Of Parquet only the times are read at first, and the table is not checked. Items
        need not be in the item table.

        Args:
            first: unix seconds.
            end: unix seconds.
            columns: to read from Parquet; None for all.
            optional: further columns to read from Parquet if the files have them.
            in_memory: read the whole table even if it is Parquet.
        """
        interval = Interval(TIMESTAMP, first, end)
        where = self.parquet(IMPRESSIONS_FILE)
        if where is None or in_memory:
            return TableRows(self.impressions, interval, self.name(IMPRESSIONS_FILE))
        rows = RowGroups(where, columns, interval, optional)
        log = self.parquet(INTERACTIONS_FILE)
        if USER_ID in rows.schema.names and log is not None and log.exists():
            self._refuse_other_users(rows.schema, open_parquet(log).schema)
        return rows

    def _refuse_other_users(self, rows: pa.Schema, log: pa.Schema) -> None:
        """Refuse impressions whose users cannot be joined to the log's."""
        if USER_ID in log.names:
            where = f"{self.name(IMPRESSIONS_FILE)}: column {USER_ID!r}"
            ours, theirs = (
                normal_type(decoded(one.field(USER_ID).type), where)
                for one in (rows, log)
            )
            refuse_other_types(ours, theirs, where, self.name(INTERACTIONS_FILE))

    @property
    def times(self) -> Int64Array:
        """The interactions' times, unix seconds, int64 [N], in any order."""
        times: Int64Array = self.column(INTERACTIONS_FILE, TIMESTAMP).to_numpy()
        return times

    def name(self, table: str) -> str:
        """Return what messages call a table: its first file."""
        sources = self.sources(table)
        return str(sources[0] if sources else self.location / table)

    def check(
        self, table: str, rows: pa.Table, kinds: Mapping[str, str] | None = None
    ) -> pa.Table:
        """Return a table's rows in normal form; see `tables.check`.

        Args:
            table: its name.
            rows: as they were read.
            kinds: of the columns to check; by default the required ones.

        Raises:
            UserError: a column that is missing or wrong, or an item listed twice.
        """
        kinds = tables.REQUIRED[table] if kinds is None else kinds
        checked = tables.check(rows, kinds, self.name(table))
        if table == ITEMS_FILE:
            refuse_duplicates(checked[ITEM_ID], f"{self.name(table)}: {ITEM_ID}")
        return checked

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


def _with_ticks(table: pa.Table, read: pa.Table) -> pa.Table:
    """Add `TICK` to a checked table if rows within a second are out of order.

    `read` has the same rows, with times in full resolution.
    """
    times = as_arrow(read[TIMESTAMP])
    if not pa.types.is_timestamp(times.type) or times.type.unit == "s":
        return table
    ticks = times.cast(pa.int64()).to_numpy()
    by_second = np.argsort(table[TIMESTAMP].to_numpy(), kind="stable")
    if (np.diff(ticks[by_second]) >= 0).all():
        return table
    return table.append_column(TICK, pa.array(ticks))
