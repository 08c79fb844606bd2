"""The ranker's impressions: one path for memory, Parquet and prediction.

A `RowSource` (a table in memory, or Parquet row groups) -> the loader, which encodes
rows where they are read -> encoded rows -> vectors looked up where a batch is collated.
"""

import functools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch.distributed as dist

from learn_torchrec.arrays import Int64Array
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.loader import (
    Loader,
    LoaderConfig,
    Window,
    evaluation,
)
from learn_torchrec.datasets.loading.prefetch import prefetch
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER, RowSource
from learn_torchrec.jagged import offsets_of
from learn_torchrec.ranker.batch import RankingBatch, collate
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.encode import Encoder
from learn_torchrec.ranker.rows import RankingRows, RowsReport
from learn_torchrec.ranker.vectors import LearnVectors

_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one rank.

    Attributes:
        rows: encoded; at least one, so that a rank without rows takes part.
        table: the same rows, checked, with all columns that were read; empty on a rank
            without rows.
    """

    rows: RankingRows
    table: pa.Table


class Impressions:
    """Impressions to train on or to score.

    Args:
        source: where they are read from.
        config: of the ranker: which columns, tasks and batches.
        vectors: LEARN's; None without.

    Attributes:
        tasks: of the ranker.
        vectors: None with LEARN off.
        report: of the rows that this rank has taken: in training those of the first
            epoch that it read, else those of all parts.
    """

    def __init__(
        self, source: RowSource, config: RankerConfig, vectors: LearnVectors | None
    ) -> None:
        self.source, self._config = source, config
        self.tasks = config.tasks
        self.vectors = None if config.model.learn == "off" else vectors
        self.report = RowsReport()
        self._counted_epoch: int | None = None

    def __len__(self) -> int:
        return self.source.num_rows

    @functools.cached_property
    def loader(self) -> Loader:
        """What reads them to train; of a table in memory one window holds all rows.

        Raises:
            UserError: a batch size that does not fit the ranks or the rows.
        """
        training = self._config.training
        stream, in_memory = training.stream, isinstance(self.source, TableRows)
        return Loader(
            self.source,
            LoaderConfig(
                batch_size=training.batch_size,
                seed=training.seed,
                lanes=stream.lanes,
                window_rows=max(1, len(self)) if in_memory else stream.shuffle_rows,
                workers=0 if in_memory else stream.workers,
                timeout=stream.timeout,
                section="ranker.training.stream",
                batch_option="ranker.training.batch_size",
            ),
            rank=dist.get_rank(),
            ranks=dist.get_world_size(),
            transform=self.encoder(),
        )

    def batches(self, epoch: int, start: int = 0) -> Iterator[RankingBatch]:
        """Yield this rank's share of every global batch of one pass, shuffled.

        The order follows from (seed, epoch) alone, at any number of ranks and workers.
        The last, incomplete global batch is left out, so every rank takes as many
        steps.

        Args:
            epoch: of the order.
            start: steps to leave out, which an earlier run has taken.

        Raises:
            UserError: rows that cannot be read or do not fit the settings.
        """
        return prefetch(self._batches(epoch, start), _BATCHES_AHEAD)

    def _batches(self, epoch: int, start: int) -> Generator[RankingBatch]:
        if self._counted_epoch is None:
            self._counted_epoch = epoch
        for windows in prefetch(self.loader.windows(epoch, start), depth=1):
            rows = RankingRows.concatenate([window.rows for window in windows])
            for step in range(len(windows[0].bounds) - 1):
                taken = rows.take(_rows_of(windows, step))
                if epoch == self._counted_epoch:
                    self.report += taken.report()
                yield collate(taken, self.vectors)

    def parts(self, most_rows: int) -> "Parts":
        """Return this rank's share of all rows, in their order.

        Args:
            most_rows: of a part.
        """
        return Parts(self, most_rows)

    def encoder(self) -> Encoder:
        """Return what encodes the rows that are read, in this process or in workers."""
        config = self._config
        return Encoder(config.features, self.tasks, self.vectors, self.source.name)


class Parts:
    """One rank's share of impressions, a run of rows in their order, cut into parts.

    Attributes:
        count: of parts, the same on every rank.
        width: rows of the largest part of any rank.
    """

    def __init__(self, impressions: Impressions, most_rows: int) -> None:
        self._impressions = impressions
        ranks = dist.get_world_size()
        longest = -(-len(impressions) // ranks)
        # Parts of one width: the last one is scored as if it were full.
        self.width = -(-longest // -(-longest // most_rows))
        # A lane is a run of rows in their order, so one lane is one rank's share.
        self._loader = Loader(
            impressions.source,
            evaluation(LoaderConfig(batch_size=self.width * ranks, lanes=ranks)),
            rank=dist.get_rank(),
            ranks=ranks,
        )
        self.count = self._loader.steps

    def __iter__(self) -> Iterator[Part]:
        """Yield the parts; a thread encodes the next one.

        Raises:
            UserError: impressions that cannot be read or do not fit the ranker.
        """
        for part in prefetch(self._encoded(), depth=1):
            if part.table.num_rows:
                self._impressions.report += part.rows.report()
            yield part

    def _encoded(self) -> Generator[Part]:
        source, encoder = self._impressions.source, self._impressions.encoder()
        for table in self._loader.batches(epoch=0):
            # A rank without rows takes part with one that another rank writes.
            some = table if table.num_rows else next(source.pieces(0)).slice(0, 1)
            checked = encoder.checked(some)
            rows = encoder.encode(checked)
            kept = checked.slice(0, table.num_rows).drop_columns([ROW_NUMBER])
            yield Part(rows, kept)


def _rows_of(windows: Sequence[Window], step: int) -> Int64Array:
    """Return the rows of a step in the windows laid end to end."""
    firsts = offsets_of(np.array([len(window.rows) for window in windows]))
    pairs = zip(firsts[:-1], windows, strict=True)
    return np.concatenate([first + window.take(step) for first, window in pairs])
