"""What all kinds of ID feature share: columns, lists, weights and their tables.

Letters: N rows, V ids of all rows together.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PositiveInt

from learn_torchrec.arrays import BoolArray, Float32Array, Int64Array
from learn_torchrec.config import OPERATIONAL, Width, configuration, require
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import offsets_of, positions_in, take_index
from learn_torchrec.placement import ShardingKind
from learn_torchrec.ranker.features.columns import FeatureColumn, Nulls, read_column

if TYPE_CHECKING:  # serving has neither TorchRec nor an optimizer
    import torch
    from torchrec.modules.mc_modules import MCHManagedCollisionModule

    from learn_torchrec.training.table_optimizer import TableOptimizerConfig

TABLE_PREFIX = "t_"
DEFAULT_ROWS = 100_000


@dataclass(frozen=True, kw_only=True)
class IdBags:
    """One ID feature of many rows: a bag of table rows each.

    Attributes:
        values: int64 [V], table rows, or keys that TorchRec maps to rows.
        offsets: int64 [N + 1] of the bags.
        weights: float32 [V]; None for 1.
        left_out: int64 [N], ids of each row that were dropped because the table has no
            row for them; None where the table takes any id.
        has_null: bool [N], rows with a null, which has no id; None without nulls. Rows
            that are taken or joined lose it: `RankingRows` keeps it.
    """

    values: Int64Array
    offsets: Int64Array
    weights: Float32Array | None = None
    left_out: Int64Array | None = None
    has_null: BoolArray | None = None

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

    def filter(self, keep: BoolArray) -> "IdBags":
        """Return all bags with only the ids where `keep` [V] is true."""
        return dataclasses.replace(
            self,
            values=self.values[keep],
            offsets=offsets_of(keep.astype(np.int64))[self.offsets],
            weights=None if self.weights is None else self.weights[keep],
        )


def joined_ids(bags: Sequence[IdBags]) -> tuple[Int64Array, Float32Array | None]:
    """Return the values of several features' bags in turn, and their weights.

    The weights are None where no feature has some, and 1 for those that have none.
    """
    weights = None
    if any(ids.weights is not None for ids in bags):
        parts = [
            np.ones(len(ids.values), np.float32) if ids.weights is None else ids.weights
            for ids in bags
        ]
        weights = np.concatenate(parts)
    return np.concatenate([ids.values for ids in bags]), weights


@configuration
class IdFeature:
    """An ID feature: a column of ids, or of lists of them (multi-hot).

    A kind of ID feature is a subclass in its own file: its settings, how an id maps
    to a row of its table (`rows_of`), and its requirements and limits.

    Attributes:
        column: of the impressions or the catalogue.
        name: of the feature and its table; by default the column, with `_` for dots.
        weights: a column of numbers in the shape of `column`, one weight per id in
            the bag's sum; None for 1.
        pooling: of the embeddings of a row's ids: their "sum", their "mean", or
            target "attention" (DIN): each id's weight depends on it and the `query`.
        query: the feature that attention compares the ids with, such as the
            candidate's `item_id`; it shares its table with this feature.
        table: the feature whose table this one shares; None for a table of its own.
            Both must map ids to rows alike; the table's size, dim and sharding are
            set there.
        embedding_dim: of its table, a multiple of 4; None for
            `ranker.model.embedding_dim`. A linear layer projects other dims to that.
        padding: an id that stands for none, such as 0; it is dropped.
        max_length: of a row's list, whose last ids are kept; None for all.
        sharding: of its table; None for `ranker.sharding.kind`.
        ids: the kind's name; a constant of every kind.
    """

    is_managed: ClassVar[bool] = False  # TorchRec maps ids to rows in training
    may_drop_ids: ClassVar[bool] = False  # ids outside the table are dropped
    may_grow: ClassVar[bool] = False  # row n keeps its id in a larger table

    column: str
    name: str = ""
    weights: str | None = None
    pooling: Literal["sum", "mean", "attention"] = "sum"
    query: str | None = None
    table: str | None = None
    embedding_dim: Annotated[Width, Field(multiple_of=4)] | None = None
    padding: int | str | None = None
    max_length: PositiveInt | None = None
    sharding: Annotated[ShardingKind | None, OPERATIONAL] = None
    ids: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.default_name)
        require(
            "." not in self.name,
            f"name: {self.name!r} has a dot, which names of tables must not have",
        )
        require(
            (self.pooling == "attention") == (self.query is not None),
            f"query: attention needs one, other poolings have none (column "
            f"{self.column!r})",
        )
        require(
            self.weights is None or self.pooling == "sum",
            f"weights: are of a sum, not of {self.pooling} (column {self.column!r})",
        )

    @property
    def default_name(self) -> str:
        """The column, with `_` for dots."""
        return self.column.replace(".", "_")

    @property
    def table_name(self) -> str:
        """The name of its table, or of the one that it shares."""
        return TABLE_PREFIX + (self.table or self.name)

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

    def check(self, optimizer: "TableOptimizerConfig", device: "torch.device") -> None:
        """Refuse an optimizer or a device that this kind cannot work with.

        Raises:
            UserError: names feature, setting and fix.
        """

    def collision_module(
        self, eviction_interval: int, device: "torch.device"
    ) -> "MCHManagedCollisionModule":
        """Return what maps ids to rows while training, for a managed kind."""
        raise NotImplementedError

    def encode(self, table: pa.Table, source: str, nulls: Nulls = "refuse") -> IdBags:
        """Return the feature of every row of a table; nulls have no id.

        Raises:
            UserError: a column is missing or has a wrong type, there is not one weight
                per id, or nulls are refused; names `source`, column and row.
        """
        ids = read_column(table, self.column, source, nulls)
        rows = self.rows_of(ids)
        weights = None
        if self.weights:
            weights = _weights_of(ids, read_column(table, self.weights, source, nulls))
        bags = IdBags(
            values=rows,
            offsets=offsets_of(ids.lengths),
            weights=weights,
            has_null=ids.has_null,
        )
        if self.padding is not None:
            bags = bags.filter(_is_not(ids, self.padding))
        if self.max_length is not None:
            left = np.repeat(bags.lengths, bags.lengths) - positions_in(bags.lengths)
            bags = bags.filter(left <= self.max_length)
        if self.may_drop_ids:
            known = bags.filter(bags.values >= 0)
            left_out = bags.lengths - known.lengths
            bags = dataclasses.replace(known, left_out=left_out)
        return bags


@configuration
class SizedFeature(IdFeature):
    """An ID feature whose table has a configured number of rows.

    Attributes:
        num_embeddings: rows of its table; None for what derivation chooses (see
            `derive`), without it 100,000.
    """

    num_embeddings: PositiveInt | None = None

    @property
    def table_rows(self) -> int:
        """Rows of its table."""
        return self.num_embeddings or DEFAULT_ROWS


def _is_not(ids: FeatureColumn, padding: int | str) -> BoolArray:
    """Return which ids are not padding, bool [V].

    Raises:
        UserError: padding of another type than the ids.
    """
    kind = ids.values.type
    try:
        differs = pc.not_equal(ids.values, pa.scalar(padding).cast(kind))
    except pa.ArrowException:
        raise UserError(
            f"{ids.source}: column {ids.name!r} is {kind}, which padding={padding!r} "
            "is not; name an id of that type, or null"
        ) from None
    found: BoolArray = differs.to_numpy(zero_copy_only=False)
    return found


def _weights_of(ids: FeatureColumn, weights: FeatureColumn) -> Float32Array:
    """Return the weight of every id, float32 [V].

    Raises:
        UserError: not one weight per id, or an id whose weight is null.
    """
    if not np.array_equal(ids.all_lengths, weights.all_lengths):
        wrong = int(np.argmax(ids.all_lengths != weights.all_lengths))
        raise UserError(
            f"{ids.source}: column {weights.name!r} has {weights.all_lengths[wrong]} "
            f"weights in row {ids.row_numbers[wrong]}, but {ids.name!r} has "
            f"{ids.all_lengths[wrong]} ids; write one weight per id"
        )
    numbers: Float32Array = weights.spread(weights.numbers(), np.nan)
    if ids.is_valid is not None:
        numbers = numbers[ids.is_valid]
    if np.isnan(numbers).any():
        row = ids.row_of(np.argmax(np.isnan(numbers)))
        raise UserError(
            f"{ids.source}: column {weights.name!r} is null in row {row}, where "
            f"{ids.name!r} has an id; write one weight per id"
        )
    return numbers
