"""Reading prediction files: every column checked before anything is computed."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from learn_torchrec.arrays import Float64Array, Int64Array, name_rows
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.communicator import Communicator, LocalCommunicator
from learn_torchrec.evaluation.rows import check_columns
from learn_torchrec.evaluation.stream import MetricsStream
from learn_torchrec.ids import as_ids
from learn_torchrec.schema import (
    CLICK,
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

KIND_PREDICTIONS = "predictions"

_ID_COLUMNS = (USER_ID, ITEM_ID)
_ACTIVITY = (USER_ACTIVITY, ITEM_ACTIVITY)
_INTEGER_COLUMNS = (TIMESTAMP, *_ACTIVITY)
_NUMBER_COLUMNS = (LABEL, SCORE, WEIGHT, CLICK)
_REQUIRED = (USER_ID, LABEL, SCORE)
_STREAMED = (USER_ID, LABEL, SCORE, WEIGHT, CLICK)
_BATCH_ROWS = 1 << 20


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
        clicks: float64 [N].
        cohorts: string [N], the column whose values are cohorts of their own.
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
    clicks: Float64Array | None = None
    cohorts: pa.Array | None = None


def read_predictions(path: Path, cohort_column: str | None = None) -> Predictions:
    """Read and check predictions.

    Args:
        path: a Parquet file, or an artefact directory that holds
            `predictions.parquet`.
        cohort_column: a further column, each value of which is a cohort.

    Raises:
        UserError: a missing, unreadable or empty file; a missing column, one of
            the wrong type or with nulls; labels other than 0 and 1; non-finite
            scores; negative weights or activity. Names the file and the column.
    """
    if path.is_dir():
        path = path / PREDICTIONS_FILE
    table = _read_table(path, cohort_column)
    try:
        predictions = _from_table(table, str(path), cohort_column)
        check_columns(
            len(predictions.labels),
            predictions.labels,
            predictions.scores,
            predictions.weights,
            predictions.clicks,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return predictions


def predictions_path(path: Path) -> Path:
    """Return the file, or the directory of files, that an artefact's path means."""
    inside = path / PREDICTIONS_FILE
    return inside if inside.exists() else path


def column_names(path: Path) -> list[str]:
    """Return the names of a prediction file's columns.

    Raises:
        UserError: see `read_predictions`.
    """
    path = predictions_path(path)
    with _readable(path):
        names: list[str] = pq.ParquetDataset(path).schema.names
    return names


def stream_predictions(
    path: Path,
    stream: MetricsStream,
    ranks: Communicator | None = None,
    rows: ds.Expression | None = None,
) -> None:
    """Add a prediction file's rows to a stream, reading only the columns it needs.

    Args:
        path: a Parquet file, a directory of them, or an artefact directory that holds
            `predictions.parquet`.
        stream: takes the rows.
        ranks: each reads its share of the row groups.
        rows: which rows to add, e.g. one of `ranking.cohort_filters`; None for all.

    Raises:
        UserError: see `read_predictions`; a file without rows.
    """
    ranks = ranks or LocalCommunicator()
    path = predictions_path(path)
    with _readable(path):
        # Cohorts are chosen by activity, so it is checked where all rows are read.
        activity = _ACTIVITY if rows is None else ()
        names = _known_columns(path, (*_STREAMED, *activity))
        groups = [
            part
            for fragment in ds.dataset(path, format="parquet").get_fragments()
            for part in fragment.split_by_row_group()
        ]
        sizes = [part.row_groups[0].num_rows for part in groups]
        if not sum(sizes):
            raise UserError(f"{path}: no rows; predict some impressions first")
        for number in range(ranks.rank, len(groups), ranks.size):
            first_row = sum(sizes[:number])
            for batch in groups[number].to_batches(
                columns=names, filter=rows, batch_size=_BATCH_ROWS
            ):
                _add(stream, batch, str(path), first_row)
                first_row += batch.num_rows


def _add(
    stream: MetricsStream, batch: pa.RecordBatch, source: str, first_row: int
) -> None:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    try:
        for name, column in columns.items():
            _refuse_null(column, name, first_row)
            if name in _ACTIVITY:
                _refuse_negative(_integers(column, name), name, first_row)
            elif name != USER_ID:
                columns[name] = _numbers(column, name)
        stream.add(*(columns.get(name) for name in _STREAMED), first_row=first_row)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def refuse_different_rows(baseline: Predictions, candidate: Predictions) -> None:
    """Refuse two files that do not hold the same rows in the same order.

    Raises:
        UserError: different lengths, or a differing user, label or weight, or item or
            timestamp where both have them; names the first such row.
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
        if ours is None or theirs is None:
            if name == WEIGHT and ours is not theirs:
                raise UserError(f"{pair}: only one has the column {name}; {mend}")
            continue
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


def with_shared_columns(files: Sequence[Predictions]) -> list[Predictions]:
    """Return files of the same rows, each with the columns that any of them has.

    Activity and clicks are of the row, whichever file says them.
    """
    known: dict[str, Any] = {
        name: next((x for one in files if (x := getattr(one, name)) is not None), None)
        for name in ("user_activity", "item_activity", "clicks")
    }
    return [
        replace(one, **{n: x for n, x in known.items() if getattr(one, n) is None})
        for one in files
    ]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the reader's failures into a user's mistake."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; name a prediction file or its directory"
        ) from None
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable Parquet file ({first_line})") from None


def _known_columns(path: Path, known: Sequence[str]) -> list[str]:
    """Return those of the known columns that a file has."""
    schema = pq.ParquetDataset(path).schema
    missing = [name for name in _REQUIRED if name not in schema.names]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; "
            f"predictions need {', '.join(_REQUIRED)}"
        )
    return [name for name in known if name in schema.names]


def _read_table(path: Path, cohort_column: str | None) -> pa.Table:
    known = [*_ID_COLUMNS, *_INTEGER_COLUMNS, *_NUMBER_COLUMNS]
    if cohort_column is not None and cohort_column not in known:
        known.append(cohort_column)
    with _readable(path):
        table = pq.read_table(path, columns=_known_columns(path, known))
    if not table.num_rows:
        raise UserError(f"{path}: no rows; predict some impressions first")
    return table


def _refuse_null(column: pa.Array, name: str, first_row: int = 0) -> None:
    if column.null_count:
        bad = np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)
        rows = name_rows(bad, first_row)
        raise UserError(f"{name}: null in {rows}; remove or fill them")


def _refuse_negative(counts: Int64Array, name: str, first_row: int = 0) -> None:
    if (counts < 0).any():
        raise UserError(
            f"{name}: negative count in {name_rows(counts < 0, first_row)}; counts "
            "start at 0"
        )


def _from_table(table: pa.Table, source: str, cohort_column: str | None) -> Predictions:
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    for name, column in columns.items():
        _refuse_null(column, name)
    ids = {n: as_ids(columns[n], n) for n in _ID_COLUMNS if n in columns}
    integers = {n: _integers(columns[n], n) for n in _INTEGER_COLUMNS if n in columns}
    numbers = {
        n: _numbers(columns[n], n).astype(np.float64)
        for n in _NUMBER_COLUMNS
        if n in columns
    }
    for name in _ACTIVITY:
        if name in integers:
            _refuse_negative(integers[name], name)
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
        clicks=numbers.get(CLICK),
        cohorts=_cohort_values(columns, cohort_column),
    )


def _cohort_values(
    columns: dict[str, pa.Array], cohort_column: str | None
) -> pa.Array | None:
    if cohort_column is None:
        return None
    if cohort_column not in columns:
        raise UserError(
            f"{cohort_column}: no such column to take cohorts from; name one of the "
            "predictions' own"
        )
    try:
        return columns[cohort_column].cast(pa.large_string())
    except pa.ArrowException:
        raise UserError(
            f"{cohort_column}: {columns[cohort_column].type} values are no cohorts; "
            "use strings or integers"
        ) from None


def _integers(column: pa.Array, name: str) -> Int64Array:
    if not pa.types.is_integer(column.type):
        raise UserError(f"{name}: {column.type}; int64 is needed")
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.int64)


def _numbers(column: pa.Array, name: str) -> npt.NDArray[Any]:
    kind = column.type
    if not (
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
    ):
        raise UserError(f"{name}: {kind}; a number is needed")
    return np.asarray(column.to_numpy(zero_copy_only=False))
