"""A prepared data set (`prepared:DIR`), as `learn-torchrec prepare` wrote it.

`preparation/prepared.py`, which writes the files, describes them.
"""

import contextlib
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import AnyArray, Int64Array, taken
from learn_torchrec.artifact import Manifest, read_manifest, reading, verify
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading import tables
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.moments import Moments
from learn_torchrec.datasets.preparation.day_counts import (
    DayCounts,
    UserDays,
    open_item_days,
)
from learn_torchrec.datasets.preparation.prepared import (
    IMPRESSION_MOMENTS,
    ITEM_DAYS,
    ITEM_EVENTS,
    ITEM_INDEX,
    KIND,
    MOMENTS,
    USER_IDS_FILE,
    USER_INDEX,
    file_of,
)
from learn_torchrec.datasets.sequences import (
    ItemRows,
    SequenceSet,
    refuse_unknown_actions,
)
from learn_torchrec.errors import UserError, first_line
from learn_torchrec.ids import IdIndex
from learn_torchrec.schema import (
    ACTION,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    TIMESTAMP,
    USER_ID,
)

logger = logging.getLogger(__name__)


class Prepared(Dataset):
    """Memory-mapped sequences and their items, and another data set's impressions.

    Set `split.towers_until` to the manifest's `moment`.

    Args:
        path: of the artefact.
        shown: the data set with the impressions, if there are some.
    """

    def __init__(self, path: str, shown: Dataset | None = None) -> None:
        super().__init__(path)
        self._directory, self._shown = Path(self.location.path), shown
        self.manifest: Manifest = read_manifest(self._directory, KIND)

    @property
    def has_impressions(self) -> bool:
        return self._shown is not None and self._shown.has_impressions

    def sources(self, table: str) -> Sequence[Location]:
        if self._shown is not None and table == IMPRESSIONS_FILE:
            return self._shown.sources(table)
        if table == ITEMS_FILE:
            return [self.location / table]
        return [self.location / file_of(name) for name in ("items", "times", "actions")]

    def fingerprint(self, table: str) -> str:
        """Return the digest of the artefact, of its item table or the impressions."""
        if self._shown is not None and table == IMPRESSIONS_FILE:
            self._states[table] = self._state(table)
            return self._shown.fingerprint(table)
        if table == ITEMS_FILE:
            return super().fingerprint(table)
        return self.manifest.fingerprint

    def parquet(self, table: str) -> Location | None:
        if self._shown is not None and table == IMPRESSIONS_FILE:
            return self._shown.parquet(table)
        return None

    def schema(self, table: str) -> pa.Schema:
        if table != INTERACTIONS_FILE:
            return super().schema(table)
        ids = (self._user_ids.type, self.items.schema.field(ITEM_ID).type)
        kinds = (*ids, pa.int64(), pa.large_string())
        return pa.schema(zip((USER_ID, ITEM_ID, TIMESTAMP, ACTION), kinds, strict=True))

    @functools.cached_property
    def items(self) -> pa.Table:
        """The items; their texts were cleaned when they were written."""
        return self.check(ITEMS_FILE, self.read(ITEMS_FILE))

    @functools.cached_property
    def times(self) -> Int64Array:
        """Times of all events, memory-mapped."""
        return self._map("times")

    @functools.cached_property
    def moments(self) -> Moments:
        """The events' times, counted when they were written."""
        return self._counted(MOMENTS) or Moments.of(self.times)

    @functools.cached_property
    def impression_moments(self) -> Moments:
        """The impressions' times, counted when the log was prepared beside them."""
        prepared_with = self.manifest.inputs.get(IMPRESSIONS_FILE)
        if prepared_with == self.fingerprint(IMPRESSIONS_FILE):
            return self._counted(IMPRESSION_MOMENTS) or super().impression_moments
        return super().impression_moments

    def day_counts(self, item_actions: Sequence[str]) -> DayCounts | None:
        """Map the events by day; None of a log that an earlier version prepared."""
        if not self._lists(ITEM_DAYS):
            return None
        names = self.manifest.facts["actions"]
        wanted = [code for code, name in enumerate(names) if name in item_actions]
        with self._reading():
            index = IdIndex.open(self._verified / USER_INDEX)
            offsets, times = self._map("offsets"), self._map("times")
            users = UserDays(index=index, offsets=offsets, times=times)
            index = IdIndex.open(self._directory / ITEM_INDEX)
            folder = self._directory / ITEM_DAYS
            items = open_item_days(folder, index, wanted, len(names))
        return DayCounts(users, items)

    def read_impressions(self) -> pa.Table:
        return self._impressions_of.read(IMPRESSIONS_FILE)

    @property
    def _impressions_of(self) -> Dataset:
        assert self._shown is not None  # `has_impressions` says so
        return self._shown

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

    def _counted(self, folder: str) -> Moments | None:
        """Map counted times, if the log was prepared with some."""
        if not self._lists(folder):
            return None
        with self._reading():
            return Moments.open(self._verified / folder)

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        return reading(self._directory, self.manifest, (), "prepare the data again")

    def _lists(self, folder: str) -> bool:
        return any(name.startswith(f"{folder}/") for name in self.manifest.files)
