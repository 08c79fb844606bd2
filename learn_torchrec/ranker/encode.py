"""Encoding impressions as arrays: checked columns, table rows, vector rows."""

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import Float32Array
from learn_torchrec.datasets.loading.tables import BINARY, REQUIRED, check
from learn_torchrec.ranker.features import FeaturesConfig
from learn_torchrec.ranker.features.dense import encode_dense, encode_weights
from learn_torchrec.ranker.features.lookups import Lookups
from learn_torchrec.ranker.learn.inputs import RowFinder
from learn_torchrec.ranker.rows import RankingRows
from learn_torchrec.ranker.tasks import TaskConfig, label_columns
from learn_torchrec.schema import IMPRESSIONS_FILE

if TYPE_CHECKING:
    from learn_torchrec.ranker.config import RankerConfig


@dataclass(frozen=True)
class Encoder:
    """Encodes tables of impressions where they are read, possibly in a worker process.

    Attributes:
        features: the columns to read.
        tasks: whose labels to read; none to score rows without labels.
        learn: finds LEARN's inputs; None with LEARN off.
        source: of the tables, for messages.
        lookups: columns that the tables lack.
        labelled: whether the rows must have labels; 0 stands for one that is missing.
    """

    features: FeaturesConfig
    tasks: tuple[TaskConfig, ...]
    learn: RowFinder | None
    source: str
    lookups: Lookups | None = None
    labelled: bool = True

    def __call__(self, table: pa.Table) -> RankingRows:
        """Check and encode a table; raises as `checked` and `encode`."""
        return self.encode(self.checked(table))

    def checked(self, table: pa.Table) -> pa.Table:
        """Return a table with plain types in the columns that every ranker needs.

        Raises:
            UserError: a column is missing, has nulls or a wrong type or value.
        """
        kinds = _kinds(self.tasks)
        if not self.labelled:
            kinds = {n: k for n, k in kinds.items() if k != BINARY or n in table.schema}
        return check(table, kinds, self.source)

    def encode(self, table: pa.Table) -> RankingRows:
        """Encode a checked table.

        What LEARN knows of a row is from strictly before its timestamp.

        Raises:
            UserError: a feature column is missing or has a wrong type or value; or the
                ids are of another type than the vectors', the catalogue's or the log's.
        """
        if self.lookups is not None:
            table = self.lookups.add_to(table, self.source)
        features, nulls = self.features, self.features.nulls
        bags = {f.name: f.encode(table, self.source, nulls) for f in features.sparse}
        dense, dense_nulls = encode_dense(table, features.dense, self.source, nulls)
        has_null = np.zeros((table.num_rows, len(bags) + len(dense_nulls)), bool)
        sparse_nulls = (ids.has_null for ids in bags.values())
        for place, rows in enumerate(chain(sparse_nulls, dense_nulls)):
            if rows is not None:
                has_null[:, place] = rows
        return RankingRows(
            dense=dense,
            sparse={f.name: bags[f.name] for f in features.pooled},
            managed={f.name: bags[f.name] for f in features.managed},
            sequences={f.name: bags[f.name] for f in features.sequences},
            labels={name: _labels(table, name) for name in label_columns(self.tasks)},
            weights=encode_weights(table, self.source),
            learn=None if self.learn is None else self.learn(table, self.source),
            has_null=has_null,
            nullable=(*bags, *(feature.column for feature in features.dense)),
        )


def _labels(table: pa.Table, name: str) -> Float32Array:
    """Return a column of labels, float32 [N]; 0 where there is none."""
    if name not in table.column_names:
        return np.zeros(table.num_rows, np.float32)
    labels = table[name].cast(pa.float32())  # from bool or decimal, too
    return np.asarray(pc.fill_null(labels, 0).to_numpy())


def columns_of(config: "RankerConfig") -> tuple[str, ...]:
    """Return the columns that a ranker learns from, lookups included, each once."""
    columns = [*_kinds(config.tasks), *config.features.columns]
    return tuple(dict.fromkeys(columns))


def _kinds(tasks: tuple[TaskConfig, ...]) -> dict[str, str]:
    """Return the columns besides the features, and the kind of each."""
    labels = dict.fromkeys(label_columns(tasks), BINARY)
    return REQUIRED[IMPRESSIONS_FILE] | labels
