"""The ranker's impressions: one path for memory, Parquet and prediction.

A `RowSource` (a table in memory, or Parquet row groups) -> the loader, which encodes
rows where they are read -> encoded rows -> collated batches, with their vectors.
"""

import functools
import operator
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
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
from learn_torchrec.ranker.features.lookups import Lookups
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.rows import RankingRows, RowsReport
from learn_torchrec.ranker.tasks import label_columns
from learn_torchrec.training.batch import pinned
from learn_torchrec.training.distributed import gather_objects

_BATCHES_AHEAD = 4
_SAMPLE_ROWS = 16_384  # that tell how many ids a row has


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one rank.

    Attributes:
        rows: encoded; at least one, so that a rank without rows can take part.
        table: the same rows, checked, with all columns that were read; empty on a rank
            without rows.
    """

    rows: RankingRows
    table: pa.Table


class Impressions:
    """Impressions to train on or to score.

    Args:
        source: where they are read from.
        config: of the ranker.
        learn: LEARN's inputs, if any.
        lookups: feature columns that the source lacks.

    Attributes:
        tasks: of the ranker.
        learn: None with LEARN off.
        report: of this rank's rows: those of the first epoch read in training, else
            those of all parts.
    """

    def __init__(
        self,
        source: RowSource,
        config: RankerConfig,
        learn: LearnInputs | None,
        lookups: Lookups | None = None,
    ) -> None:
        self.source, self._config = source, config
        self.lookups = lookups
        self.tasks = config.tasks
        self.learn = None if config.learn.form == "off" else learn
        self.report = RowsReport()
        self._counted_epoch: int | None = None
        # What is encoded once for all rankers that encode alike.
        self._encoded: dict[str, Any] = {}

    def with_config(self, config: RankerConfig) -> "Impressions":
        """Return the same rows for another training; rows in memory stay encoded.

        Raises:
            ValueError: settings that decide how rows are encoded differ.
        """
        if encoding_of(config) != encoding_of(self._config):
            raise ValueError("other features, labels or settings of LEARN")
        other = Impressions(self.source, config, self.learn, self.lookups)
        other._encoded = self._encoded
        return other

    def __len__(self) -> int:
        return self.source.num_rows

    @functools.cached_property
    def loader(self) -> Loader:
        """The training loader; a table in memory is a single shuffle window.

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
            transform=self._encode_once if in_memory else self.encoder(),
        )

    def batches(
        self, epoch: int, start: int = 0, device: torch.device | None = None
    ) -> Generator[RankingBatch]:
        """Yield this rank's share of every global batch of one pass, shuffled.

        The order depends only on (seed, epoch), not on the number of ranks and workers.
        The last, incomplete global batch is dropped, so that every rank takes the same
        number of steps. `start` is the first step to yield, greater than 0 on resume;
        batches for a GPU `device` are pinned.

        Raises:
            UserError: rows that cannot be read or do not fit the settings.
        """
        batches = pinned(self._batches(epoch, start), device or torch.device("cpu"))
        return prefetch(batches, _BATCHES_AHEAD)

    def _batches(self, epoch: int, start: int) -> Generator[RankingBatch]:
        if self._counted_epoch is None:
            self._counted_epoch = epoch
        for windows in prefetch(self.loader.windows(epoch, start), depth=1):
            rows = RankingRows.concatenate([window.rows for window in windows])
            for step in range(len(windows[0].bounds) - 1):
                taken = rows.take(_rows_of(windows, step))
                if epoch == self._counted_epoch:
                    self.report += taken.report()
                yield collate(taken, self.learn)

    def _encode_once(self, table: pa.Table) -> RankingRows:
        """Encode the only window of rows in memory, which depends on the lanes."""
        key = f"window of {self.loader.lanes} lanes"
        if key not in self._encoded:
            self._encoded[key] = self.encoder()(table)
        rows: RankingRows = self._encoded[key]
        return rows

    def parts(self, max_rows: int) -> "Parts":
        """Return this rank's share of all rows, in order; parts have up to max_rows."""
        return Parts(self, max_rows)

    def mean_lengths(self) -> dict[str, float]:
        """Return the mean number of ids of an ID feature, by name, in the first rows.

        LEARN's history counts with its configured length.
        """
        encode = Encoder(
            *(self._config.features, (), None, self.source.name, self.lookups),
            labelled=False,
        )
        rows = encode(next(self.source.pieces(0)).slice(0, _SAMPLE_ROWS))
        bags = {**rows.sparse, **rows.managed, **rows.sequences}
        lengths = {
            name: len(one.values) / max(1, len(rows)) for name, one in bags.items()
        }
        return lengths | {"history": float(self._config.learn.history_length)}

    def report_of_all_ranks(self) -> RowsReport:
        """Return the sum of the ranks' reports; every rank takes part."""
        reports: list[RowsReport] = gather_objects(self.report)
        return functools.reduce(operator.add, reports)

    def encoder(self, labelled: bool = True) -> Encoder:
        """Return what encodes the rows, in this process or in workers."""
        in_memory = isinstance(self.source, TableRows)
        return Encoder(
            self._config.features,
            self.tasks,
            None if self.learn is None else self.learn.finder(in_memory),
            self.source.name,
            self.lookups,
            labelled,
        )


def encoding_of(config: RankerConfig) -> tuple[object, ...]:
    """Return what decides how rows are encoded."""
    return config.features, config.learn, label_columns(config.tasks)


class Parts:
    """One rank's contiguous share of the impressions, in parts.

    Attributes:
        count: of parts, the same on every rank.
        padded_rows: rows of the largest part of any rank.
    """

    def __init__(self, impressions: Impressions, max_rows: int) -> None:
        self._impressions = impressions
        ranks = dist.get_world_size()
        longest = -(-len(impressions) // ranks)
        # Parts of equal size: the last one is padded when it is scored.
        self.padded_rows = -(-longest // -(-longest // max_rows))
        # A lane is a contiguous range of rows, so one lane is one rank's share.
        self._loader = Loader(
            impressions.source,
            evaluation(LoaderConfig(batch_size=self.padded_rows * ranks, lanes=ranks)),
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
        source, encoded = self._impressions.source, self._impressions._encoded
        encoder = self._impressions.encoder(labelled=False)
        whole = isinstance(source, TableRows) and self.count == 1
        if whole and "part" in encoded:
            yield encoded["part"]
            return
        for table in self._loader.batches(epoch=0):
            # A rank without rows takes part with a row that another rank reports.
            used = table if table.num_rows else next(source.pieces(0)).slice(0, 1)
            checked = encoder.checked(used)
            rows = encoder.encode(checked)
            kept = checked.slice(0, table.num_rows).drop_columns([ROW_NUMBER])
            part = Part(rows, kept)
            if whole:
                encoded["part"] = part
            yield part


def _rows_of(windows: Sequence[Window], step: int) -> Int64Array:
    """Return the indices of a step's rows in the concatenated windows."""
    firsts = offsets_of(np.array([len(window.rows) for window in windows]))
    pairs = zip(firsts[:-1], windows, strict=True)
    return np.concatenate([first + window.take(step) for first, window in pairs])
