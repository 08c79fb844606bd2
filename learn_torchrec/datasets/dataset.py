"""A data set: three tables, read when asked for, each with a fingerprint."""

import functools
from pathlib import Path

import pyarrow as pa

from learn_torchrec.datasets import tables
from learn_torchrec.errors import UserError
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    USER_ID,
)


class Dataset:
    """Our own schema on disk (the `parquet:` adapter), and the base of adapters.

    - items: `item_id` and any of the six text fields, one row for each item.
    - interactions: `user_id`, `item_id`, `timestamp` (unix seconds), `action`.
    - impressions: `user_id`, `item_id`, `timestamp`, `label` (0 or 1), optional
      `weight`, and the feature columns that the ranker's configuration names.

    Every table is checked as it is read: see `tables.check`.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise UserError(
                f"--data {directory}: no such directory; name the folder that holds "
                f"{ITEMS_FILE}, {INTERACTIONS_FILE} and {IMPRESSIONS_FILE}"
            )
        self.directory = directory

    def fingerprint(self, file: str) -> str:
        """Return the digest of what a table is read from."""
        return tables.files_fingerprint(self._sources(file))

    def fingerprints(self, *files: str) -> dict[str, str]:
        """Return the digests of several tables by file name."""
        return {file: self.fingerprint(file) for file in files}

    @functools.cached_property
    def items(self) -> pa.Table:
        """The item table."""
        table = self._checked(ITEMS_FILE)
        tables.check_unique(table[ITEM_ID], self._name(ITEMS_FILE))
        return table

    @functools.cached_property
    def interactions(self) -> pa.Table:
        """The behaviour log, in the order of the file."""
        return self._checked_against_items(INTERACTIONS_FILE)

    @functools.cached_property
    def impressions(self) -> pa.Table:
        """The ranker's rows, in the order of the file."""
        table = self._checked_against_items(IMPRESSIONS_FILE)
        names = f"{self._name(INTERACTIONS_FILE)} and {self._name(IMPRESSIONS_FILE)}"
        tables.check_same_type(self.interactions, table, USER_ID, names)
        return table

    def _sources(self, file: str) -> list[Path]:
        return [self.directory / file]

    def _read(self, file: str) -> pa.Table:
        return tables.read_parquet(self.directory / file)

    def _name(self, file: str) -> str:
        return str(self.directory / file)

    def _checked(self, file: str) -> pa.Table:
        return tables.check(self._read(file), tables.REQUIRED[file], self._name(file))

    def _checked_against_items(self, file: str) -> pa.Table:
        table = self._checked(file)
        tables.check_known(table[ITEM_ID], self.items[ITEM_ID], self._name(file))
        return table
