"""What the ranker reads of LEARN: vectors, histories, neighbours' conversions.

`RowFinder` finds, for a table of impressions, where everything is; `LearnInputs.batch`
fetches it for the rows of a batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from learn_torchrec.arrays import Column, Float16Array, Int64Array
from learn_torchrec.artifact import verify
from learn_torchrec.config import replace
from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.histories import Catalogue
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN, IdIndex, as_ids, refuse_other_type
from learn_torchrec.ranker.learn.batch import HistoryBatch, LearnBatch, LearnRows
from learn_torchrec.ranker.learn.config import LearnConfig, Space
from learn_torchrec.ranker.learn.histories import EventTimes, Histories, JaggedHistory
from learn_torchrec.ranker.learn.neighbours import NeighbourRates, PastLabels
from learn_torchrec.ranker.learn.reduced import ReducedContent
from learn_torchrec.ranker.learn.shape import LearnShape
from learn_torchrec.ranker.learn.statistics import TargetStatistics, mean_of_history
from learn_torchrec.ranker.learn.vectors import (
    KIND,
    LearnVectors,
    columns_of_batch,
    rows_as_of,
)
from learn_torchrec.ranker.tasks import TaskConfig
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    ITEM_ID,
    TIMESTAMP,
    USER_ID,
)
from learn_torchrec.times import YEAR_2200
from learn_torchrec.vector_table import VectorTable

KeyedIds: TypeAlias = Callable[[list[str], Tensor, Tensor], Any]

_DAY = 86_400.0
_LEAST_NORM = 1e-6
_BLOCK_ROWS = 512  # whose statistics are computed at a time


@dataclass(frozen=True)
class RowFinder:
    """Finds LEARN's inputs of impressions; picklable, for reader processes.

    Attributes:
        items: of the item vectors' ids.
        users: the users' vectors; None without towers.
        events: of the users' histories; None if no part needs them.
        neighbours: None without.
        meeting: computes the statistics of the rows; None if the model does.
    """

    items: IdIndex
    users: VectorTable | None = None
    events: EventTimes | None = None
    neighbours: NeighbourRates | None = None
    meeting: Callable[[LearnRows], LearnRows] | None = None

    def __call__(self, table: pa.Table, source: str) -> LearnRows:
        """Return where the inputs of checked impressions are.

        All of it is from strictly before a row's timestamp.

        Raises:
            UserError: ids of another type than the vectors' or the log's.
        """
        times = table[TIMESTAMP].to_numpy()
        return self.find(table[USER_ID], table[ITEM_ID], times, source)

    def find(
        self, user_ids: Column, item_ids: Column, times: Int64Array, source: str
    ) -> LearnRows:
        """Return where the inputs of users and items [N] are; see `__call__`."""
        items = item_rows(self.items, item_ids, source)
        users = history = rates = None
        if self.users is not None:
            users = rows_as_of(self.users, user_ids, USER_ID, times, source)
        if self.events is not None:
            history = self.events.before(user_ids, times, source)
        if self.neighbours is not None:
            rates = self.neighbours.of(items, times)
        rows = LearnRows(
            item_rows=items,
            user_rows=users,
            times=times,
            history=history,
            neighbour_rates=rates,
        )
        return rows if self.meeting is None else self.meeting(rows)


@dataclass(frozen=True)
class LearnInputs:
    """LEARN's inputs of a ranker.

    Attributes:
        vectors: of users and items, from the towers; None without towers.
        content: of the items, reduced; in the same rows. One of the two is there.
        config: of LEARN's part.
        histories: None if no part needs them.
        neighbours: None without.
    """

    vectors: LearnVectors | None
    content: ReducedContent | None = None
    config: LearnConfig = field(default_factory=LearnConfig)
    histories: Histories | None = None
    neighbours: NeighbourRates | None = None

    @classmethod
    def load(
        cls,
        directory: str | Path,
        data: str | Dataset,
        actions: Sequence[str] | None = None,
        config: LearnConfig | None = None,
    ) -> Self:
        """Return the inputs of somebody's own ranker, ready for `of_ids`.

        Args:
            directory: written by `export-vectors`.
            data: the data set whose log holds the histories, as ADAPTER:PATH. Its
                impressions, if there are any, give the neighbours' rates.
            actions: of the events of a history; None for those of the vectors.
            config: which inputs; None for the defaults.

        Raises:
            UserError: no such artefact or data, a damaged file (all are verified), bad
                tables, or no actions known.
        """
        verify(Path(directory), KIND)
        dataset = open_dataset(data) if isinstance(data, str) else data
        config = config or LearnConfig()
        if not dataset.has_impressions:
            config = replace(config, neighbours=0)
        vectors = LearnVectors.open(Path(directory))
        actions = actions or vectors.manifest.config.get("split", {}).get("actions")
        if not actions:
            raise UserError(
                f"{directory}: does not say which actions its users' vectors know; "
                'name those of a history, as in actions=["buy"]'
            )
        inputs = cls(vectors, vectors.content, config)
        return inputs.read(dataset, [TaskConfig()], actions)

    def of_ids(
        self, user_ids: Column, item_ids: Column, timestamps: Column | None = None
    ) -> LearnBatch:
        """Return what is known of users and items by id, strictly before a moment.

        Columns may be NumPy, pandas, pyarrow or torch arrays, sequences, or one value.
        Unknown users and items have no vector, unknown users no history either.

        Args:
            user_ids: [B] integers or strings.
            item_ids: [B] integers or strings.
            timestamps: [B] unix seconds or datetimes; None for the second after the
                log's last event (serving).

        Raises:
            UserError: ids of another type than the vectors' or the log's, null ids,
                null timestamps, timestamps that must be milliseconds or are before the
                towers' cut-off, or different lengths.
        """
        users, items, times = columns_of_batch(user_ids, item_ids, timestamps)
        if self.vectors is not None:
            self.vectors.refuse_early(times)
        if times is None:
            times = np.full(len(users), self._after_the_log)
        return self.batch(self.finder().find(users, items, times, "the batch"))

    @functools.cached_property
    def _after_the_log(self) -> int:
        events = None if self.histories is None else self.histories.events
        if events is None:  # nothing but vectors: the latest
            return YEAR_2200
        return int(events.times.max(initial=0)) + 1

    def read(
        self, dataset: Dataset, tasks: Sequence[TaskConfig], actions: Sequence[str]
    ) -> Self:
        """Return the inputs with what the configured parts need beside the vectors.

        Args:
            dataset: with the interactions and, for neighbours' rates, impressions.
            tasks: whose labels' rates are read.
            actions: of the events of a history.

        Raises:
            UserError: bad interactions or impressions.
        """
        config, inputs = self.config, self
        if self.spaces:
            sequences = dataset.sequences(
                Catalogue(Path("vectors"), self.index), actions
            )
            histories = Histories.build(sequences)
            inputs = dataclasses.replace(inputs, histories=histories)
        if config.is_residual and config.neighbours and self.content is not None:
            past = [_past_labels(dataset, self.content, task.label) for task in tasks]
            rates = NeighbourRates(self.content, past, config.neighbours)
            inputs = dataclasses.replace(inputs, neighbours=rates)
        return inputs

    @property
    def index(self) -> IdIndex:
        """Of the items' ids."""
        if self.vectors is not None:
            return self.vectors.items.index
        assert self.content is not None
        return self.content.index

    @property
    def shape(self) -> LearnShape:
        """The widths that the model's parts need to know."""
        return LearnShape(
            vector_dim=0 if self.vectors is None else self.vectors.dim,
            content_dim=0 if self.content is None else self.content.vectors.shape[1],
            rates=0 if self.neighbours is None else self.neighbours.width,
            items=len(self.index),
        )

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces in which a candidate meets a history."""
        return self.config.spaces(self.shape.spaces)

    def finder(self, in_memory: bool = False) -> RowFinder:
        """Return what finds the inputs of impressions.

        For rows that stay `in_memory` the statistics are computed once, with the rows;
        else the model computes them in each step, on its device.
        """
        attends = self.config.attention != "off"
        meets = in_memory and bool(self.spaces) and not attends
        return RowFinder(
            items=self.index,
            users=None if self.vectors is None else self.vectors.users,
            events=None if self.histories is None else self.histories.events,
            neighbours=self.neighbours,
            meeting=self._met if meets else None,
        )

    def batch(self, rows: LearnRows, keyed: KeyedIds | None = None) -> LearnBatch:
        """Fetch the inputs of a batch's rows.

        `keyed` makes what holds the ids of attention of names, values and lengths;
        None for a `KeyedJaggedTensor`.

        Raises:
            UserError: a vector is not finite.
        """
        users = items = history = candidates = ids = None
        has_user = np.zeros(len(rows.item_rows), bool)
        if self.vectors is not None and rows.user_rows is not None:
            has_user = rows.user_rows != UNKNOWN
            users = torch.from_numpy(self.vectors.users.gather(rows.user_rows))
            items = torch.from_numpy(self.vectors.items.gather(rows.item_rows))
        if self.histories is not None and rows.history is not None:
            found = self.histories.gather(rows.history, self.config.history_length)
            history = self.history(found, rows)
            if self.config.attends_to_ids:
                ids = attention_ids(found, rows.item_rows, keyed or _keyed_jagged)
        if self.content is not None and self.config.is_residual:
            candidates = torch.from_numpy(self.content.unit_vectors(rows.item_rows))
        has_vectors = np.stack([has_user, rows.item_rows != UNKNOWN], axis=1)
        return LearnBatch(
            has_vectors=torch.from_numpy(has_vectors),
            user_vectors=users,
            item_vectors=items,
            candidates=candidates,
            history=history,
            item_ids=ids,
            **{
                name: torch.from_numpy(rows.columns[name])
                for name in ("neighbour_rates", "statistics", "history_means")
                if name in rows.columns
            },
        )

    @torch.no_grad()
    def _met(self, rows: LearnRows) -> LearnRows:
        """Return rows with statistics in the place of their histories."""
        assert self.histories is not None
        assert rows.history is not None
        fitting = self.config.that_fits(self.shape.spaces).statistics
        module, parts = TargetStatistics(fitting), []
        for start in range(0, max(1, len(rows)), _BLOCK_ROWS):
            part = rows.take(slice(start, start + _BLOCK_ROWS))
            assert part.history is not None
            found = self.histories.gather(part.history, self.config.history_length)
            history = self.history(found, part)
            means = None
            if "content" in self.spaces:
                means = mean_of_history(history).numpy()
            parts.append(
                dataclasses.replace(
                    part,
                    history=None,
                    statistics=module(history).numpy() if fitting.spaces else None,
                    history_means=means,
                )
            )
        return LearnRows.concatenate(parts)

    def history(self, found: JaggedHistory, rows: LearnRows) -> HistoryBatch:
        """Return histories of rows with the vectors that meet in them."""
        lengths = np.diff(found.offsets)
        used = pa.array(np.r_[rows.item_rows, found.items]).dictionary_encode()
        distinct = np.r_[UNKNOWN, used.dictionary.to_numpy()]
        places = torch.from_numpy(used.indices.to_numpy().astype(np.int64) + 1)
        ages = (np.repeat(rows.times, lengths) - found.times) / _DAY
        return HistoryBatch(
            candidates=places[: len(lengths)],
            items=places[len(lengths) :],
            lengths=torch.from_numpy(lengths),
            counts=torch.from_numpy(found.counts.astype(np.float32)),
            ages=torch.from_numpy(ages.astype(np.float32)),
            vectors={
                space: torch.from_numpy(self.unit_vectors(space, distinct))
                for space in self.spaces
            },
            longest=int(max(1, lengths.max(initial=0))),
        )

    def unit_vectors(self, space: Space, rows: Int64Array) -> Float16Array:
        """Return vectors of items [n] of unit length; zeros where -1."""
        if space == "content" and self.content is not None:
            return self.content.unit_vectors(rows)
        assert self.vectors is not None
        vectors = self.vectors.items.gather(rows).astype(np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.maximum(norms, _LEAST_NORM)).astype(np.float16)


def attention_ids(found: JaggedHistory, candidates: Int64Array, keyed: KeyedIds) -> Any:
    """Return the ids of candidates and histories in what `keyed` makes of them."""
    known = candidates != UNKNOWN
    lengths = np.r_[known.astype(np.int64), np.diff(found.offsets)]
    values = np.r_[candidates[known], found.items]
    names = ["candidate", "history"]
    return keyed(names, torch.from_numpy(values), torch.from_numpy(lengths))


def _keyed_jagged(names: list[str], values: Tensor, lengths: Tensor) -> Any:
    from torchrec import KeyedJaggedTensor  # serving has no TorchRec

    return KeyedJaggedTensor(keys=names, values=values, lengths=lengths.int()).sync()


def item_rows(index: IdIndex, ids: Column, source: str) -> Int64Array:
    """Return the row of each item, int64 [n]; -1 where it has none.

    Raises:
        UserError: ids of another type than the vectors'.
    """
    name = f"{source}: column {ITEM_ID!r}"
    wanted = as_ids(ids, name)
    refuse_other_type(wanted, index.type, name, "the vectors")
    return index.rows_of(wanted)


def _past_labels(dataset: Dataset, content: ReducedContent, label: str) -> PastLabels:
    """Read the labelled impressions of known items."""
    items = times = labels = np.empty(0, np.int64)
    if label in dataset.schema(IMPRESSIONS_FILE).names:
        table = dataset.columns(IMPRESSIONS_FILE, [ITEM_ID, TIMESTAMP, label])
        table = table.filter(pc.is_valid(table[label]))
        if table.num_rows:
            name = dataset.name(IMPRESSIONS_FILE)
            checked = dataset.check(IMPRESSIONS_FILE, table, [ITEM_ID, TIMESTAMP])
            items = item_rows(content.index, checked[ITEM_ID], name)
            times = checked[TIMESTAMP].to_numpy()
            is_one = pc.equal(checked[label].cast(pa.float64(), safe=False), 1)
            labels = is_one.to_numpy().astype(np.int64)
    known = items != UNKNOWN
    items, times, labels = items[known], times[known], labels[known]
    texts = np.asarray(content.texts)[items].astype(np.int64)
    return PastLabels.of(texts, items, times, labels)
