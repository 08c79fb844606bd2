"""Writing a trained ranker as a bundle, which `runner.Runner` loads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.export import ExportedProgram
from torchrec.distributed import DistributedModelParallel

from learn_torchrec.arrays import decoded
from learn_torchrec.config import replace
from learn_torchrec.content.reduction import Reduction
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.ids import normal_type
from learn_torchrec.ranker.build import build_task
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.encode import Encoder
from learn_torchrec.ranker.features.codes import CodeColumns
from learn_torchrec.ranker.features.lookups import (
    ItemColumns,
    Lookups,
    find_columns,
)
from learn_torchrec.ranker.features.past import PastPairs, PastValues
from learn_torchrec.ranker.learn.batch import LearnBatch
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.reduced import CONTENT
from learn_torchrec.ranker.model import LearnRanker
from learn_torchrec.ranker.rows import RankingRows
from learn_torchrec.schema import IMPRESSIONS_FILE, ITEM_ID, TIMESTAMP, USER_ID
from learn_torchrec.serving.dense import DensePart, export_dense
from learn_torchrec.serving.fixed_rows import at_moment, latest_impressions
from learn_torchrec.serving.known import EVENTS, RATES, RATES_FILE
from learn_torchrec.serving.model import (
    HISTORY_TABLE,
    POOLED,
    SEQUENCES,
    ServedModel,
    item_ids,
)
from learn_torchrec.serving.served import (
    CATALOGUE,
    CODES,
    LEARN,
    PAST,
    TABLES_FILE,
    IdType,
    PastSettings,
    Served,
)
from learn_torchrec.serving.shared_history import met
from learn_torchrec.serving.signature import CANDIDATE_IDS, HISTORY_IDS
from learn_torchrec.serving.snapshot import (
    KnownEvents,
    write_matrix,
    write_past,
    write_table,
)
from learn_torchrec.serving.tables import Group, Lookup, Precision, Table, pack
from learn_torchrec.training.sharding import full_state_dict, table_of
from learn_torchrec.vector_table import ITEMS, USERS

_RANKER = "ranker."


@dataclass(frozen=True)
class Weights:
    """A trained ranker in its two parts.

    Attributes:
        dense: all but the tables, ready to be traced.
        tables: float32 [rows, dim], by name.
        groups: of the tables.
    """

    dense: DensePart
    tables: Mapping[str, Tensor]
    groups: tuple[Group, ...]

    @classmethod
    def of(
        cls,
        model: DistributedModelParallel,
        config: RankerConfig,
        learn: LearnInputs | None,
    ) -> "Weights":
        """Take a trained ranker apart; it stays as it is."""
        state = full_state_dict(model)
        shape = None if learn is None else learn.shape
        ranker = build_task(config, shape, torch.device("cpu")).ranker
        groups = _groups(ranker)
        names = {group.name: tuple(n for n, _ in group.features) for group in groups}
        part = DensePart(ranker, names[POOLED], names.get(SEQUENCES, ()))
        dense = {
            name.removeprefix(_RANKER): values
            for name, values in state.items()
            if table_of(name) is None
        }
        ranker.load_state_dict(dense)
        tables = {
            table: values for name, values in state.items() if (table := table_of(name))
        }
        return cls(part.eval(), tables, groups)

    def write_tables(self, directory: Path, precision: Precision) -> None:
        """Write the tables into a bundle."""
        packed = {name: pack(table, precision) for name, table in self.tables.items()}
        save_file(packed, directory / TABLES_FILE)

    def lookups(self, precision: Precision, device: torch.device) -> dict[str, Lookup]:
        """Return the tables, ready to be read, by group."""
        packed = {name: pack(table, precision) for name, table in self.tables.items()}
        return {
            group.name: Lookup(group, precision, packed, device)
            for group in self.groups
        }

    def export(
        self, surroundings: "Surroundings", served: Served, rows: pa.Table
    ) -> ExportedProgram:
        """Trace the dense part on some impressions."""
        cpu = torch.device("cpu")
        model = ServedModel(served, self.lookups("float", cpu), self.dense, cpu)
        encoded = surroundings.encoder("the latest impressions")(rows)
        batch = surroundings.learn_batch(encoded)
        return export_dense(self.dense, model.inputs(encoded, batch))


def _groups(ranker: LearnRanker) -> tuple[Group, ...]:
    sparse = ranker.sparse_arch
    bags = sparse.embedding_bag_collection.embedding_bag_configs()
    found = [_group(POOLED, bags, pooled=True)]
    if sparse.embedding_collection is not None:
        configs = sparse.embedding_collection.embedding_configs()
        found.append(_group(SEQUENCES, configs, pooled=False))
    if ranker.history_ids is not None:
        configs = ranker.history_ids.embedding_configs()
        group = _group(HISTORY_TABLE, configs, pooled=False)
        names = ((CANDIDATE_IDS, 0), (HISTORY_IDS, 0))
        found.append(replace(group, features=names))
    return tuple(found)


def _group(name: str, configs: Sequence[Any], pooled: bool) -> Group:
    tables, features = [], []
    for place, each in enumerate(configs):
        rows, dim = each.num_embeddings, each.embedding_dim
        tables.append(Table(name=each.name, rows=rows, dim=dim))
        features += [(feature, place) for feature in each.feature_names]
    return Group(
        name=name, tables=tuple(tables), features=tuple(features), pooled=pooled
    )


@dataclass(frozen=True)
class Surroundings:
    """What a ranker reads beside a request.

    Attributes:
        dataset: of the log.
        config: of the ranker.
        actions: of the events that count.
        learn: LEARN's inputs; None for the baseline.
        lookups: columns that impressions lack.
        codes: of content; None without.
        as_of: unix seconds; what happened strictly before is known.
        reduction: of content, for later items; None where it is not known.
    """

    dataset: Dataset
    config: RankerConfig
    actions: tuple[str, ...]
    learn: LearnInputs | None
    lookups: Lookups
    codes: CodeColumns | None
    as_of: int
    reduction: Reduction | None = None

    def served(self, groups: tuple[Group, ...], precision: Precision) -> Served:
        """Return what a bundle says of the ranker."""
        schema, learn = self.dataset.schema(IMPRESSIONS_FILE), self.learn
        lookups = {CATALOGUE: self.lookups.items, CODES: self.lookups.codes}
        columns = [past.column for past in self.lookups.past]
        return Served(
            features=self.config.features,
            tasks=self.config.tasks,
            learn=None if learn is None else learn.config,
            user_ids=_id_type(schema, USER_ID),
            item_ids=_id_type(schema, ITEM_ID),
            actions=self.actions,
            as_of=self.as_of,
            past=tuple(
                PastSettings(
                    name=each.name,
                    id_column=each.id_column,
                    label=each.label,
                    shared=each.shared,
                )
                for each in columns
            ),
            lookups=tuple(name for name, part in lookups.items() if part is not None),
            precision=precision,
            groups=groups,
            parts=() if learn is None else _parts(learn),
        )

    def encoder(self, source: str) -> Encoder:
        """Return what encodes rows as in training; `source` is named in messages."""
        return Encoder(
            self.config.features,
            self.config.tasks,
            None if self.learn is None else self.learn.finder(),
            source,
            self.lookups,
            labelled=False,
        )

    def learn_batch(self, rows: RankingRows) -> LearnBatch | None:
        """Return LEARN's inputs of encoded rows as the exported program takes them."""
        if self.learn is None or rows.learn is None:
            return None
        return met(self.learn.batch(rows.learn, item_ids), self.learn)

    def context(self) -> pa.Schema:
        """Return the columns that requests bring, and their types."""
        schema = self.dataset.schema(IMPRESSIONS_FILE)
        features = self.config.features
        here = find_columns(self.dataset, features, self.config.tasks, self.codes)
        keys = (USER_ID, ITEM_ID, TIMESTAMP)
        names = [name for name in here.impressions if name not in keys]
        return pa.schema([(name, decoded(schema.field(name).type)) for name in names])

    def fixed_rows(self, count: int) -> pa.Table:
        """Return the rows of the certificate, see `fixed_rows`."""
        rows = latest_impressions(self.dataset, self.context().names, (), count)
        return at_moment(rows, self.as_of)

    def labelled_rows(self, count: int) -> pa.Table:
        """Return the latest impressions with labels, at their own times."""
        labels = [task.label for task in self.config.tasks]
        names = self.context().names
        return latest_impressions(self.dataset, names, labels, count)

    def write(self, directory: Path) -> None:
        """Write everything into a bundle but the model."""
        if self.lookups.items is not None:
            self.lookups.items.write(directory / CATALOGUE)
        if isinstance(self.lookups.codes, CodeColumns):
            _columns_of(self.lookups.codes).write(directory / CODES)
        for past in self.lookups.past:
            assert isinstance(past, PastValues | PastPairs)
            write_past(directory / PAST / past.column.name, past, self.as_of)
        if self.learn is not None:
            _write_learn(directory / LEARN, self.learn, self.as_of)
            if self.learn.content is not None and self.reduction is not None:
                self.reduction.write(directory / LEARN / CONTENT)


def _id_type(schema: pa.Schema, name: str) -> IdType:
    kind = normal_type(decoded(schema.field(name).type), name)
    return "int64" if pa.types.is_integer(kind) else "string"


def _parts(learn: LearnInputs) -> tuple[str, ...]:
    parts = {
        USERS: learn.vectors,
        CONTENT: learn.content,
        RATES: learn.neighbours,
        EVENTS: learn.histories,
    }
    return tuple(name for name, part in parts.items() if part is not None)


def _write_learn(directory: Path, learn: LearnInputs, as_of: int) -> None:
    if learn.vectors is not None:
        write_table(directory / USERS, learn.vectors.users, as_of)
        write_table(directory / ITEMS, learn.vectors.items)
    if learn.content is not None:
        folder, content = directory / CONTENT, learn.content
        folder.mkdir(parents=True)
        content.index.write(folder)
        write_matrix(folder, content.vectors)
    if learn.neighbours is not None:
        rows = np.arange(len(learn.index))
        rates = learn.neighbours.of(rows, np.full(len(rows), as_of))
        np.save(directory / RATES_FILE, rates)
    if learn.histories is not None:
        KnownEvents.before(learn.histories, as_of).write(directory / EVENTS)


def _columns_of(codes: CodeColumns) -> ItemColumns:
    """Return the columns of codes of all items that have some."""
    items = pa.table({ITEM_ID: codes.codes.index.ids})
    name = str(codes.codes.directory)
    return ItemColumns(codes.add_to(items, name), name)
