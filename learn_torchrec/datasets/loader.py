"""Global batches from Parquet, the same ones at any number of ranks and workers.

All rows of a pass are laid out in *lanes*: the row groups, in a shuffled order, are cut
into lanes of equal length, and a global batch takes the next rows of every lane. Which
rows a batch holds therefore follows from (seed, epoch, step) alone. A reader (a worker
process of a rank) reads its share of every batch, which is a run of whole lanes when
there are no more readers than lanes, so that a row group is decoded by one of them.

- Every rank takes the same number of steps, known before the first row is read.
- A position is (epoch, step): it can be resumed at another number of ranks and workers,
  and finding it reads nothing that lies before it but the current row groups.
- Evaluation leaves no row out and repeats none; training leaves out the rows that
  make no full batch, and says how many.

torchdata's `StatefulDataLoader` keeps one state for each worker, which another number
of workers cannot load; here torch's own `DataLoader` only runs the processes.

Letters: B rows of a global batch, G row groups.
"""

import hashlib
import itertools
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learn_torchrec.config import require
from learn_torchrec.datasets.row_groups import RowGroups
from learn_torchrec.errors import UserError

# The column that tells each row's number in the data set, files in sorted order.
ROW_NUMBER = "_row_number"

Ints = NDArray[np.int64]
Transform = Callable[[pa.Table], pa.Table]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How rows become batches.

    Attributes:
        batch_size: rows of a global batch, over all ranks.
        shuffle: a new order in every epoch; off, every lane keeps the files' order.
        drop_last: leave out the rows that make no full batch (training).
        seed: of the order.
        lanes: parts of the data that are read side by side; the number used is the
            largest divisor of `batch_size` up to this one. More mix better and let
            more readers share the work; memory grows with lanes times `window`.
            With one lane and no shuffle, batches follow the files' order.
        window: row groups of a lane that are shuffled together.
        workers: reading processes of each rank; 0 reads in the rank itself.
        prefetch: batches that each worker keeps ready.
        timeout: seconds after which a worker that gives no batch counts as hung.
    """

    batch_size: int = 1024
    shuffle: bool = True
    drop_last: bool = True
    seed: int = 0
    lanes: int = 8
    window: int = 2
    workers: int = 0
    prefetch: int = 2
    timeout: float = 300.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "lanes", "window", "prefetch"):
            require(getattr(self, name) > 0, f"loader.{name}: at least 1")
        require(self.workers >= 0, "loader.workers: at least 0")
        require(self.timeout > 0, "loader.timeout: above 0")


def evaluation(config: LoaderConfig) -> LoaderConfig:
    """Return the configuration that reads every row once, in the lanes' order."""
    return replace(config, shuffle=False, drop_last=False)


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` of a row group."""

    group: int
    start: int
    stop: int


class Loader:
    """This rank's share of every global batch.

    Args:
        rows: the data.
        config: see `LoaderConfig`.
        rank: of this process.
        ranks: in the job.
        transform: applied to each worker's rows where they are read, so that it
            costs the training process nothing; must be picklable with workers, and
            must keep the rows.

    Attributes:
        steps: batches of a pass, the same on every rank.
        dropped_rows: of a pass, those that make no full batch.

    Raises:
        UserError: fewer rows than one batch, or a batch that ranks cannot share.

    Example:
        >>> loader = Loader(RowGroups(path), LoaderConfig(batch_size=4), ranks=2)
        >>> loader.steps, loader.dropped_rows
        (2, 2)
        >>> [batch.num_rows for batch in loader.batches(epoch=0)]
        [2, 2]
    """

    def __init__(
        self,
        rows: RowGroups,
        config: LoaderConfig,
        *,
        rank: int = 0,
        ranks: int = 1,
        transform: Transform | None = None,
    ) -> None:
        if config.drop_last and config.batch_size % ranks:
            raise UserError(
                f"loader.batch_size={config.batch_size} must be a multiple of the "
                f"number of ranks, {ranks}"
            )
        self.rows, self.config, self.transform = rows, config, transform
        self.rank, self.ranks = rank, ranks
        self.lanes = max(
            n for n in range(1, config.lanes + 1) if config.batch_size % n == 0
        )
        self.lane_sizes = np.diff(_bounds(rows.num_rows, self.lanes))
        per_lane = config.batch_size // self.lanes
        if config.drop_last:
            self.steps = int(self.lane_sizes.min()) // per_lane
            self.dropped_rows = rows.num_rows - self.steps * config.batch_size
        else:
            self.steps = -(-int(self.lane_sizes.max()) // per_lane)
            self.dropped_rows = 0
        if self.steps == 0:
            raise UserError(
                f"loader.batch_size={config.batch_size} is more than the "
                f"{rows.num_rows} rows of {rows.name}; make it smaller"
            )
        if self.dropped_rows and rank == 0:
            logger.info(
                "%s: %d of %d rows make no full batch and are left out of a pass",
                *(rows.name, self.dropped_rows, rows.num_rows),
            )

    def batches(self, epoch: int, start: int = 0) -> Iterator[pa.Table]:
        """Yield this rank's rows of every batch from step `start` on.

        The columns are those of the data and `ROW_NUMBER`. In evaluation the last
        batches may be smaller, and a rank's share of them by a row or even empty.

        Raises:
            UserError: data that cannot be read, or a worker that died or hangs.
        """
        if self.config.workers == 0:
            return self.share(epoch, start, self.rank, self.ranks)
        return self._from_workers(epoch, start)

    def share(
        self, epoch: int, start: int, reader: int, readers: int
    ) -> Iterator[pa.Table]:
        """Yield what one of several readers reads of every batch."""
        lanes = [
            _Lane(self.rows, segments, self._order(epoch, number), self.config.window)
            for number, segments in enumerate(self._segments(epoch))
        ]
        per_lane = self.config.batch_size // self.lanes
        for step in range(start, self.steps):
            begins = np.minimum(step * per_lane, self.lane_sizes)
            ends = np.minimum((step + 1) * per_lane, self.lane_sizes)
            firsts = np.cumsum(ends - begins) - (ends - begins)
            lo, hi = _bounds(int((ends - begins).sum()), readers)[reader : reader + 2]
            parts = []
            for lane, begin, end, first in zip(
                lanes, begins, ends, firsts, strict=True
            ):
                # The part of this lane's rows that falls into the share [lo, hi).
                left = begin + max(0, lo - first)
                right = begin + min(end - begin, hi - first)
                if left < right:
                    parts.append(lane.take(int(left), int(right)))
            table = pa.concat_tables(parts) if parts else lanes[0].empty()
            yield self.transform(table) if self.transform else table

    def state(self, epoch: int, step: int) -> dict[str, Any]:
        """Return the position after `step` batches of `epoch` were trained on.

        The caller counts: a pipeline may have read ahead.
        """
        return {"epoch": epoch, "step": step, "plan": self._plan()}

    def resume(self, state: dict[str, Any]) -> tuple[int, int]:
        """Return the epoch and the step where a saved position goes on.

        Raises:
            UserError: the data or the settings of the order have changed.
        """
        if state["plan"] != self._plan():
            raise UserError(
                f"{self.rows.name}: the files, or batch_size, lanes, window, shuffle "
                "or seed, are not those of the saved position; restore them, or start "
                "anew"
            )
        return int(state["epoch"]), int(state["step"])

    def _plan(self) -> str:
        """Digest of all that decides which rows a step holds."""
        settings = asdict(self.config)
        for name in ("workers", "prefetch", "timeout"):
            del settings[name]
        body = json.dumps([settings, self.rows.fingerprint()], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()

    def _segments(self, epoch: int) -> list[list[Segment]]:
        order = np.arange(len(self.rows))
        if self.config.shuffle:
            np.random.default_rng([self.config.seed, epoch]).shuffle(order)
        return cut_into_lanes(self.rows.sizes, order, self.lanes)

    def _order(self, epoch: int, lane: int) -> Callable[[int, int], Ints] | None:
        if not self.config.shuffle:
            return None
        seed = self.config.seed

        def permutation(window: int, count: int) -> Ints:
            return np.random.default_rng([seed, epoch, lane, window]).permutation(count)

        return permutation

    def _from_workers(self, epoch: int, start: int) -> Iterator[pa.Table]:
        # Imported here: reading without workers needs no torch.
        from torch.utils.data import DataLoader

        from learn_torchrec.datasets.loader_worker import WorkerShare

        workers = self.config.workers
        # Never forked from here: the parent holds threads and file systems that do
        # not survive it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", __name__])
        loader = DataLoader(
            WorkerShare(self, epoch, start),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=self.config.prefetch,
            timeout=self.config.timeout,
            multiprocessing_context=context,
        )
        # Workers answer in turns, so that the next `workers` parts are one batch.
        parts = iter(loader)
        for step in range(start, self.steps):
            batch = []
            for _ in range(workers):
                batch.append(self._next(parts, step))
            yield pa.concat_tables(batch)

    def _next(self, parts: Iterator[Any], step: int) -> pa.Table:
        try:
            part = next(parts)
        except RuntimeError as error:
            # The cause says more, where it says anything: queue.Empty has no words.
            words = str(error.__cause__ or "").strip() or str(error).strip()
            reason = words.splitlines()[0]
            if "timed out" in reason:
                reason = f"gave nothing for {self.config.timeout:g} s"
                mend = "raise loader.timeout, or look at the file system"
            else:
                mend = "if it was out of memory, lower loader.workers or loader.lanes"
            raise UserError(
                f"{self.rows.name}: a reading process of rank {self.rank} failed at "
                f"step {step} ({reason}); {mend}"
            ) from error
        if isinstance(part, UserError):
            raise part
        return part


def cut_into_lanes(sizes: Ints, order: Ints, lanes: int) -> list[list[Segment]]:
    """Lay row groups end to end and cut the row of rows into equal lanes.

    Args:
        sizes: int64 [G], rows of each row group.
        order: int64 [G], the row groups in the order they are laid out.
        lanes: number of lanes; their lengths differ by one row at most.
    """
    ends = np.cumsum(sizes[order])
    bounds = _bounds(int(ends[-1]), lanes)
    result: list[list[Segment]] = []
    for lo, hi in itertools.pairwise(bounds):
        segments = []
        place = int(np.searchsorted(ends, lo, side="right"))
        while place < len(order) and (begin := ends[place] - sizes[order[place]]) < hi:
            start, stop = max(lo, begin) - begin, min(hi, ends[place]) - begin
            if start < stop:
                segments.append(Segment(int(order[place]), int(start), int(stop)))
            place += 1
        result.append(segments)
    return result


class _Lane:
    """A lane's rows, a window of row groups at a time."""

    def __init__(
        self,
        rows: RowGroups,
        segments: list[Segment],
        order: Callable[[int, int], Ints] | None,
        window: int,
    ) -> None:
        self._rows, self._order = rows, order
        self._windows = [
            segments[place : place + window]
            for place in range(0, len(segments), window)
        ]
        sizes = [sum(s.stop - s.start for s in window) for window in self._windows]
        self._ends = np.cumsum(sizes)
        self._loaded: tuple[int, pa.Table] | None = None

    def take(self, start: int, stop: int) -> pa.Table:
        """Return the lane's rows `start` to `stop`; fastest when asked in order."""
        parts = []
        while start < stop:
            window = int(np.searchsorted(self._ends, start, side="right"))
            table = self._window(window)
            begin = int(self._ends[window]) - table.num_rows
            until = min(stop, begin + table.num_rows)
            parts.append(table.slice(start - begin, until - start))
            start = until
        return parts[0] if len(parts) == 1 else pa.concat_tables(parts)

    def empty(self) -> pa.Table:
        """Return a table of the lane's columns without rows."""
        field = pa.field(ROW_NUMBER, pa.int64())
        return self._rows.schema.append(field).empty_table()

    def _window(self, number: int) -> pa.Table:
        if self._loaded is not None and self._loaded[0] == number:
            return self._loaded[1]
        self._loaded = None  # before the next one is read: memory holds one
        parts = [self._segment(segment) for segment in self._windows[number]]
        table = pa.concat_tables(parts)
        if self._order is None:
            table = table.combine_chunks()
        else:
            table = table.take(pa.array(self._order(number, table.num_rows)))
        self._loaded = number, table
        return table

    def _segment(self, segment: Segment) -> pa.Table:
        table = self._rows.read(segment.group)
        first = int(self._rows.starts[segment.group])
        numbers = np.arange(first + segment.start, first + segment.stop)
        part = table.slice(segment.start, segment.stop - segment.start)
        return part.append_column(ROW_NUMBER, pa.array(numbers))


def _bounds(count: int, parts: int) -> list[int]:
    """Return where each of `parts` almost equal parts of `count` begins and ends."""
    return [part * count // parts for part in range(parts + 1)]
