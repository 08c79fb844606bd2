"""Training rows read from Parquet while training: only some are ever in memory.

The loader (`datasets/loading/loader.py`) reads the rows of a window of steps; they
become arrays once for the window, where they are read, and a rank cuts its batches out
of them and gathers the vectors.

Dimension letters: N rows.
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch.distributed as dist
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from learn_torchrec.config import OPERATIONAL, configuration
from learn_torchrec.datasets.loading.loader import Loader, LoaderConfig, Window
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.prefetch import read_ahead
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.datasets.loading.tables import REQUIRED, check
from learn_torchrec.datasets.loading.time_range import Interval
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.batch import RankingBatch, check_batch_size, collate
from learn_torchrec.ranker.prepare import prepare_rows
from learn_torchrec.ranker.rows import FeaturesConfig, RankingRows, RowsReport
from learn_torchrec.ranker.vectors import LearnVectors
from learn_torchrec.schema import IMPRESSIONS_FILE, TIMESTAMP, WEIGHT

_BATCHES_AHEAD = 4

logger = logging.getLogger(__name__)


@configuration
class StreamConfig:
    """How impressions are read while training.

    Attributes:
        enabled: read row groups of `parquet:` impressions as they are needed, instead
            of all rows at the start.
        lanes: places of the data that a batch takes its rows from; the number used is
            the largest divisor of the batch size up to this one.
        shuffle_rows: rows of all lanes that are shuffled together.
        workers: reading processes of each rank; 0 reads in threads of the rank.
        timeout: seconds after which a worker that gives nothing counts as hung.
    """

    enabled: bool = False
    lanes: PositiveInt = 8
    shuffle_rows: PositiveInt = 262_144
    workers: Annotated[NonNegativeInt, OPERATIONAL] = 0
    timeout: Annotated[PositiveFloat, OPERATIONAL] = 300.0


class StreamedRows:
    """The impressions of [first, end), to train on while they are read.

    Opening reads the timestamps alone, to count rows.

    Args:
        where: path or URI of a Parquet file, or a directory of them.
        features: of the ranker; only their columns are read.
        vectors: LEARN's, None with LEARN off.
        first: unix seconds.
        end: unix seconds; rows at or after it are left out.
        config: how.

    Attributes:
        report: of the rows of the first epoch that this rank has taken.
        earliest: time of the first of the rows, unix seconds.

    Raises:
        UserError: unreadable files, a missing column, a null timestamp, no rows in
            the interval.
    """

    def __init__(
        self,
        where: str | Path | Location,
        features: FeaturesConfig,
        vectors: LearnVectors | None,
        first: int,
        end: int,
        config: StreamConfig,
    ) -> None:
        self.vectors = vectors
        self.report = RowsReport(rows=0, missing={}, left_out={})
        self._features, self._config = features, config
        columns = dict.fromkeys([*REQUIRED[IMPRESSIONS_FILE], *features.columns])
        interval = Interval(TIMESTAMP, first, end)
        self._rows = RowGroups(where, list(columns), interval, optional=[WEIGHT])
        name, rows, outside = self._rows.name, len(self), self._rows.outside
        if self._rows.earliest is None:
            raise UserError(
                f"{name}: no impression lies in [{first}, {end}) (unix seconds); move "
                "split.towers_until or split.test_from"
            )
        self.earliest: int = self._rows.earliest
        logger.info(
            "%s: %d impressions lie in [%d, %d), %d outside are left out",
            *(name, rows, first, end, outside),
        )

    def __len__(self) -> int:
        return self._rows.num_rows

    def batches(
        self, *, batch_size: int, seed: int, epoch: int, start: int = 0
    ) -> Iterator[RankingBatch]:
        """Yield this rank's share of every global batch of one pass.

        The last, incomplete global batch is left out, and so are the first `start`
        steps, which an earlier run has taken: their windows are not read.

        Raises:
            UserError: a batch size that does not fit the ranks or the rows.
        """
        check_batch_size(batch_size, len(self))
        config = self._config
        loader = Loader(
            self._rows,
            LoaderConfig(
                batch_size=batch_size,
                seed=seed,
                lanes=config.lanes,
                window_rows=config.shuffle_rows,
                workers=config.workers,
                timeout=config.timeout,
                section="ranker.training.stream",
            ),
            rank=dist.get_rank(),
            ranks=dist.get_world_size(),
            transform=_Prepare(self._features, self.vectors, self._rows.name),
        )
        return read_ahead(self._batches(loader, epoch, start), _BATCHES_AHEAD)

    def _batches(
        self, loader: Loader, epoch: int, start: int
    ) -> Generator[RankingBatch]:
        for parts in read_ahead(loader.windows(epoch, start), depth=1):
            rows = RankingRows.concatenate([part.rows for part in parts])
            rows = replace(rows, vectors=self.vectors)
            steps = range(len(parts[0].bounds) - 1)
            taken = [_rows_of(parts, step) for step in steps]
            if epoch == 0:  # readers that share a lane have both read it
                self.report = rows.report(np.concatenate(taken)) + self.report
            for chosen in taken:
                yield collate(rows, chosen)


@dataclass(frozen=True)
class _Prepare:
    """What is done to a window's table where it is read."""

    features: FeaturesConfig
    vectors: LearnVectors | None
    source: str

    def __call__(self, table: pa.Table) -> RankingRows:
        checked = check(table, REQUIRED[IMPRESSIONS_FILE], self.source)
        rows = prepare_rows(checked, self.features, self.vectors, self.source)
        return replace(rows, vectors=None)


def _rows_of(parts: Sequence[Window], step: int) -> np.ndarray:
    """Return the rows of a step in the parts laid end to end."""
    firsts = np.cumsum([0, *(len(part.rows) for part in parts)])
    return np.concatenate(
        [first + part.take(step) for first, part in zip(firsts, parts, strict=False)]
    )
