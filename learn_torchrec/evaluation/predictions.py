"""Reading prediction files: every column checked before anything is computed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from learn_torchrec.arrays import AnyArray, BoolArray, Float64Array, Int64Array, joined
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.communicator import Communicator, LocalCommunicator
from learn_torchrec.evaluation.parquet import (
    ParquetParts,
    as_cohorts,
    as_counts,
    as_numbers,
    refuse_null,
)
from learn_torchrec.evaluation.rows import check_columns
from learn_torchrec.evaluation.stream import MetricsStream
from learn_torchrec.evaluation.tasks import ONLY_TASK, Task
from learn_torchrec.ids import as_ids, type_name
from learn_torchrec.schema import (
    CLICK,
    ITEM_ACTIVITY,
    ITEM_ID,
    PREDICTIONS_FILE,
    SAMPLING_RATE,
    TIMESTAMP,
    USER_ACTIVITY,
    USER_ID,
    WEIGHT,
)

_ACTIVITY = (USER_ACTIVITY, ITEM_ACTIVITY)
_BATCH_ROWS = 1 << 20
SAME_ROWS = "compare predictions of the same impressions in the same order"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Columns of one prediction file of N rows; optional columns are None if absent.

    Attributes:
        source: the file, for messages.
        user_ids: int64 or large_string [N].
        labels: float64 [N] of 0 and 1.
        scores: float64 [N], finite.
        weights: float64 [N].
        item_ids: [N], as the file has them.
        timestamps: [N], as the file has them.
        user_activity: events of the user before the row's day, int64 [N].
        item_activity: events of the item before the row's day, int64 [N].
        clicks: float64 [N].
        sampling_rates: float64 [N].
        cohorts: large_string [N], the values of the cohort column.
    """

    source: str
    user_ids: pa.Array
    labels: Float64Array
    scores: Float64Array
    weights: Float64Array | None = None
    item_ids: pa.Array | None = None
    timestamps: pa.Array | None = None
    user_activity: Int64Array | None = None
    item_activity: Int64Array | None = None
    clicks: Float64Array | None = None
    sampling_rates: Float64Array | None = None
    cohorts: pa.Array | None = None


def read_predictions(
    path: Path,
    cohort_column: str | None = None,
    task: Task = ONLY_TASK,
    needs_clicks: bool = True,
) -> Predictions:
    """Read and check predictions; rows without a label are left out, with a warning.

    Args:
        path: a Parquet file, a folder of parts, or the directory of an artefact of
            predictions.
        cohort_column: a further column; each of its values is a cohort.
        task: which columns are labels and scores.
        needs_clicks: whether to read the column of clicks, if there is one.

    Raises:
        UserError: a missing, unreadable or empty file; no labels at all; a missing
            column, one of the wrong type or, labels apart, with nulls; labels other
            than 0 and 1; non-finite scores; negative weights or activity. Names the
            file and the column.
    """
    parts = open_predictions(path, task.label)
    optional = [ITEM_ID, TIMESTAMP, WEIGHT, SAMPLING_RATE, *_ACTIVITY]
    optional += [CLICK] if needs_clicks else []
    optional += [] if cohort_column is None else [cohort_column]
    table = parts.read(columns_of(parts, task, optional))
    if not table.num_rows:
        raise UserError(f"{parts.path}: no rows; predict some impressions first")
    if nulls := table[task.label].null_count:
        report_unlabelled(parts, task, nulls, table.num_rows)
        table = table.filter(table[task.label].is_valid())
    try:
        return predictions_of(table, str(parts.path), cohort_column, task, needs_clicks)
    except UserError as error:
        raise UserError(f"{parts.path}: {error}") from None


def open_predictions(path: Path, label: str = "") -> ParquetParts:
    """Open the file or folder of parts at a path, or in the artefact at that path.

    Some parts may lack the column `label`. Of an artefact, all files are listed in its
    manifest, or it is refused.

    Raises:
        UserError: no such file, or one that is not Parquet.
    """
    inside = path / PREDICTIONS_FILE
    path = inside if inside.exists() else path
    return ParquetParts(path, "a prediction file or its directory", label)


def stream_predictions(
    path: Path,
    stream: MetricsStream,
    communicator: Communicator | None = None,
    rows: ds.Expression | None = None,
    task: Task = ONLY_TASK,
    needs_clicks: bool = True,
) -> None:
    """Add a prediction file's rows to a stream, reading only the columns it needs.

    Each rank of `communicator` reads its share of the row groups. `rows` is a filter,
    e.g. one of `ranking.cohort_filters`; see `read_predictions` for the others.

    Raises:
        UserError: see `read_predictions`.
    """
    communicator = communicator or LocalCommunicator()
    parts = open_predictions(path, task.label)
    # Cohorts are filtered by activity, so it is checked where all rows are read.
    optional = [WEIGHT, SAMPLING_RATE, *(_ACTIVITY if rows is None else ())]
    optional += [CLICK] if needs_clicks else []
    names = columns_of(parts, task, optional)
    filtered_by = [name for name in _ACTIVITY if name in parts.names]
    groups = parts.row_groups()
    sizes = [group.row_groups[0].num_rows for group in groups]
    if not sum(sizes):
        raise UserError(f"{parts.path}: no rows; predict some impressions first")
    has_label = ds.field(task.label).is_valid()
    if nulls := parts.count(task.label, ~has_label):
        if (rows is None and communicator.rank == 0) or nulls == sum(sizes):
            report_unlabelled(parts, task, nulls, sum(sizes))
        rows = has_label if rows is None else rows & has_label
    for number in range(communicator.rank, len(groups), communicator.size):
        first_row = sum(sizes[:number])
        batches = parts.batches(groups[number], names, _BATCH_ROWS, rows, filtered_by)
        for batch in batches:
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            try:
                _add(stream, columns, task, needs_clicks, first_row)
            except UserError as error:
                raise UserError(f"{parts.path}: {error}") from None
            first_row += batch.num_rows


def _add(
    stream: MetricsStream,
    columns: dict[str, pa.Array],
    task: Task,
    needs_clicks: bool,
    first_row: int,
) -> None:
    rates = _rates(columns.pop(SAMPLING_RATE, None))
    for name, column in columns.items():
        refuse_null(column, name, first_row)
        if name in _ACTIVITY:
            as_counts(column, name, first_row)

    def numbers(name: str) -> AnyArray | None:
        return as_numbers(columns[name], name) if name in columns else None

    stream.add(
        columns[USER_ID],
        numbers(task.label),
        numbers(task.score),
        numbers(WEIGHT),
        numbers(CLICK) if needs_clicks else None,
        sampling_rates=rates,
        first_row=first_row,
    )


def _rates(column: pa.Array | None) -> Float64Array | None:
    """Return the sampling rates, float64 [N]; 1 where null."""
    if column is None:
        return None
    if column.null_count:
        column = pc.fill_null(column, 1)
    return as_numbers(column, SAMPLING_RATE).astype(np.float64)


def columns_of(parts: ParquetParts, task: Task, optional: Sequence[str]) -> list[str]:
    """Return the required columns and the optional ones that exist."""
    required = [USER_ID, task.label, task.score]
    if task.label not in parts.names and task.score in parts.names:
        count = parts.count(task.score)
        report_unlabelled(parts, task, count, count)
    parts.require(required, f"predictions need {', '.join(required)}")
    present = [name for name in optional if name in parts.names]
    return list(dict.fromkeys([*required, *present]))


def report_unlabelled(
    parts: ParquetParts, task: Task, count: int, num_rows: int
) -> None:
    """Warn of rows without a label.

    Raises:
        UserError: no row has one.
    """
    what = f"{parts.path}: {count} of {num_rows} rows have no {task.label}"
    if count < num_rows:
        logger.warning("%s; left out", what)
        return
    is_there = "holds nulls alone" if task.label in parts.names else "is missing"
    raise UserError(
        f"{what} (the column {is_there}), and an evaluation needs labels; predict "
        "impressions whose outcome is known, or name another column with --label"
    )


def refuse_different_rows(
    baseline: Predictions, candidate: Predictions, first_row: int = 0
) -> None:
    """Refuse two files that do not hold the same rows in the same order.

    `first_row` is the first row's number in the files, for messages.

    Raises:
        UserError: different lengths, users, labels or weights, or different items or
            timestamps if both files have them; names the first such row.
    """
    pair = f"{candidate.source} and {baseline.source}"
    num_rows = len(baseline.labels)
    if len(candidate.labels) != num_rows:
        raise UserError(
            f"{pair}: {len(candidate.labels)} against {num_rows} rows; {SAME_ROWS}"
        )
    for name, field in (
        (USER_ID, "user_ids"),
        (ITEM_ID, "item_ids"),
        (TIMESTAMP, "timestamps"),
        ("label", "labels"),
        (WEIGHT, "weights"),
    ):
        ours, theirs = getattr(baseline, field), getattr(candidate, field)
        if ours is None or theirs is None:
            if name == WEIGHT and ours is not theirs:
                raise UserError(f"{pair}: only one has the column {name}; {SAME_ROWS}")
            continue
        try:
            differs = np.flatnonzero(_differs(ours, theirs))
        except pa.ArrowException:
            types = f"{type_name(theirs.type)} against {type_name(ours.type)}"
            raise UserError(f"{pair}: {name} is {types}; {SAME_ROWS}") from None
        if len(differs):
            row = first_row + differs[0]
            raise UserError(
                f"{pair}: {name} differs from row {row} (counted from 0); {SAME_ROWS}"
            )


def with_shared_columns(files: Sequence[Predictions]) -> list[Predictions]:
    """Return files of the same rows, each with the optional columns of any."""
    known: dict[str, Any] = {
        name: next((x for one in files if (x := getattr(one, name)) is not None), None)
        for name in ("user_activity", "item_activity", "clicks", "sampling_rates")
    }
    return [
        replace(one, **{n: x for n, x in known.items() if getattr(one, n) is None})
        for one in files
    ]


def predictions_of(
    table: pa.Table,
    source: str,
    cohort_column: str | None = None,
    task: Task = ONLY_TASK,
    needs_clicks: bool = True,
    first_row: int = 0,
) -> Predictions:
    """Return the checked columns of a file, or of its rows from `first_row` on.

    Raises:
        UserError: see `read_predictions`; does not name the file.
    """
    columns = {name: joined(table.column(name)) for name in table.column_names}
    if cohort_column is not None and cohort_column not in columns:
        raise UserError(
            f"{cohort_column}: no such column to take cohorts from; name a column of "
            "the predictions"
        )

    def numbers(name: str) -> Float64Array:
        refuse_null(columns[name], name, first_row)
        return as_numbers(columns[name], name).astype(np.float64)

    def counts(name: str) -> Int64Array | None:
        found = columns.get(name)
        return None if found is None else as_counts(found, name, first_row)

    refuse_null(columns[USER_ID], USER_ID, first_row)
    has_clicks = needs_clicks and CLICK in columns
    predictions = Predictions(
        source=source,
        user_ids=as_ids(columns[USER_ID], USER_ID),
        labels=numbers(task.label),
        scores=numbers(task.score),
        weights=numbers(WEIGHT) if WEIGHT in columns else None,
        item_ids=columns.get(ITEM_ID),
        timestamps=columns.get(TIMESTAMP),
        user_activity=counts(USER_ACTIVITY),
        item_activity=counts(ITEM_ACTIVITY),
        clicks=numbers(CLICK) if has_clicks else None,
        sampling_rates=_rates(columns.get(SAMPLING_RATE)),
    )
    check_columns(
        table.num_rows,
        predictions.labels,
        predictions.scores,
        predictions.weights,
        predictions.clicks,
        first_row,
        names=(task.label, task.score),
        sampling_rates=predictions.sampling_rates,
    )
    if cohort_column is None:
        return predictions
    refuse_null(columns[cohort_column], cohort_column)
    cohorts = as_cohorts(columns[cohort_column], cohort_column)
    return replace(predictions, cohorts=cohorts)


def _differs(ours: Any, theirs: Any) -> BoolArray:
    """Return where two columns differ, bool [N]; two nulls are equal.

    Raises:
        pa.ArrowException: types that cannot be compared.
    """
    if isinstance(ours, np.ndarray):
        differs: BoolArray = ours != theirs
        return differs
    ours, theirs = (
        one.dictionary_decode() if pa.types.is_dictionary(one.type) else one
        for one in (ours, theirs)
    )
    nulls = [
        pc.is_null(one, nan_is_null=True).to_numpy(zero_copy_only=False)
        for one in (ours, theirs)
    ]
    unequal = pc.fill_null(pc.not_equal(ours, theirs), False)
    found: BoolArray = unequal.to_numpy(zero_copy_only=False) & ~nulls[0]
    return found | (nulls[0] != nulls[1])
