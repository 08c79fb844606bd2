"""A prepared data set on disk: sequences that are memory-mapped (`prepared:DIR`).

An artefact (kind "sequences"): `items.parquet`, the item table; `user_ids.arrow`;
`users.parquet` and `item_counts.parquet`, the cohorts' counts; and, a value for each
event, `items.npy` (rows of the item table), `times.npy` and `actions.npy`, with
`offsets.npy` where each user's events begin.
"""

import contextlib
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learn_torchrec.artifact import Manifest, read_manifest, verify
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.preparation.prepare import Prepared
from learn_torchrec.datasets.sequences import SequenceSet, refuse_unknown_actions
from learn_torchrec.errors import UserError
from learn_torchrec.schema import (
    ACTION,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    TIMESTAMP,
    USER_ID,
)

KIND = "sequences"
USERS_FILE, ITEM_COUNTS_FILE = "users.parquet", "item_counts.parquet"
USER_IDS_FILE = "user_ids.arrow"
_COLUMNS = {"items": np.int64, "times": np.int64, "actions": np.int16}

logger = logging.getLogger(__name__)


def write_prepared(
    working_dir: Path, prepared: Prepared, items: pa.Table
) -> dict[str, object]:
    """Write a prepared log and its item table, a batch of events at a time.

    Args:
        working_dir: of the artefact.
        prepared: what `prepare` returned.
        items: the item table whose rows the events name.

    Returns:
        Facts for the manifest.
    """
    counts = _write_events(working_dir, prepared, items)
    users = prepared.users
    offsets = np.r_[0, np.cumsum(users["events"].to_numpy())]
    np.save(working_dir / "offsets.npy", offsets)
    pq.write_table(items, working_dir / ITEMS_FILE)
    pq.write_table(users, working_dir / USERS_FILE)
    pq.write_table(counts, working_dir / ITEM_COUNTS_FILE)
    ids = pa.table({USER_ID: users[USER_ID].combine_chunks()})
    with pa.ipc.new_file(str(working_dir / USER_IDS_FILE), ids.schema) as sink:
        sink.write_table(ids)
    return {
        "events": int(offsets[-1]),
        "users": users.num_rows,
        "test_users": int(np.count_nonzero(users["is_test"].to_numpy())),
        "items": items.num_rows,
        "items_with_events": counts.num_rows,
        "actions": prepared.actions,
        "moment": prepared.moment,
        "dropped": prepared.dropped,
    }


def _write_events(working_dir: Path, prepared: Prepared, items: pa.Table) -> pa.Table:
    """Write a file for each column, plainly: pages of a map would fill memory.

    Returns:
        Of every item with an event: its id, `events` and `history_events`.
    """
    events, early = (np.zeros(items.num_rows, np.int64) for _ in range(2))
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context((working_dir / f"{name}.npy").open("wb"))
            for name in _COLUMNS
        ]
        _write_headers(files, 0)
        done = 0
        for batch in prepared.events():
            columns = [
                np.ascontiguousarray(column.to_numpy(zero_copy_only=False), kind)
                for column, kind in zip(batch.columns, _COLUMNS.values(), strict=True)
            ]
            for file, values in zip(files, columns, strict=True):
                file.write(values.data)
            np.add.at(events, columns[0], 1)
            np.add.at(early, columns[0][columns[1] < prepared.moment], 1)
            done += batch.num_rows
        _write_headers(files, done)
    seen = np.flatnonzero(events)
    return pa.table(
        {
            ITEM_ID: items[ITEM_ID].take(pa.array(seen)),
            "events": events[seen],
            "history_events": early[seen],
        }
    )


def _write_headers(files: Sequence[BinaryIO], count: int) -> None:
    """Write, or write again, the headers of arrays of `count` values.

    NumPy leaves room in a header for the number to grow.
    """
    for file, kind in zip(files, _COLUMNS.values(), strict=True):
        file.seek(0)
        header = np.lib.format.header_data_from_array_1_0(np.empty(0, kind))
        np.lib.format.write_array_header_1_0(file, header | {"shape": (count,)})


class PreparedDataset(Dataset):
    """What `learn-torchrec prepare` wrote.

    Its sequences are memory-mapped; give `split.towers_until` as the manifest's
    `moment`. It has no impressions.
    """

    def __init__(self, path: str) -> None:
        super().__init__(Path(path))
        self.manifest: Manifest = read_manifest(self.directory, KIND)

    def fingerprint(self, file: str) -> str:
        """Return the digest of the artefact, or of its item table."""
        if file == ITEMS_FILE:
            return super().fingerprint(file)
        return self.manifest.fingerprint

    @functools.cached_property
    def times(self) -> NDArray[np.int64]:
        """Times of all events, memory-mapped."""
        return self._map("times")

    def sequences(self, store: ContentStore, actions: Sequence[str]) -> SequenceSet:
        """Return the users' events of the wanted actions.

        Memory-mapped as they are where all actions are wanted and the content store
        has the item table's order; otherwise picked or renumbered in memory.

        Raises:
            UserError: a file is damaged, or events without a content vector.
        """
        verify(self.directory, KIND)
        names = self.manifest.facts["actions"]
        refuse_unknown_actions(actions, names)
        source = pa.memory_map(str(self.directory / USER_IDS_FILE))
        user_ids = pa.ipc.open_file(source).read_all()[USER_ID].combine_chunks()
        whole = SequenceSet(
            user_ids=user_ids,
            offsets=self._map("offsets"),
            items=self._rows_in(store),
            times=self.times,
            actions=self._map("actions"),
            action_names=tuple(names),
        )
        if set(names) <= set(actions):
            return whole
        wanted = [number for number, name in enumerate(names) if name in actions]
        chosen = whole.select_events(np.isin(self._map("actions"), wanted))
        return chosen.select_users(chosen.lengths > 0)

    def _rows_in(self, store: ContentStore) -> NDArray[np.int64]:
        items = self._map("items")
        ids = self.items[ITEM_ID].combine_chunks()
        rows = store.rows_of(ids)
        counts = pq.read_table(self.directory / ITEM_COUNTS_FILE, columns=[ITEM_ID])
        seen = pc.is_in(ids, value_set=counts[ITEM_ID].combine_chunks())
        lacking = np.flatnonzero(seen.to_numpy(zero_copy_only=False) & (rows < 0))
        if lacking.size:
            raise UserError(
                f"{store.directory}: has no content vector of item "
                f"{ids[int(lacking[0])].as_py()!r} ({lacking.size} such items with "
                f"events in {self.directory}); encode its items again"
            )
        if np.array_equal(rows, np.arange(len(rows))):
            return items
        logger.info("%s: events are renumbered to the store's rows", self.directory)
        return rows[items]

    def _read(self, file: str) -> pa.Table:
        if file == ITEMS_FILE:
            return super()._read(file)
        if file != INTERACTIONS_FILE:
            raise UserError(
                f"{self.directory}: a prepared: data set has no impressions; give the "
                "ranker's stages the data set that it was made from"
            )
        names = pa.array(self.manifest.facts["actions"])
        users = pq.read_table(self.directory / USERS_FILE, columns=[USER_ID, "events"])
        owner = np.repeat(np.arange(users.num_rows), users["events"].to_numpy())
        return pa.table(
            {
                USER_ID: users[USER_ID].take(pa.array(owner)),
                ITEM_ID: self.items[ITEM_ID].take(pa.array(self._map("items"))),
                TIMESTAMP: pa.array(self.times),
                ACTION: names.take(pa.array(self._map("actions"))),
            }
        )

    def _map(self, name: str) -> NDArray[Any]:
        path = self.directory / f"{name}.npy"
        try:
            return np.asarray(np.load(path, mmap_mode="r"))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: damaged ({reason}); prepare the data again"
            ) from None
