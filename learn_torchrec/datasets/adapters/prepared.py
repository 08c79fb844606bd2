"""A prepared data set (`prepared:DIR`), as `learn-torchrec prepare` wrote it.

`preparation/prepared.py`, which writes the files, describes them.
"""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import AnyArray, Int64Array, taken
from learn_torchrec.artifact import Manifest, read_manifest, verify
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading import tables
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.preparation.prepared import (
    ITEM_EVENTS,
    KIND,
    USER_IDS_FILE,
    file_of,
)
from learn_torchrec.datasets.sequences import (
    ItemRows,
    SequenceSet,
    refuse_unknown_actions,
)
from learn_torchrec.errors import UserError, first_line
from learn_torchrec.schema import (
    ACTION,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    TIMESTAMP,
    USER_ID,
)

logger = logging.getLogger(__name__)


class Prepared(Dataset):
    """Memory-mapped sequences and their items; no impressions.

    Set `split.towers_until` to the manifest's `moment`.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._directory = Path(self.location.path)
        self.manifest: Manifest = read_manifest(self._directory, KIND)

    def sources(self, table: str) -> list[Location]:
        if table == ITEMS_FILE:
            return [self.location / table]
        return [self.location / file_of(name) for name in ("items", "times", "actions")]

    def fingerprint(self, table: str) -> str:
        """Return the digest of the artefact, or of its item table."""
        if table == ITEMS_FILE:
            return super().fingerprint(table)
        return self.manifest.fingerprint

    @functools.cached_property
    def items(self) -> pa.Table:
        """The items; their texts were cleaned when they were written."""
        return self.check(ITEMS_FILE, self.read(ITEMS_FILE))

    @functools.cached_property
    def times(self) -> Int64Array:
        """Times of all events, memory-mapped."""
        return self._map("times")

    def read_items(self) -> pa.Table:
        return tables.read_parquet(self._verified / ITEMS_FILE)

    def read_interactions(self) -> pa.Table:
        names = pa.table({ACTION: self.manifest.facts["actions"]})
        owner = np.repeat(np.arange(len(self._user_ids)), np.diff(self._map("offsets")))
        return pa.table(
            {
                USER_ID: self._user_ids.take(pa.array(owner)),
                ITEM_ID: self.items[ITEM_ID].take(pa.array(self._map("items"))),
                TIMESTAMP: pa.array(self.times),
                ACTION: taken(names, pa.array(self._map("actions")))[ACTION],
            }
        )

    def sequences(self, store: ItemRows, actions: Sequence[str]) -> SequenceSet:
        """Return the users' events of the wanted actions.

        They stay memory-mapped if all actions are wanted and the content store has the
        item table's order; otherwise they are filtered or renumbered in memory.

        Events of items without a content vector are left out.

        Raises:
            UserError: a damaged file, or most events have no content vector.
        """
        names = self.manifest.facts["actions"]
        refuse_unknown_actions(actions, names)
        items, is_whole = self._rows_in(store)
        whole = SequenceSet.of_offsets(
            self._map("offsets"),
            user_ids=self._user_ids,
            items=items,
            times=self.times,
            actions=self._map("actions"),
            action_names=tuple(names),
        )
        if is_whole and set(names) <= set(actions):
            return whole
        wanted = [number for number, name in enumerate(names) if name in actions]
        keep = np.isin(self._map("actions"), wanted) & (items >= 0)
        chosen = whole.select_events(np.flatnonzero(keep))
        return chosen.select_users(chosen.lengths > 0)

    @functools.cached_property
    def _user_ids(self) -> pa.Array:
        source = pa.memory_map(str(self._verified / USER_IDS_FILE))
        return pa.ipc.open_file(source).read_all()[USER_ID].combine_chunks()

    def _rows_in(self, store: ItemRows) -> tuple[Int64Array, bool]:
        """Return the events' items as rows of the store, and whether all have one."""
        items, counts = self._map("items"), self._map(ITEM_EVENTS)
        ids = self.items[ITEM_ID].combine_chunks()
        rows = store.rows_of(ids)
        lacking = (counts > 0) & (rows < 0)
        self.tolerance.without_content(
            self.name(INTERACTIONS_FILE),
            store,
            ids.filter(pa.array(lacking)),
            int(counts[lacking].sum()),
            len(items),
        )
        if np.array_equal(rows, np.arange(len(rows))):
            return items, True
        logger.info("%s: mapping events to the store's rows", self.location)
        return rows[items], not lacking.any()

    @functools.cached_property
    def _verified(self) -> Path:
        """The directory, once all its files have been checked.

        Raises:
            UserError: a damaged file.
        """
        verify(self._directory, KIND)
        return self._directory

    def _map(self, name: str) -> AnyArray:
        path = self._verified / file_of(name)
        try:
            return map_array(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: damaged ({first_line(error)}); prepare the data again"
            ) from None
