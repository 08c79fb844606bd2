"""What a bundle's LEARN inputs are for requests: vectors, histories, rates.

Letters: B rows of all requests, E events, N items of the bundle.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_torchrec.array_files import map_array
from learn_torchrec.arrays import Float32Array, Int64Array
from learn_torchrec.artifact import Manifest
from learn_torchrec.content.reduction import REDUCTION_FILE, Reduction
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.ids import UNKNOWN, IdIndex
from learn_torchrec.jagged import first_at_or_after, offsets_of, take_index
from learn_torchrec.matrix import SHARDS, ShardedMatrix
from learn_torchrec.ranker.learn.batch import LearnBatch, LearnRows
from learn_torchrec.ranker.learn.histories import Histories, JaggedHistory
from learn_torchrec.ranker.learn.inputs import LearnInputs, attention_ids
from learn_torchrec.ranker.learn.reduced import CONTENT, ReducedContent
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.schema import ITEM_ID, TIMESTAMP, USER_ID
from learn_torchrec.serving.extras import with_extras
from learn_torchrec.serving.model import item_ids
from learn_torchrec.serving.request import Questions, RankRequest, ids_of
from learn_torchrec.serving.served import LEARN, Served
from learn_torchrec.serving.shared_history import SharedHistory, meet, statistics_of
from learn_torchrec.serving.snapshot import KnownEvents
from learn_torchrec.vector_table import ITEMS, USERS, VectorTable

EVENTS, RATES = "events", "rates"
RATES_FILE = "rates.npy"


@dataclass(frozen=True)
class Known:
    """LEARN's inputs of a bundle.

    Attributes:
        inputs: vectors and content.
        reduction: of content, for items that the bundle lacks; None without.
        rates: float32 [N, tasks + 1], of the neighbours; None without.
        events: of the users' histories; None if no part needs them.
        actions: of the events of a history.
        as_of: unix seconds; `events` are those strictly before.
    """

    inputs: LearnInputs
    reduction: Reduction | None
    rates: Float32Array | None
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
            content = _open_content(folder / CONTENT)
        inputs = LearnInputs(vectors, content, served.learn)
        rates = None
        if RATES in served.parts:
            rates = map_array(folder / RATES_FILE, np.float32, 2)
            if len(rates) != len(inputs.index):
                raise ValueError(f"{RATES_FILE}: of other items")
        events = None
        if EVENTS in served.parts:
            events = KnownEvents.open(folder / EVENTS)
        reduction = None
        if (folder / CONTENT / REDUCTION_FILE).exists():
            reduction = Reduction.read(folder / CONTENT)
        return cls(inputs, reduction, rates, events, served.actions, served.as_of)

    def batch(self, requests: Sequence[RankRequest], asked: Questions) -> LearnBatch:
        """Return LEARN's inputs of requests, B rows."""
        inputs, owners = self.inputs, asked.owners
        rows = inputs.index.rows_of(asked.each[ITEM_ID].combine_chunks())
        items = len(inputs.index)
        inputs, rows = with_extras(inputs, self.reduction, requests, rows, owners)
        in_bundle = (rows != UNKNOWN) & (rows < items)
        has_user = np.zeros(len(rows), bool)
        found: dict[str, Any] = {}
        if inputs.vectors is not None:
            ids = asked.once[USER_ID].combine_chunks()
            users = inputs.vectors.users.rows_as_of(ids, None)
            has_user = (users != UNKNOWN)[owners]
            found["user_vectors"] = inputs.vectors.users.gather(users)[owners]
            found["item_vectors"] = inputs.vectors.items.gather(rows)
        if inputs.content is not None and inputs.config.is_residual:
            found["candidates"] = inputs.content.unit_vectors(rows)
        if self.rates is not None:
            rates = self.rates[np.where(in_bundle, rows, 0)]
            found["neighbour_rates"] = np.where(in_bundle[:, None], rates, 0)
        found["has_vectors"] = np.stack([has_user, rows != UNKNOWN], axis=1)
        tensors: dict[str, Any] = {
            name: torch.from_numpy(np.asarray(part)) for name, part in found.items()
        }
        batch = LearnBatch(**tensors)
        if self.events is not None:
            known = dataclasses.replace(self, inputs=inputs)
            known._meet(batch, requests, rows, asked)
        return batch

    def _meet(
        self,
        batch: LearnBatch,
        requests: Sequence[RankRequest],
        rows: Int64Array,
        asked: Questions,
    ) -> None:
        """Add to a batch what the candidates find in the histories."""
        inputs = self.inputs
        histories, bounds = self._histories(requests)
        met = histories.gather(bounds, inputs.config.history_length)
        ends = np.searchsorted(asked.owners, np.arange(len(requests)), side="right")
        parts, module = [], statistics_of(inputs)
        for request, (start, end) in enumerate(itertools.pairwise([0, *ends.tolist()])):
            if start < end:
                own, time = _only(met, request), requests[request].timestamp
                history = SharedHistory.of(inputs, rows[start:end], own, time)
                parts.append(meet(history, module))
        statistics, means = zip(*parts, strict=True)
        if statistics[0] is not None:
            batch.statistics = torch.cat(statistics)
        if means[0] is not None:
            batch.history_means = torch.cat(means)
        if inputs.config.attention != "off":
            each = _repeated(met, asked.owners)
            times = asked.each[TIMESTAMP].to_numpy()
            where = LearnRows(item_rows=rows, user_rows=None, times=times)
            batch.history = inputs.history(each, where)
            if inputs.config.attends_to_ids:
                batch.item_ids = attention_ids(
                    each, np.where(rows < len(inputs.index), rows, UNKNOWN), item_ids
                )

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


def _open_content(directory: Path) -> ReducedContent:
    """Map reduced content; its neighbours became rates when it was exported."""
    return ReducedContent(
        index=IdIndex.open(directory),
        vectors=ShardedMatrix.open(sorted(directory.glob(f"{SHARDS}-*.npy"))),
        texts=np.empty(0, np.int32),
        neighbours=np.empty((0, 0), np.int32),
        similarities=np.empty((0, 0), np.float16),
    )


def _only(met: JaggedHistory, row: int) -> JaggedHistory:
    """Return one of some histories."""
    own = slice(int(met.offsets[row]), int(met.offsets[row + 1]))
    count = own.stop - own.start
    return JaggedHistory(
        items=met.items[own],
        offsets=np.array([0, count]),
        counts=met.counts[own],
        times=met.times[own],
    )


def _repeated(met: JaggedHistory, owners: Int64Array) -> JaggedHistory:
    """Return the history of each row."""
    index, offsets = take_index(met.offsets, owners)
    return JaggedHistory(
        items=met.items[index],
        offsets=offsets,
        counts=met.counts[index],
        times=met.times[index],
    )
