"""Impressions as arrays: what a ranking batch is cut from.

Dimension letters: N rows, F dense features, D vector dim.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from learn_torchrec.config import require
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.hashing import hash_ids
from learn_torchrec.ranker.vectors import LearnVectors
from learn_torchrec.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID, WEIGHT

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SparseFeature:
    """An ID feature: an integer or string column, or a list of them (multi-hot).

    Attributes:
        column: of the impressions; also the feature's name.
        num_embeddings: rows of its table; ids are hashed to them.
    """

    column: str
    num_embeddings: int = 100_000

    def __post_init__(self) -> None:
        require(self.num_embeddings > 0, f"{self.column}.num_embeddings: at least 1")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Which columns of the impressions the ranker reads.

    Attributes:
        sparse: ID features.
        dense: number columns.
    """

    sparse: tuple[SparseFeature, ...] = (
        SparseFeature(column=USER_ID),
        SparseFeature(column=ITEM_ID),
    )
    dense: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [feature.column for feature in self.sparse]
        require(len(names) > 0, "ranker.features.sparse: name at least one column")
        for kind, listed in (("sparse", names), ("dense", list(self.dense))):
            require(
                len(set(listed)) == len(listed),
                f"ranker.features.{kind}: a column is listed twice",
            )


@dataclass(frozen=True, kw_only=True)
class JaggedIds:
    """One ID feature of all rows: values [sum] and offsets [N + 1], int64."""

    values: Ints
    offsets: Ints

    def take(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the values and lengths of some rows."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        starts = self.offsets[rows] - (np.cumsum(lengths) - lengths)
        index = np.arange(lengths.sum()) + np.repeat(starts, lengths)
        return self.values[index], lengths


@dataclass(frozen=True, kw_only=True)
class RankingRows:
    """All rows of a set of impressions.

    Attributes:
        dense: float32 [N, F].
        sparse: an ID feature each, in the order of the configuration.
        labels: float32 [N] of 0 and 1.
        weights: float32 [N].
        user_rows: int64 [N], rows of the user vectors, -1 where missing.
        item_rows: int64 [N], likewise.
        vectors: where those rows point; None with LEARN off.
    """

    dense: Floats
    sparse: dict[str, JaggedIds]
    labels: Floats
    weights: Floats
    user_rows: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    item_rows: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    vectors: LearnVectors | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: NDArray[np.bool_]) -> "RankingRows":
        """Return the rows where `keep` [N] is true."""
        rows = np.flatnonzero(keep)
        sparse = {}
        for name, feature in self.sparse.items():
            values, lengths = feature.take(rows)
            sparse[name] = JaggedIds(values=values, offsets=np.r_[0, lengths.cumsum()])
        return dataclasses.replace(
            self,
            dense=self.dense[rows],
            sparse=sparse,
            labels=self.labels[rows],
            weights=self.weights[rows],
            user_rows=self.user_rows[rows] if self.vectors else self.user_rows,
            item_rows=self.item_rows[rows] if self.vectors else self.item_rows,
        )

    def coverage(self) -> dict[str, float]:
        """Share of rows that have a user vector, and an item vector."""
        if self.vectors is None:
            return {}
        return {
            "user_vectors": float((self.user_rows >= 0).mean()),
            "item_vectors": float((self.item_rows >= 0).mean()),
        }


def prepare_rows(
    impressions: pa.Table,
    features: FeaturesConfig,
    vectors: LearnVectors | None,
    source: str,
) -> RankingRows:
    """Turn checked impressions into arrays and find each row's vectors as of its time.

    Raises:
        UserError: a feature column that is missing, has nulls or the wrong type, or
            ids whose type differs from the vectors'.
    """
    for name in (*(f.column for f in features.sparse), *features.dense):
        _require(impressions, name, source)
    rows = RankingRows(
        dense=_dense(impressions, features.dense, source),
        sparse={
            feature.column: _sparse(impressions, feature, source)
            for feature in features.sparse
        },
        labels=impressions[LABEL].to_numpy().astype(np.float32),
        weights=_weights(impressions, source),
    )
    if vectors is None:
        return rows
    times = impressions[TIMESTAMP].to_numpy()
    found = []
    for column, table in ((USER_ID, vectors.users), (ITEM_ID, vectors.items)):
        ids = impressions[column].combine_chunks()
        if ids.type != table.ids.type:
            raise UserError(
                f"{source}: column {column!r} is {ids.type} but {table.ids.type} in "
                "the vectors; use one type for ids"
            )
        found.append(table.rows_as_of(ids, times))
    return dataclasses.replace(
        rows, user_rows=found[0], item_rows=found[1], vectors=vectors
    )


def _require(table: pa.Table, name: str, source: str) -> None:
    if name not in table.column_names:
        raise UserError(
            f"{source}: feature column {name!r} is missing; it has: "
            f"{', '.join(table.column_names)}; add it, or change ranker.features"
        )
    column = table[name]
    if column.null_count:
        row = pc.index(column.is_null(), pa.scalar(True)).as_py()
        raise UserError(
            f"{source}: feature column {name!r} is null in row {row}; fill it"
        )


def _dense(table: pa.Table, names: tuple[str, ...], source: str) -> Floats:
    matrix = np.empty((table.num_rows, len(names)), np.float32)
    for index, name in enumerate(names):
        kind = table[name].type
        if not (pt.is_floating(kind) or pt.is_integer(kind) or pt.is_boolean(kind)):
            raise UserError(
                f"{source}: dense feature {name!r} is {kind}, must be a number; "
                "cast it, or list it under ranker.features.sparse"
            )
        values = table[name].cast(pa.float32(), safe=False).to_numpy()
        finite = np.isfinite(values)
        if not finite.all():
            raise UserError(
                f"{source}: dense feature {name!r} is {values[np.argmin(finite)]} in "
                f"row {int(np.argmin(finite))}; replace it by a finite number"
            )
        matrix[:, index] = values
    return matrix


def _sparse(table: pa.Table, feature: SparseFeature, source: str) -> JaggedIds:
    column = table[feature.column].combine_chunks()
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_list = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list)
    if any(matches(column.type) for matches in is_list):
        lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
        values = column.flatten()
    else:
        lengths = np.ones(len(column), np.int64)
        values = column
    if values.null_count:
        raise UserError(
            f"{source}: a list in column {feature.column!r} holds a null; drop it"
        )
    return JaggedIds(
        values=hash_ids(values, feature.num_embeddings, feature.column),
        offsets=np.r_[0, np.cumsum(lengths)],
    )


def _weights(table: pa.Table, source: str) -> Floats:
    if WEIGHT not in table.column_names:
        return np.ones(table.num_rows, np.float32)
    weights: Floats = _dense(table, (WEIGHT,), source)[:, 0]
    if weights.min() < 0:
        row = int(np.argmax(weights < 0))
        raise UserError(f"{source}: column {WEIGHT!r} is negative in row {row}")
    return weights
