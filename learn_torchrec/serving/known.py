"""What a bundle's LEARN inputs are for requests: vectors, histories, rates.

Letters: B rows of all requests, E events, N items of the bundle.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Int64Array
from learn_torchrec.artifact import Manifest
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.ids import UNKNOWN, IdIndex
from learn_torchrec.jagged import first_at_or_after, offsets_of
from learn_torchrec.ranker.learn.batch import LearnBatch, LearnRows
from learn_torchrec.ranker.learn.histories import Histories
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.neighbours import NeighbourRates
from learn_torchrec.ranker.learn.reduced import CONTENT, ReducedContent
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.schema import ITEM_ID, TIMESTAMP, USER_ID
from learn_torchrec.serving.model import item_ids
from learn_torchrec.serving.request import RankRequest, ids_of
from learn_torchrec.serving.served import LEARN, Served
from learn_torchrec.serving.snapshot import KnownEvents, open_labels
from learn_torchrec.vector_table import ITEMS, USERS, VectorTable

EVENTS, LABELS = "events", "labels"


@dataclass(frozen=True)
class Known:
    """LEARN's inputs of a bundle.

    Attributes:
        inputs: vectors, content and neighbours.
        events: of the users' histories; None if no part needs them.
        actions: of the events of a history.
        as_of: unix seconds; `events` are those strictly before.
    """

    inputs: LearnInputs
    events: KnownEvents | None
    actions: tuple[str, ...]
    as_of: int

    @classmethod
    def open(cls, directory: Path, served: Served, manifest: Manifest) -> "Known":
        """Map the inputs that a bundle holds.

        Raises:
            OSError: a file is missing; ValueError, ArrowInvalid: damaged.
        """
        assert served.learn is not None
        folder, vectors, content = directory / LEARN, None, None
        if USERS in served.parts:
            vectors = LearnVectors(
                users=VectorTable.open(folder / USERS),
                items=VectorTable.open(folder / ITEMS),
                manifest=manifest,
            )
        if CONTENT in served.parts:
            index = IdIndex.open(folder / CONTENT)
            content = ReducedContent.open(folder / CONTENT, index)
        inputs = LearnInputs(vectors, content, served.learn)
        if LABELS in served.parts and content is not None:
            past = open_labels(folder / LABELS, len(served.tasks))
            rates = NeighbourRates(content, past, served.learn.neighbours)
            inputs = dataclasses.replace(inputs, neighbours=rates)
        events = None
        if EVENTS in served.parts:
            events = KnownEvents.open(folder / EVENTS)
        return cls(inputs, events, served.actions, served.as_of)

    def batch(
        self, requests: Sequence[RankRequest], table: pa.Table, owners: Int64Array
    ) -> LearnBatch:
        """Return LEARN's inputs of requests.

        Args:
            requests: to score.
            table: their candidates, B rows.
            owners: int64 [B], the request of each row.
        """
        times = table[TIMESTAMP].to_numpy()
        items = self.inputs.index.rows_of(table[ITEM_ID].combine_chunks())
        users = rates = history = None
        if self.inputs.vectors is not None:
            ids = table[USER_ID].combine_chunks()
            users = self.inputs.vectors.users.rows_as_of(ids, None)
        if self.inputs.neighbours is not None:
            rates = self.inputs.neighbours.of(items, times)
        inputs = self.inputs
        if self.events is not None:
            histories, bounds = self._histories(requests)
            inputs = dataclasses.replace(inputs, histories=histories)
            history = bounds[owners]
        rows = LearnRows(
            item_rows=items,
            user_rows=users,
            times=times,
            history=history,
            neighbour_rates=rates,
        )
        return inputs.batch(rows, item_ids)

    def _histories(
        self, requests: Sequence[RankRequest]
    ) -> tuple[Histories, Int64Array]:
        """Return the requests' histories, and the bounds [requests, 2] of each."""
        assert self.events is not None
        kind = self.events.index.type
        users = self.events.index.rows_of(
            ids_of([request.user_id for request in requests], kind, USER_ID)
        )
        parts = [self._events(*pair) for pair in zip(requests, users, strict=True)]
        offsets = offsets_of(np.array([len(items) for items, _ in parts]))
        items, times = (np.concatenate(each) for each in zip(*parts, strict=True))
        sequences = SequenceSet.of_offsets(
            offsets,
            user_ids=pa.array(np.arange(len(requests))),
            items=items,
            times=times,
            actions=np.zeros(len(items), np.int16),
            action_names=("any",),
        )
        now = np.array([request.timestamp for request in requests], np.int64)
        ends = first_at_or_after(times, offsets[:-1], offsets[1:], now)
        return Histories.build(sequences), np.stack([offsets[:-1], ends], axis=1)

    def _events(self, request: RankRequest, user: int) -> tuple[Int64Array, Int64Array]:
        """Return items and times of a request's history, in the order of time."""
        assert self.events is not None
        items, times = self.events.of(user)
        since = self.as_of if user != UNKNOWN else None
        given = [
            (item, time)
            for item, time, action in request.events
            if action in self.actions and (since is None or time >= since)
        ]
        if not given:
            return items, times
        index = self.inputs.index
        rows = index.rows_of(ids_of([item for item, _ in given], index.type, "events"))
        when = np.array([time for _, time in given], np.int64)
        known = rows != UNKNOWN
        items, times = np.r_[items, rows[known]], np.r_[times, when[known]]
        order = np.argsort(times, kind="stable")
        return items[order], times[order]
