"""Two prediction files compared in batches, read side by side.

N rows of a batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from learn_torchrec.arrays import BoolArray
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import DEFAULT_METRICS
from learn_torchrec.evaluation.cohorts import ALL, CohortConfig
from learn_torchrec.evaluation.communicator import Communicator, LocalCommunicator
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.metric import Metric
from learn_torchrec.evaluation.paired_stream import Comparison, PairedStream
from learn_torchrec.evaluation.pairs import Scores
from learn_torchrec.evaluation.predictions import (
    SAME_ROWS,
    Predictions,
    columns_of,
    open_predictions,
    predictions_of,
    refuse_different_rows,
    report_unlabelled,
    with_shared_columns,
)
from learn_torchrec.evaluation.ranking import (
    adjusted_by_cohort,
    cohort_filters,
    cohort_masks,
)
from learn_torchrec.evaluation.tasks import Task
from learn_torchrec.schema import (
    CLICK,
    ITEM_ACTIVITY,
    ITEM_ID,
    SAMPLING_RATE,
    TIMESTAMP,
    USER_ACTIVITY,
    WEIGHT,
)

_BATCH_ROWS = 1 << 20


def compare_files(
    baseline: tuple[Path, Task],
    candidate: tuple[Path, Task],
    cohorts: CohortConfig | None = None,
    convention: Convention = PAPER,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
    communicator: Communicator | None = None,
) -> dict[str, Comparison]:
    """Compare two files of the same rows by cohort, see `PairedStream`.

    Each rank of `communicator` reads its share of the rows, once for all cohorts.
    Adjusted p-values treat all cohorts and metrics as one family.

    Raises:
        UserError: see `predictions.read_predictions` and `refuse_different_rows`.
    """
    communicator = communicator or LocalCommunicator()
    files = [
        _File(*one, convention.needs_clicks, is_telling=communicator.rank == 0)
        for one in (baseline, candidate)
    ]
    present = {name for one in files for name in one.names}
    names = [name for name in cohort_filters(present, cohorts) if name != ALL]
    stream = PairedStream(
        *(names, convention, None, communicator),
        metrics=metrics,
        names=(baseline[1].label, baseline[1].score, candidate[1].score),
    )
    for before, after, first_row in _in_step(files, communicator):
        stream.add(
            before.user_ids,
            before.labels,
            files[0].narrowed(before.scores),
            files[1].narrowed(after.scores),
            before.weights,
            before.clicks,
            sampling_rates=before.sampling_rates,
            cohorts=cohort_masks(before, cohorts),
            first_row=first_row,
        )
    found = stream.finish()
    adjusted = adjusted_by_cohort(
        {name: one.differences for name, one in found.items()}
    )
    return {
        name: one._replace(differences=adjusted[name]) for name, one in found.items()
    }


class _File:
    """A prediction file whose rows are read in order.

    Raises:
        UserError: see `predictions.read_predictions`.
    """

    def __init__(
        self, path: Path, task: Task, needs_clicks: bool, is_telling: bool
    ) -> None:
        self._parts, self._task = open_predictions(path, task.label), task
        self._needs_clicks = needs_clicks
        optional = [ITEM_ID, TIMESTAMP, WEIGHT, SAMPLING_RATE]
        optional += [USER_ACTIVITY, ITEM_ACTIVITY, *([CLICK] if needs_clicks else [])]
        self.path, self.names = (
            self._parts.path,
            columns_of(self._parts, task, optional),
        )
        self._groups = self._parts.row_groups()
        self._sizes = [group.row_groups[0].num_rows for group in self._groups]
        self._is_single = False
        if not self.num_rows:
            raise UserError(f"{self.path}: no rows; predict some impressions first")
        nulls = self._parts.count(task.label, ~ds.field(task.label).is_valid())
        if nulls and (is_telling or nulls == self.num_rows):
            report_unlabelled(self._parts, task, nulls, self.num_rows)

    @property
    def num_rows(self) -> int:
        """Rows with and without a label."""
        return sum(self._sizes)

    def tables(self, start: int, stop: int) -> Iterator[pa.Table]:
        """Yield the rows from `start` until `stop`, in order."""
        first = 0
        for group, size in zip(self._groups, self._sizes, strict=True):
            if first < stop and first + size > start:
                place = first
                for batch in self._parts.batches(group, self.names, _BATCH_ROWS):
                    low, high = max(start, place), min(stop, place + batch.num_rows)
                    if low < high:
                        rows = batch.slice(low - place, high - low)
                        yield pa.Table.from_batches([rows])
                    place += batch.num_rows
            first += size

    def checked(self, table: pa.Table, first_row: int) -> Predictions:
        """Return the columns of some rows that all have a label."""
        self._is_single = table.schema.field(self._task.score).type == pa.float32()
        try:
            return predictions_of(
                table,
                str(self.path),
                task=self._task,
                needs_clicks=self._needs_clicks,
                first_row=first_row,
            )
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None

    def labelled(self, table: pa.Table) -> BoolArray:
        """Return the rows that have a label, bool [N]."""
        mask: BoolArray = table[self._task.label].is_valid().to_numpy()
        return mask

    def narrowed(self, scores: Scores) -> Scores:
        """Return scores in the file's precision, which halves what is kept of them."""
        return scores.astype(np.float32) if self._is_single else scores


def _in_step(
    files: Sequence[_File], communicator: Communicator
) -> Iterator[tuple[Predictions, Predictions, int]]:
    """Yield the same rows of both files and the first row's number, share by share.

    Raises:
        UserError: the files differ, see `refuse_different_rows`.
    """
    first, second = files
    if first.num_rows != second.num_rows:
        raise UserError(
            f"{second.path} and {first.path}: {second.num_rows} against "
            f"{first.num_rows} rows; {SAME_ROWS}"
        )
    start, stop = (
        first.num_rows * place // communicator.size
        for place in (communicator.rank, communicator.rank + 1)
    )
    for ours, theirs in _aligned(first.tables(start, stop), second.tables(start, stop)):
        has_label = first.labelled(ours)
        if not np.array_equal(has_label, second.labelled(theirs)):
            raise UserError(
                f"{second.path} and {first.path}: labels are missing in different "
                f"rows; {SAME_ROWS}"
            )
        before, after = (
            one.checked(table if has_label.all() else table.filter(has_label), start)
            for one, table in zip(files, (ours, theirs), strict=True)
        )
        refuse_different_rows(before, after, start)
        before, after = with_shared_columns([before, after])
        yield before, after, start
        start += ours.num_rows


def _aligned(
    ours: Iterator[pa.Table], theirs: Iterator[pa.Table]
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield tables of equal lengths from tables that together have equal lengths."""
    mine: pa.Table | None = None
    other: pa.Table | None = None
    while True:
        mine = mine if mine else next(ours, None)
        other = other if other else next(theirs, None)
        if mine is None or other is None:
            return
        count = min(mine.num_rows, other.num_rows)
        yield mine.slice(0, count), other.slice(0, count)
        mine, other = mine.slice(count), other.slice(count)
