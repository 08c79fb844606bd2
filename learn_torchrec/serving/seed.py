"""The events of a log, for a store of events."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.schema import ACTION, INTERACTIONS_FILE, ITEM_ID, TIMESTAMP, USER_ID
from learn_torchrec.serving.events import Event, EventStore, SeedRow

_BLOCK_ROWS = 50_000


def seed(store: EventStore, dataset: Dataset, actions: Sequence[str] | None) -> int:
    """Add a data set's interactions to a store, once; return how many were added.

    Args:
        store: where to.
        dataset: whose log.
        actions: of the events; None for all.
    """
    chosen = "all" if actions is None else ",".join(sorted(actions))
    name = f"{dataset.fingerprint(INTERACTIONS_FILE)} {chosen}"
    return store.seed(name, _rows(dataset, actions))


def _rows(dataset: Dataset, actions: Sequence[str] | None) -> Iterator[SeedRow]:
    log = dataset.interactions.select([USER_ID, ITEM_ID, TIMESTAMP, ACTION])
    if actions is not None:
        wanted = pa.array(actions, log[ACTION].type)
        log = log.filter(pc.is_in(log[ACTION], wanted))
    log = log.take(pa.array(np.argsort(log[TIMESTAMP].to_numpy(), kind="stable")))
    seen: dict[tuple[object, ...], int] = {}
    second = None
    for start in range(0, log.num_rows, _BLOCK_ROWS):
        block = log.slice(start, _BLOCK_ROWS)
        for key in zip(*(column.to_pylist() for column in block.columns), strict=True):
            user, item, time, action = key
            if time != second:  # equal events are of one second
                second, seen = time, {}
            copy = seen.get(key, 0)
            seen[key] = copy + 1
            yield SeedRow(user, Event(item, time, action), copy)
