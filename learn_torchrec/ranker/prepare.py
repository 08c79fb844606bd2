"""Impressions to arrays: features checked, ids hashed, vectors found.

Dimension letters: N rows, F dense features.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER
from learn_torchrec.datasets.loading.tables import row_of
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.hashing import as_integers, hash_ids, raw_keys
from learn_torchrec.ranker.rows import (
    FeaturesConfig,
    Floats,
    Ints,
    JaggedIds,
    RankingRows,
    SparseFeature,
)
from learn_torchrec.ranker.vectors import LearnVectors
from learn_torchrec.schema import ITEM_ID, LABEL, TIMESTAMP, USER_ID, WEIGHT


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
    for name in features.columns:
        _require(impressions, name, source)
    auxiliary = features.auxiliary_label
    rows = RankingRows(
        dense=_dense(impressions, features.dense, source),
        sparse={
            feature.column: _sparse(impressions, feature, source)
            for feature in features.sparse
        },
        labels=impressions[LABEL].to_numpy().astype(np.float32),
        weights=_weights(impressions, source),
        auxiliary_labels=_binary(impressions, auxiliary, source) if auxiliary else None,
        managed=frozenset(
            f.column for f in features.sparse if f.ids == "managed_collision"
        ),
    )
    if vectors is None:
        return rows
    user_rows, item_rows = vectors.rows(
        impressions[USER_ID].combine_chunks(),
        impressions[ITEM_ID].combine_chunks(),
        impressions[TIMESTAMP].to_numpy(),
        source,
    )
    return dataclasses.replace(
        rows, user_rows=user_rows, item_rows=item_rows, vectors=vectors
    )


def _require(table: pa.Table, name: str, source: str) -> None:
    if name not in table.column_names:
        raise UserError(
            f"{source}: feature column {name!r} is missing; it has: "
            f"{', '.join(table.column_names)}; add it, or change ranker.features"
        )
    column = table[name]
    if column.null_count:
        row = row_of(table, pc.index(column.is_null(), pa.scalar(True)).as_py())
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
                f"row {row_of(table, np.argmin(finite))}; replace it by a finite number"
            )
        matrix[:, index] = values
    return matrix


def _sparse(table: pa.Table, feature: SparseFeature, source: str) -> JaggedIds:
    values, lengths = _flatten(table, feature.column, source)
    offsets = np.r_[0, np.cumsum(lengths)]
    weights = None
    if feature.weights:
        weights = _id_weights(table, feature, lengths, source)
    if feature.ids == "index":
        return _indexed(as_integers(values, feature.column), offsets, weights, feature)
    if feature.ids == "managed_collision":
        rows = raw_keys(values, feature.column)
    else:
        rows = hash_ids(values, feature.num_embeddings, feature.column)
    return JaggedIds(values=rows, offsets=offsets, weights=weights)


def _flatten(table: pa.Table, name: str, source: str) -> tuple[pa.Array, Ints]:
    """Return a column's entries and how many each row has, 1 where it is no list."""
    column = table[name].combine_chunks()
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_list = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list)
    if not any(matches(column.type) for matches in is_list):
        return column, np.ones(len(column), np.int64)
    values = column.flatten()
    if values.null_count:
        raise UserError(f"{source}: a list in column {name!r} holds a null; drop it")
    return values, pc.list_value_length(column).to_numpy().astype(np.int64)


def _id_weights(
    table: pa.Table, feature: SparseFeature, lengths: Ints, source: str
) -> Floats:
    name = str(feature.weights)
    values, counts = _flatten(table, name, source)
    if not np.array_equal(counts, lengths):
        wrong = int(np.argmax(counts != lengths))
        raise UserError(
            f"{source}: column {name!r} has {counts[wrong]} weights in row "
            f"{row_of(table, wrong)}, but {feature.column!r} has {lengths[wrong]} ids; "
            "write one weight for each id"
        )
    rows = np.arange(table.num_rows)
    if ROW_NUMBER in table.column_names:
        rows = table[ROW_NUMBER].to_numpy()
    entries = pa.table({name: values, ROW_NUMBER: np.repeat(rows, lengths)})
    return _dense(entries, (name,), source)[:, 0]


def _indexed(
    ids: Ints, offsets: Ints, weights: Floats | None, feature: SparseFeature
) -> JaggedIds:
    """Leave out ids that are no rows of the table, and count them by row."""
    inside = (ids >= 0) & (ids < feature.num_embeddings)
    kept_before = np.r_[0, np.cumsum(inside)]
    kept_offsets = kept_before[offsets]
    return JaggedIds(
        values=ids[inside],
        offsets=kept_offsets,
        weights=None if weights is None else weights[inside],
        left_out=np.diff(offsets) - np.diff(kept_offsets),
    )


def _binary(table: pa.Table, name: str, source: str) -> Floats:
    values: Floats = _dense(table, (name,), source)[:, 0]
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise UserError(
            f"{source}: column {name!r} is {values[first]} in row "
            f"{row_of(table, first)}, must be 0 or 1"
        )
    return values


def _weights(table: pa.Table, source: str) -> Floats:
    if WEIGHT not in table.column_names:
        return np.ones(table.num_rows, np.float32)
    weights: Floats = _dense(table, (WEIGHT,), source)[:, 0]
    if weights.min() < 0:
        row = row_of(table, np.argmax(weights < 0))
        raise UserError(f"{source}: column {WEIGHT!r} is negative in row {row}")
    return weights
