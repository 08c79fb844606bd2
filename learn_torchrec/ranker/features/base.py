"""What all kinds of ID feature share: columns, lists, weights and their tables.

Letters: N rows, V ids of all rows together.
"""

import functools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import PositiveInt
from torchrec import EmbeddingBagConfig
from torchrec.modules.mc_modules import MCHManagedCollisionModule

from learn_torchrec.arrays import Float32Array, Int64Array
from learn_torchrec.config import OPERATIONAL, configuration, require
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import offsets_of, take_index
from learn_torchrec.ranker.features.columns import FeatureColumn, read_column
from learn_torchrec.training.sharding import ShardingKind
from learn_torchrec.training.table_optimizer import TableOptimizerConfig

TABLE_PREFIX = "t_"


@dataclass(frozen=True, kw_only=True)
class IdBags:
    """One ID feature of many rows: a bag of table rows each, for sum pooling.

    Attributes:
        values: int64 [V], table rows, or keys that TorchRec maps to rows.
        offsets: int64 [N + 1] of the bags.
        weights: float32 [V]; None for 1.
        left_out: int64 [N], ids of each row that were dropped because the table has no
            row for them; None where the table takes any id.
    """

    values: Int64Array
    offsets: Int64Array
    weights: Float32Array | None = None
    left_out: Int64Array | None = None

    @property
    def lengths(self) -> Int64Array:
        """Ids in each bag, int64 [N]."""
        return np.diff(self.offsets)

    @functools.cached_property
    def _single_valued(self) -> bool:
        """Whether every bag has exactly one id, so that rows index the values."""
        return bool((self.lengths == 1).all())

    def take(self, rows: Int64Array) -> "IdBags":
        """Return the bags of the rows with these indices."""
        if self._single_valued:
            index, offsets = rows, np.arange(len(rows) + 1)
        else:
            index, offsets = take_index(self.offsets, rows)
        return IdBags(
            values=self.values[index],
            offsets=offsets,
            weights=None if self.weights is None else self.weights[index],
            left_out=None if self.left_out is None else self.left_out[rows],
        )


@configuration
class IdFeature:
    """An ID feature: a column of ids, or of lists of them (multi-hot).

    A kind of ID feature is a subclass in its own file: its settings, how an id maps
    to a row of its table (`rows_of`), and its requirements and limits.

    Attributes:
        column: of the impressions; also the feature's name.
        weights: a column of numbers in the shape of `column`, one weight per id in
            the bag's sum; None for 1.
        sharding: of its table; None for `ranker.sharding.kind`.
        ids: the kind's name; a constant of every kind.
    """

    is_managed: ClassVar[bool] = False  # TorchRec maps ids to rows in training
    may_drop_ids: ClassVar[bool] = False  # ids outside the table are dropped
    may_grow: ClassVar[bool] = False  # row n keeps its id in a larger table

    column: str
    weights: str | None = None
    sharding: Annotated[ShardingKind | None, OPERATIONAL] = None
    ids: str

    def __post_init__(self) -> None:
        require(
            "." not in self.column,
            f"column: {self.column!r} has a dot, which feature names must not have; "
            "rename the column",
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return (self.column, self.weights) if self.weights else (self.column,)

    @property
    def table_rows(self) -> int:
        """Rows of its table."""
        raise NotImplementedError

    @property
    def row_mapping(self) -> str:
        """How ids map to rows; a warm start reuses a table if it is unchanged."""
        return self.ids

    def rows_of(self, ids: FeatureColumn) -> Int64Array:
        """Return the table row of every id, int64 [V]; -1 where it has none.

        Raises:
            UserError: ids of a type that this kind does not take.
        """
        raise NotImplementedError

    def check(self, optimizer: TableOptimizerConfig, device: torch.device) -> None:
        """Refuse an optimizer or a device that this kind cannot work with.

        Raises:
            UserError: names feature, setting and fix.
        """

    def collision_module(
        self, eviction_interval: int, device: torch.device
    ) -> MCHManagedCollisionModule:
        """Return what maps ids to rows while training, for a managed kind."""
        raise NotImplementedError

    def encode(self, table: pa.Table, source: str) -> IdBags:
        """Return the feature of every row of a table.

        Raises:
            UserError: a column is missing, has nulls or a wrong type, or there is not
                one weight per id; names `source`, column and row.
        """
        ids = read_column(table, self.column, source)
        rows = self.rows_of(ids)
        weights = None
        if self.weights:
            column = read_column(table, self.weights, source)
            _refuse_other_lengths(ids, column)
            weights = column.numbers()
        offsets = offsets_of(ids.lengths)
        if not self.may_drop_ids:
            return IdBags(values=rows, offsets=offsets, weights=weights)
        is_known = rows >= 0
        kept = offsets_of(is_known.astype(np.int64))[offsets]
        return IdBags(
            values=rows[is_known],
            offsets=kept,
            weights=None if weights is None else weights[is_known],
            left_out=ids.lengths - np.diff(kept),
        )

    def table(self, embedding_dim: int) -> EmbeddingBagConfig:
        """Return the TorchRec configuration of its table."""
        return EmbeddingBagConfig(
            name=TABLE_PREFIX + self.column,
            embedding_dim=embedding_dim,
            num_embeddings=self.table_rows,
            feature_names=[self.column],
        )


@configuration
class SizedFeature(IdFeature):
    """An ID feature whose table has a configured number of rows.

    Attributes:
        num_embeddings: rows of its table.
    """

    num_embeddings: PositiveInt = 100_000

    @property
    def table_rows(self) -> int:
        """Rows of its table."""
        return self.num_embeddings


def _refuse_other_lengths(ids: FeatureColumn, weights: FeatureColumn) -> None:
    if np.array_equal(ids.lengths, weights.lengths):
        return
    wrong = int(np.argmax(ids.lengths != weights.lengths))
    raise UserError(
        f"{ids.source}: column {weights.name!r} has {weights.lengths[wrong]} weights "
        f"in row {ids.row_numbers[wrong]}, but {ids.name!r} has {ids.lengths[wrong]} "
        "ids; write one weight per id"
    )
