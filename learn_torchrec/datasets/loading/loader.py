"""Global batches of a row source, the same at any number of ranks and workers.

The shuffled row groups of a pass are concatenated and cut into *lanes* of equal length;
a global batch takes the same number of rows from every lane. Steps are read in
*windows* of several: a lane's rows of a window are shuffled within it. The rows of a
batch thus depend on (seed, epoch, step) alone. A reader (a worker process of a rank)
reads its share of every batch: whole lanes if their number is a multiple of the
readers', so that each row group is decoded by one reader, or two where lanes meet. Of
many row groups and large batches there are up to 256 lanes, in smaller pieces, so that
a single reader holds no more rows of 256 lanes than of 8.

- Every rank takes the same number of steps, known before the first row is read.
- A position is (epoch, step). Training resumes from it at any number of ranks and
  workers, and only the current row groups are read again.
- Evaluation reads every row once; training drops the rows that do not fill a batch,
  different ones in every epoch, and logs how many.
- If all rows fit one window, row groups are not shuffled, as the window mixes all rows;
  they are read and transformed once, not in every epoch.

torchdata's `StatefulDataLoader` has a state per worker, which another number of workers
cannot load.

Letters: B rows of a global batch, G row groups, S steps of a window, N rows.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from learn_torchrec import config as configs
from learn_torchrec.arrays import Int64Array
from learn_torchrec.config import configuration
from learn_torchrec.datasets.loading.interleave import (
    Lane,
    Segment,
    bounds_of,
    cut_into_lanes,
    number_of_lanes,
    share_of,
)
from learn_torchrec.datasets.loading.prefetch import prefetch
from learn_torchrec.datasets.loading.row_groups import PIECE_ROWS, RowSource
from learn_torchrec.datasets.loading.worker import ReaderProcess
from learn_torchrec.errors import UserError
from learn_torchrec.jagged import offsets_of

Transform: TypeAlias = Callable[[pa.Table], Any]

_SHUFFLED_STEPS = 4  # of a window at least, or batches would keep to their row groups
_HELD_ROWS = 8 * PIECE_ROWS  # of a reader, decoded and not yet taken
_ORDERED_WINDOW = 131_072  # rows; without shuffling, larger windows gain nothing

logger = logging.getLogger(__name__)


@configuration
class LoaderConfig:
    """How rows become batches.

    Attributes:
        batch_size: rows of a global batch, over all ranks.
        shuffle: a new order in every epoch; otherwise lanes keep the files' order.
        drop_last: drop the rows that do not fill a batch (training).
        seed: of the order.
        lanes: parts of the data that are interleaved, rounded down to a divisor of
            `batch_size`; 0 chooses, see `number_of_lanes`. More lanes mix better and
            occupy more readers. With one lane and no shuffle, batches follow the files'
            order.
        window_rows: rows of all lanes that are read, shuffled and transformed
            together, but at least four batches if they are shuffled. A few windows are
            in memory.
        workers: reader processes per rank; 0 reads in a thread of the rank.
        timeout: seconds after which a silent worker counts as hung.
        section: full name of these settings, for messages.
        batch_option: full name of `batch_size`, for messages.
    """

    batch_size: PositiveInt = 1024
    shuffle: bool = True
    drop_last: bool = True
    seed: NonNegativeInt = 0
    lanes: NonNegativeInt = 0
    window_rows: PositiveInt = 262_144
    workers: NonNegativeInt = 0
    timeout: PositiveFloat = 300.0
    section: str = "loader"
    batch_option: str = "loader.batch_size"


def evaluation(config: LoaderConfig) -> LoaderConfig:
    """Return the configuration that reads every row once, in the lanes' order."""
    return configs.replace(config, shuffle=False, drop_last=False)


@dataclass(frozen=True)
class Window:
    """One reader's share of consecutive steps.

    Attributes:
        step: the first of them.
        rows: a table of N rows, or the output of the loader's transform.
        order: int64, row indices of one step after another; None for all rows in order.
        bounds: int64 [S + 1], bounds of the steps in `order`.
    """

    step: int
    rows: Any
    order: Int64Array | None
    bounds: Int64Array

    def take(self, step: int) -> Int64Array:
        """Return the indices of this reader's rows in a step, 0 to S - 1, int64."""
        lo, hi = self.bounds[step : step + 2]
        return np.arange(lo, hi) if self.order is None else self.order[lo:hi]

    def arranged(self) -> "Window":
        """Return a table's window with its rows in the order of the steps."""
        if self.order is None:
            return self
        rows = self.rows.combine_chunks().take(pa.array(self.order))
        return replace(self, rows=rows, order=None)


class Loader:
    """This rank's share of every global batch.

    Args:
        rows: the data.
        config: see `LoaderConfig`.
        rank: of this process.
        ranks: in the job.
        transform: applied by the reader to the rows of a window; picklable if there
            are workers, and keeps the rows and their order.

    Attributes:
        steps: batches of a pass, the same on every rank.
        dropped_rows: rows of a pass that do not fill a batch.

    Raises:
        UserError: fewer rows than one batch, or a batch that ranks cannot share evenly.

    Example:
        >>> loader = Loader(RowGroups(path), LoaderConfig(batch_size=4), ranks=2)
        >>> loader.steps, loader.dropped_rows
        (2, 2)
        >>> [batch.num_rows for batch in loader.batches(epoch=0)]
        [2, 2]
    """

    def __init__(
        self,
        rows: RowSource,
        config: LoaderConfig,
        *,
        rank: int = 0,
        ranks: int = 1,
        transform: Transform | None = None,
    ) -> None:
        if config.drop_last and config.batch_size % ranks:
            raise UserError(
                f"{config.batch_option}={config.batch_size} must be a multiple "
                f"of the number of ranks, {ranks}"
            )
        self.rows, self.config, self.transform = rows, config, transform
        self.rank, self.ranks = rank, ranks
        self.lanes = number_of_lanes(config.lanes, config.batch_size, len(rows))
        self.lane_sizes = np.diff(bounds_of(rows.num_rows, self.lanes))
        self._per_lane = config.batch_size // self.lanes
        least, window_rows = _SHUFFLED_STEPS, config.window_rows
        if not config.shuffle:
            least, window_rows = 1, min(window_rows, _ORDERED_WINDOW)
        self._span = max(least, window_rows // config.batch_size)
        if config.drop_last:
            self.steps = int(self.lane_sizes.min()) // self._per_lane
            self.dropped_rows = rows.num_rows - self.steps * config.batch_size
        else:
            self.steps = -(-int(self.lane_sizes.max()) // self._per_lane)
            self.dropped_rows = 0
        self._is_one_window = self.steps <= self._span
        self._only_window: Any = None  # its transformed rows, if there is only one
        if self.steps == 0:
            raise UserError(
                f"{config.batch_option}={config.batch_size} is more than the "
                f"{rows.num_rows} rows of {rows.name}; lower it"
            )
        if self.dropped_rows and rank == 0:
            logger.info(
                "%s: %d of %d rows do not fill a batch and are dropped in each pass",
                *(rows.name, self.dropped_rows, rows.num_rows),
            )

    def batches(self, epoch: int, start: int = 0) -> Iterator[pa.Table]:
        """Yield this rank's rows of every batch from step `start` on.

        The columns are those of the data and `ROW_NUMBER`. In evaluation the last
        batches may be smaller, and a rank's share of them empty. A thread prefetches
        the next window.

        Raises:
            UserError: data that cannot be read, or a worker that died or hangs.
        """
        for windows in prefetch(self.windows(epoch, start), depth=1):
            parts = [window.arranged() for window in windows]
            for step in range(len(parts[0].bounds) - 1):
                tables = [
                    part.rows.slice(lo, hi - lo)
                    for part in parts
                    for lo, hi in [part.bounds[step : step + 2].tolist()]
                ]
                yield tables[0] if len(tables) == 1 else pa.concat_tables(tables)

    def windows(self, epoch: int, start: int = 0) -> Generator[list[Window]]:
        """Yield the shares of this rank's readers, in their order, of every window.

        The rows of a step are those of the first reader, then those of the next.

        Raises:
            UserError: as `batches`.
        """
        workers = self.config.workers
        if not workers:
            for window in self.share(epoch, start, self.rank, self.ranks):
                yield [window]
            return
        readers = [self.rank * workers + worker for worker in range(workers)]
        count = self.ranks * workers
        processes = [
            ReaderProcess(self._compact_share, (epoch, start, reader, count))
            for reader in readers
        ]
        try:
            for first in self._firsts(start):
                yield [self._receive(process, first) for process in processes]
        finally:
            for process in processes:
                process.close()

    def share(
        self, epoch: int, start: int, reader: int, readers: int
    ) -> Iterator[Window]:
        """Yield one reader's share of every window."""
        piece = min(PIECE_ROWS, _HELD_ROWS * readers // self.lanes)
        lanes = [Lane(self.rows, lane, piece) for lane in self._segments(epoch)]
        for first in self._firsts(start):
            steps = np.arange(first, min(first + self._span, self.steps))
            begins = np.minimum(steps * self._per_lane, self.lane_sizes[:, None])
            ends = np.minimum((steps + 1) * self._per_lane, self.lane_sizes[:, None])
            lefts, rights = share_of(begins, ends, reader, readers)
            mine = np.flatnonzero((lefts < rights).any(axis=1))
            los, his = begins[:, 0], ends[:, -1]
            if self.config.shuffle and steps[-1] == self.steps - 1:
                his = self.lane_sizes  # every epoch drops other rows
            firsts = np.cumsum(his[mine] - los[mine]) - his[mine]
            order = [
                place + self._order(epoch, first, int(lane), int(los[lane]), his[lane])
                for place, lane in zip(firsts, mine, strict=True)
            ]
            skipped = max(0, start - first)
            picked = [
                order[at][lefts[lane, step] - lo : rights[lane, step] - lo]
                for step in range(skipped, len(steps))
                for at, lane in enumerate(mine)
                for lo in [los[lane]]
            ]
            taken = np.concatenate([np.empty(0, np.int64), *picked])
            sizes = (rights - lefts).sum(axis=0)[skipped:]
            count = int((his - los)[mine].sum())
            yield Window(
                first + skipped,
                self._rows(
                    [(lanes[lane], int(los[lane]), int(his[lane])) for lane in mine]
                ),
                None if np.array_equal(taken, np.arange(count)) else taken,
                offsets_of(sizes),
            )

    def _rows(self, runs: list[tuple[Lane, int, int]]) -> Any:
        """Return the transformed rows of lanes, cached if there is only one window."""
        if self._only_window is not None:
            return self._only_window
        parts = [self.rows.empty()]
        for lane, lo, hi in runs:
            parts += lane.take(lo, hi)
        rows: Any = pa.concat_tables(parts)
        if self.transform is not None:
            rows = self.transform(rows)
            if self._is_one_window:
                self._only_window = rows
        return rows

    def _compact_share(
        self, epoch: int, start: int, reader: int, readers: int
    ) -> Iterator[Window]:
        """Yield the share to be sent; of a table only the rows taken, in order."""
        for window in self.share(epoch, start, reader, readers):
            yield window.arranged() if isinstance(window.rows, pa.Table) else window

    def _firsts(self, start: int) -> range:
        """Return the first step of every window from that of step `start` on."""
        return range(start - start % self._span, self.steps, self._span)

    def _segments(self, epoch: int) -> list[list[Segment]]:
        order = np.arange(len(self.rows))
        if self.config.shuffle and not self._is_one_window:
            np.random.default_rng([self.config.seed, epoch]).shuffle(order)
        return cut_into_lanes(self.rows.sizes, order, self.lanes)

    def _order(self, epoch: int, step: int, lane: int, lo: int, hi: int) -> Int64Array:
        """Return rows `lo` to `hi` of a lane in the order of a window."""
        if not self.config.shuffle:
            return np.arange(lo, hi)
        random = np.random.default_rng([self.config.seed, epoch, step, lane])
        return lo + random.permutation(hi - lo)

    def _receive(self, process: ReaderProcess, step: int) -> Window:
        section, timeout = self.config.section, self.config.timeout
        try:
            window: Window = process.receive(timeout)
        except TimeoutError:
            reason = f"no rows for {timeout:g} s"
            fix = f"raise {section}.timeout, or check the file system"
        except EOFError as error:
            reason = str(error)
            fix = f"if out of memory, lower {section}.workers or the rows per window"
        else:
            return window
        raise UserError(
            f"{self.rows.name}: a reader process of rank {self.rank} failed at "
            f"step {step} ({reason}); {fix}"
        )
