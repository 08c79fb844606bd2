"""A prepared data set on disk: memory-mapped sequences.

An artefact (kind "sequences") of `items.parquet`, the item table; `user_ids.arrow`,
sorted; `offsets.npy`, of each user's events; `items.npy` (rows of the item table),
`times.npy` (unix seconds) and `actions.npy` (positions in the manifest's names), with a
value per event: int32 (times beyond 2038 int64) and int16; and `item_events.npy`, the
number of events of each item. Counted once, for all ranks of later stages: the times of
the events and of the impressions (`moments`, `impression_moments`), the items' events
by day (`item_days`), and the indices of both ids. `adapters/prepared.py` reads it.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import Int64Array
from learn_torchrec.datasets.moments import Moments
from learn_torchrec.datasets.preparation.day_counts import EventDays, write_item_days
from learn_torchrec.datasets.preparation.prepare import PreparedLog
from learn_torchrec.ids import IdIndex
from learn_torchrec.jagged import offsets_of
from learn_torchrec.page_checksums import WRITTEN
from learn_torchrec.schema import ITEM_ID, ITEMS_FILE, USER_ID

KIND = "sequences"
USER_IDS_FILE = "user_ids.arrow"
ITEM_EVENTS = "item_events"
MOMENTS, IMPRESSION_MOMENTS, ITEM_DAYS = "moments", "impression_moments", "item_days"
USER_INDEX, ITEM_INDEX = "user_index", "item_index"
_COUNTED = 1 << 24  # events at a time


def file_of(name: str) -> str:
    """Return the file name of an array."""
    return f"{name}.npy"


def write_prepared(
    working_dir: Path,
    log: PreparedLog,
    items: pa.Table,
    impressions: Moments | None = None,
) -> dict[str, object]:
    """Write a prepared log and its item table, in batches of events.

    Args:
        working_dir: of the artefact.
        log: from `prepare`.
        items: the item table; events refer to its rows.
        impressions: their times, counted, if there are some.

    Returns:
        Facts for the manifest.
    """
    item_events = _write_events(working_dir, log, items.num_rows)
    offsets = offsets_of(log.users["events"].to_numpy())
    np.save(working_dir / file_of("offsets"), offsets)
    np.save(working_dir / file_of(ITEM_EVENTS), item_events)
    pq.write_table(items, working_dir / ITEMS_FILE, **WRITTEN)
    ids = pa.table({USER_ID: log.users[USER_ID].combine_chunks()})
    with pa.ipc.new_file(str(working_dir / USER_IDS_FILE), ids.schema) as sink:
        sink.write_table(ids)
    for name, each in ((USER_INDEX, ids[USER_ID]), (ITEM_INDEX, items[ITEM_ID])):
        (working_dir / name).mkdir()
        IdIndex.build(each, name).write(working_dir / name)
    _count(working_dir, item_events, len(log.actions))
    if impressions is not None:
        impressions.write(working_dir / IMPRESSION_MOMENTS)
    return {
        "events": int(offsets[-1]),
        "users": log.users.num_rows,
        "items": items.num_rows,
        "items_with_events": int(np.count_nonzero(item_events)),
        "actions": log.actions,
        "moment": log.moment,
        "dropped": log.dropped,
    }


def _write_events(working_dir: Path, log: PreparedLog, num_items: int) -> Int64Array:
    """Write a file per column and return the events of each item, int64 [num_items].

    Files are not memory-mapped, as their pages would fill memory.
    """
    item_events = np.zeros(num_items, np.int64)
    is_short = log.latest <= np.iinfo(np.int32).max  # until 2038
    kinds: dict[str, np.dtype[Any]] = {
        "items": np.dtype(np.int32),
        "times": np.dtype(np.int32 if is_short else np.int64),
        "actions": np.dtype(np.int16),
    }
    with contextlib.ExitStack() as stack:
        files: dict[IO[bytes], np.dtype[Any]] = {
            stack.enter_context((working_dir / file_of(name)).open("wb")): kind
            for name, kind in kinds.items()
        }
        _write_headers(files, 0)
        done = 0
        for batch in log.events():
            columns = [
                np.ascontiguousarray(column.to_numpy(zero_copy_only=False), kind)
                for column, kind in zip(batch.columns, files.values(), strict=True)
            ]
            for file, values in zip(files, columns, strict=True):
                file.write(values.data)
            np.add.at(item_events, columns[0], 1)
            done += batch.num_rows
        _write_headers(files, done)
    return item_events


def _count(working_dir: Path, item_events: Int64Array, num_actions: int) -> None:
    """Count the events' times and days from the files that hold them, in parts."""
    items, times, actions = (
        map_array(working_dir / file_of(name)) for name in ("items", "times", "actions")
    )
    starts = range(0, len(times), _COUNTED)
    moments = Moments.of_parts(times[start : start + _COUNTED] for start in starts)
    moments.write(working_dir / MOMENTS)
    days = EventDays(times, moments)
    folder = working_dir / ITEM_DAYS
    write_item_days(folder, items, days, actions, item_events, num_actions)


def _write_headers(files: Mapping[IO[bytes], np.dtype[Any]], count: int) -> None:
    """Write or rewrite the headers of arrays of `count` values of each type.

    NumPy leaves room in a header for the count to grow.
    """
    for file, kind in files.items():
        file.seek(0)
        header = np.lib.format.header_data_from_array_1_0(np.empty(0, kind))
        np.lib.format.write_array_header_1_0(file, header | {"shape": (count,)})
