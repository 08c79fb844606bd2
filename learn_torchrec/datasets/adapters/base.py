"""A data set: three tables, read when asked for, each with a fingerprint."""

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.loading import tables
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import RowGroups, RowSource
from learn_torchrec.datasets.loading.time_range import Interval
from learn_torchrec.datasets.sequences import SequenceSet, build_sequences, item_rows
from learn_torchrec.errors import UserError
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    TIMESTAMP,
    USER_ID,
)


class Dataset:
    """Our own schema on disk (the `parquet:` adapter), and the base of adapters.

    - items: `item_id` and any of the six text fields, one row for each item.
    - interactions: `user_id`, `item_id`, `timestamp` (unix seconds), `action`.
    - impressions: `user_id`, `item_id`, `timestamp`, `label` (0 or 1), optional
      `weight`, and the feature columns that the ranker's configuration names.

    Every table is checked as it is read: see `tables.check`.

    Attributes:
        location: the folder, on any file system.
        directory: the folder of an adapter that reads local files only.
    """

    def __init__(self, where: str | Path) -> None:
        self.location = Location.of(where)
        self.directory = Path(self.location.path)
        if not self.location.is_dir():
            raise UserError(
                f"--data {where}: no such directory; name the folder that holds "
                f"{ITEMS_FILE}, {INTERACTIONS_FILE} and {IMPRESSIONS_FILE}"
            )

    def fingerprint(self, file: str) -> str:
        """Return the digest of what a table is read from."""
        return tables.files_fingerprint(self._sources(file))

    def fingerprints(self, *files: str) -> dict[str, str]:
        """Return the digests of several tables by file name."""
        return {file: self.fingerprint(file) for file in files}

    @functools.cached_property
    def items(self) -> pa.Table:
        """The item table."""
        return self._checked(ITEMS_FILE)

    @functools.cached_property
    def interactions(self) -> pa.Table:
        """The behaviour log, in the order of the file."""
        return self._checked_against_items(INTERACTIONS_FILE)

    @functools.cached_property
    def impressions(self) -> pa.Table:
        """The ranker's rows, in the order of the file."""
        table = self._checked(IMPRESSIONS_FILE)
        names = f"{self._name(INTERACTIONS_FILE)} and {self._name(IMPRESSIONS_FILE)}"
        tables.check_same_type(self.interactions, table, USER_ID, names)
        return table

    def impressions_between(
        self,
        first: int,
        end: int = sys.maxsize,
        columns: Sequence[str] | None = None,
        optional: Sequence[str] = (),
        in_memory: bool = False,
    ) -> RowSource:
        """Return the impressions of [first, end), to be read a part at a time.

        Where they lie as Parquet, only times are read before the first part is, and
        the table is not checked. Their items need not be in the item table.

        Args:
            first: unix seconds.
            end: unix seconds.
            columns: to read of Parquet; None for all.
            optional: further columns, read where the files have them.
            in_memory: read the whole table, also where it lies as Parquet.
        """
        interval = Interval(TIMESTAMP, first, end)
        where = self.parquet(IMPRESSIONS_FILE)
        if where is None or in_memory:
            return TableRows(self.impressions, interval, self._name(IMPRESSIONS_FILE))
        return RowGroups(where, columns, interval, optional)

    @property
    def times(self) -> NDArray[np.int64]:
        """The interactions' times, int64 [N]; of our own Parquet only they are read."""
        times: NDArray[np.int64] = self._column(INTERACTIONS_FILE, TIMESTAMP).to_numpy()
        return times

    def sequences(self, store: ContentStore, actions: Sequence[str]) -> SequenceSet:
        """Return every user's events of the wanted actions, as rows of the store.

        Raises:
            UserError: bad interactions, or items without a content vector.
        """
        rows = item_rows(self.interactions, store)
        return build_sequences(self.interactions, rows, actions)

    def parquet(self, file: str) -> Location | None:
        """Return where a table lies as Parquet with our columns, if it does.

        An engine reads it from there, without checks and without memory for all of
        it; where this is None, `raw` has it.
        """
        return self.location / file if type(self) is Dataset else None

    def raw(self, file: str) -> pa.Table:
        """Return a table as it is read, before any check."""
        return self._read(file)

    def _sources(self, file: str) -> Sequence[Path | Location]:
        return [self.location / file]

    def _read(self, file: str) -> pa.Table:
        return tables.read_parquet(self.location / file)

    def _name(self, file: str) -> str:
        return str(self.location / file)

    def _checked(self, file: str) -> pa.Table:
        return self._check(file, self._read(file), tables.REQUIRED[file])

    def _check(self, file: str, table: pa.Table, kinds: Mapping[str, str]) -> pa.Table:
        table = tables.check(table, kinds, self._name(file))
        if file == ITEMS_FILE:
            tables.check_unique(table[ITEM_ID], self._name(file))
        return table

    def _checked_against_items(self, file: str) -> pa.Table:
        table = self._checked(file)
        tables.check_known(table[ITEM_ID], self._item_ids, self._name(file))
        return table

    @functools.cached_property
    def _item_ids(self) -> pa.ChunkedArray:
        """The items' ids without their texts, which may be larger than any log."""
        return self._column(ITEMS_FILE, ITEM_ID)

    def _column(self, file: str, name: str) -> pa.ChunkedArray:
        """Return one checked column; of our own Parquet no other one is read.

        Where the whole table is there already, or has to be made, it is that table's.
        """
        where, table = self.parquet(file), file.removesuffix(".parquet")
        if where is None or table in vars(self):
            return getattr(self, table)[name]
        kinds = {name: tables.REQUIRED[file][name]}
        return self._check(file, tables.read_parquet(where, [name]), kinds)[name]
