"""Reading prediction files: every column checked before anything is computed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.arrays import (
    Float64Array,
    Int64Array,
    as_id_array,
    name_rows,
)
from learn_torchrec.evaluation.auc import prepare_rows
from learn_torchrec.schema import (
    ITEM_ACTIVITY,
    ITEM_ID,
    LABEL,
    PREDICTIONS_FILE,
    SCORE,
    TIMESTAMP,
    USER_ACTIVITY,
    USER_ID,
    WEIGHT,
)

_ID_COLUMNS = (USER_ID, ITEM_ID)
_INTEGER_COLUMNS = (TIMESTAMP, USER_ACTIVITY, ITEM_ACTIVITY)
_NUMBER_COLUMNS = (LABEL, SCORE, WEIGHT)
_REQUIRED = (USER_ID, LABEL, SCORE)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Columns of one prediction file, N rows. Optional columns are None if absent.

    Attributes:
        source: the file, for messages.
        user_ids: int64 or large_string [N].
        labels: float64 [N] of 0 and 1.
        scores: float64 [N], finite.
        weights: float64 [N].
        item_ids: int64 or large_string [N].
        timestamps: unix seconds, int64 [N].
        user_activity: events of the user before the row's day, int64 [N].
        item_activity: events of the item before the row's day, int64 [N].
    """

    source: str
    user_ids: pa.Array
    labels: Float64Array
    scores: Float64Array
    weights: Float64Array | None = None
    item_ids: pa.Array | None = None
    timestamps: Int64Array | None = None
    user_activity: Int64Array | None = None
    item_activity: Int64Array | None = None


def read_predictions(path: Path) -> Predictions:
    """Read and check predictions.

    Args:
        path: a Parquet file, or an artefact directory that holds
            `predictions.parquet`.

    Raises:
        UserError: a missing, unreadable or empty file; a missing column, one of
            the wrong type or with nulls; labels other than 0 and 1; non-finite
            scores; negative weights or activity. Names the file and the column.
    """
    if path.is_dir():
        path = path / PREDICTIONS_FILE
    table = _read_table(path)
    try:
        predictions = _from_table(table, source=str(path))
        prepare_rows(
            predictions.user_ids,
            predictions.labels,
            predictions.scores,
            predictions.weights,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return predictions


def refuse_different_rows(baseline: Predictions, candidate: Predictions) -> None:
    """Refuse two files that do not hold the same rows in the same order.

    Raises:
        UserError: different lengths, or a differing user, item, timestamp, label
            or weight; names the first such row.
    """
    mend = "compare predictions of the same impressions in the same order"
    pair = f"{candidate.source} and {baseline.source}"
    num_rows = len(baseline.labels)
    if len(candidate.labels) != num_rows:
        raise UserError(
            f"{pair}: {len(candidate.labels)} against {num_rows} rows; {mend}"
        )
    for name, field in (
        (USER_ID, "user_ids"),
        (ITEM_ID, "item_ids"),
        (TIMESTAMP, "timestamps"),
        (LABEL, "labels"),
        (WEIGHT, "weights"),
    ):
        ours, theirs = getattr(baseline, field), getattr(candidate, field)
        if ours is None and theirs is None:
            continue
        if ours is None or theirs is None:
            raise UserError(f"{pair}: only one has the column {name}; {mend}")
        if isinstance(ours, pa.Array):
            if ours.type != theirs.type:
                raise UserError(
                    f"{pair}: {name} is {theirs.type} against {ours.type}; {mend}"
                )
            ours, theirs = (
                ids.to_numpy(zero_copy_only=False) for ids in (ours, theirs)
            )
        differs = np.flatnonzero(ours != theirs)
        if len(differs):
            raise UserError(
                f"{pair}: {name} differs from row {differs[0]} (counted from 0); {mend}"
            )


def _read_table(path: Path) -> pa.Table:
    try:
        schema = pq.ParquetDataset(path).schema
        missing = [name for name in _REQUIRED if name not in schema.names]
        if missing:
            raise UserError(
                f"{path}: no column {', '.join(missing)}; "
                f"predictions need {', '.join(_REQUIRED)}"
            )
        known = (*_ID_COLUMNS, *_INTEGER_COLUMNS, *_NUMBER_COLUMNS)
        table = pq.read_table(path, columns=[n for n in known if n in schema.names])
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; name a prediction file or its directory"
        ) from None
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable Parquet file ({first_line})") from None
    if not table.num_rows:
        raise UserError(f"{path}: no rows; predict some impressions first")
    return table


def _from_table(table: pa.Table, source: str) -> Predictions:
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    for name, column in columns.items():
        if column.null_count:
            bad = np.asarray(
                column.is_null().to_numpy(zero_copy_only=False), dtype=bool
            )
            raise UserError(f"{name}: null in {name_rows(bad)}; remove or fill them")
    ids = {n: as_id_array(columns[n], n) for n in _ID_COLUMNS if n in columns}
    integers = {n: _integers(columns[n], n) for n in _INTEGER_COLUMNS if n in columns}
    numbers = {n: _numbers(columns[n], n) for n in _NUMBER_COLUMNS if n in columns}
    for name in (USER_ACTIVITY, ITEM_ACTIVITY):
        if name in integers and (integers[name] < 0).any():
            raise UserError(
                f"{name}: negative count in {name_rows(integers[name] < 0)}; "
                "counts start at 0"
            )
    return Predictions(
        source=source,
        user_ids=ids[USER_ID],
        labels=numbers[LABEL],
        scores=numbers[SCORE],
        weights=numbers.get(WEIGHT),
        item_ids=ids.get(ITEM_ID),
        timestamps=integers.get(TIMESTAMP),
        user_activity=integers.get(USER_ACTIVITY),
        item_activity=integers.get(ITEM_ACTIVITY),
    )


def _integers(column: pa.Array, name: str) -> Int64Array:
    if not pa.types.is_integer(column.type):
        raise UserError(f"{name}: {column.type}; int64 is needed")
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.int64)


def _numbers(column: pa.Array, name: str) -> Float64Array:
    kind = column.type
    if not (
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
    ):
        raise UserError(f"{name}: {kind}; a number is needed")
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.float64)
