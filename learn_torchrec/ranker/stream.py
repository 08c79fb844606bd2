"""Training rows read from Parquet while training: only some are ever in memory.

The rows of one pass are the file's row groups in an order drawn from (seed, epoch),
cut into `lanes` equal parts. A global batch takes as many rows from each lane, and a
rank reads the lanes that are its own: no row group is decoded by every rank, the
batches are the same on any number of ranks, and every rank takes as many steps.
Within a lane, rows are shuffled in windows.

Dimension letters: L lanes, N rows.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch.distributed as dist
from numpy.typing import NDArray

from learn_torchrec.config import require
from learn_torchrec.datasets.tables import REQUIRED, check
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.batch import RankingBatch, collate
from learn_torchrec.ranker.rows import (
    FeaturesConfig,
    RankingRows,
    RowsReport,
    prepare_rows,
)
from learn_torchrec.ranker.vectors import LearnVectors
from learn_torchrec.schema import IMPRESSIONS_FILE, TIMESTAMP, WEIGHT

Ints = NDArray[np.int64]
Item = TypeVar("Item")
_PIECE_ROWS = 65_536  # decoded at a time
_PREFETCH = 4
_ITEM, _ERROR, _END = "item", "error", "end"


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How impressions are read while training.

    Attributes:
        enabled: read row groups of `parquet:` impressions as they are needed, instead
            of all rows at the start.
        lanes: L, streams of rows that a batch is taken from; a multiple of the
            number of ranks, and a divisor of the batch size.
        shuffle_rows: rows of all lanes that are shuffled together.
    """

    enabled: bool = False
    lanes: int = 8
    shuffle_rows: int = 262_144

    def __post_init__(self) -> None:
        require(self.lanes > 0, "ranker.training.stream.lanes: at least 1")
        require(
            self.shuffle_rows >= self.lanes,
            "ranker.training.stream.shuffle_rows: at least as many as lanes",
        )


@dataclass(frozen=True)
class _Group:
    """A row group: where it is and how many of its rows are wanted."""

    path: Path
    number: int
    rows: int
    earliest: int


class StreamedRows:
    """The impressions of [first, end), to train on while they are read.

    Opening reads the timestamps alone, to count rows.

    Args:
        path: Parquet file, or a directory of them.
        features: of the ranker; only their columns are read.
        vectors: LEARN's, None with LEARN off.
        first: unix seconds.
        end: unix seconds; rows at or after it are left out.
        config: how.

    Raises:
        UserError: unreadable files, a missing column, no rows in the interval.
    """

    def __init__(
        self,
        path: Path,
        features: FeaturesConfig,
        vectors: LearnVectors | None,
        first: int,
        end: int,
        config: StreamConfig,
    ) -> None:
        self.vectors = vectors
        self.report = RowsReport(rows=0, missing={}, left_out={})
        self._path, self._features, self._config = path, features, config
        self._first, self._end = first, end
        paths = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        self._columns = self._wanted_columns(paths)
        self._groups = [group for file in paths for group in self._count(file)]
        if not len(self):
            raise UserError(
                f"{path}: no impression lies in [{first}, {end}) (unix seconds); move "
                "split.towers_until or split.test_from"
            )

    def __len__(self) -> int:
        return sum(group.rows for group in self._groups)

    @property
    def earliest(self) -> int:
        """Time of the first of the rows, unix seconds."""
        return min(group.earliest for group in self._groups)

    def batches(
        self, *, batch_size: int, seed: int, epoch: int, start: int = 0
    ) -> Iterator[RankingBatch]:
        """Yield this rank's share of every global batch of one pass.

        The last, incomplete global batch is left out, and so are the first `start`
        steps, which an earlier run has taken: their windows are not read.

        Raises:
            UserError: a batch size or number of lanes that do not fit the ranks.
        """
        lanes, world_size = self._config.lanes, dist.get_world_size()
        if batch_size % lanes or lanes % world_size:
            raise UserError(
                f"ranker.training.stream.lanes={lanes} must be a multiple of the "
                f"number of ranks, {world_size}, and a divisor of "
                f"ranker.training.batch_size={batch_size}"
            )
        per_rank = lanes // world_size
        mine = range(dist.get_rank() * per_rank, (dist.get_rank() + 1) * per_rank)
        return prefetched(self._batches(mine, batch_size, seed, epoch, start))

    def _batches(
        self, mine: range, batch_size: int, seed: int, epoch: int, taken: int
    ) -> Iterator[RankingBatch]:
        config = self._config
        order = np.random.default_rng([seed, epoch]).permutation(len(self._groups))
        steps = len(self) // batch_size
        width = batch_size // config.lanes  # rows of a lane in a batch
        steps_in_window = max(1, config.shuffle_rows // config.lanes // width)
        first = taken // steps_in_window * steps_in_window
        readers = [
            _Lane(
                self._pieces(order, lane * (len(self) // config.lanes) + first * width)
            )
            for lane in mine
        ]
        for start in range(first, steps, steps_in_window):
            count = min(steps_in_window, steps - start)
            parts = [reader.take(count * width) for reader in readers]
            rows = self._prepared(pa.concat_tables(parts), epoch)
            chosen = np.stack(
                [
                    np.random.default_rng([seed, epoch, start, lane]).permutation(
                        count * width
                    )
                    + place * count * width
                    for place, lane in enumerate(mine)
                ]
            )
            for step in range(max(0, taken - start), count):
                index = chosen[:, step * width : (step + 1) * width]
                yield collate(rows, index.reshape(-1))

    def _prepared(self, window: pa.Table, epoch: int) -> RankingRows:
        source = str(self._path)
        table = check(window, REQUIRED[IMPRESSIONS_FILE], source)
        rows = prepare_rows(table, self._features, self.vectors, source)
        if epoch == 0:
            self.report = rows.report() + self.report
        return rows

    def _pieces(self, order: Ints, skip: int) -> Iterator[pa.Table]:
        """Yield wanted rows of the groups in `order`, without the first `skip`."""
        for number in order:
            group = self._groups[number]
            if skip >= group.rows:
                skip -= group.rows
                continue
            with pq.ParquetFile(group.path, memory_map=True) as file:
                for piece in file.iter_batches(
                    _PIECE_ROWS, [group.number], self._columns, use_threads=False
                ):
                    table = self._inside(pa.Table.from_batches([piece]))
                    yield table.slice(min(skip, table.num_rows))
                    skip -= min(skip, table.num_rows)

    def _inside(self, table: pa.Table) -> pa.Table:
        times = _seconds(table[TIMESTAMP])
        low, high = pc.min_max(times).as_py().values() if len(times) else (0, 0)
        if self._first <= low and high < self._end:
            return table
        after = pc.greater_equal(times, self._first)
        return table.filter(pc.and_(after, pc.less(times, self._end)))

    def _wanted_columns(self, paths: list[Path]) -> list[str]:
        wanted = dict.fromkeys([*REQUIRED[IMPRESSIONS_FILE], *self._features.columns])
        try:
            known = pq.read_schema(paths[0]).names if paths else []
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self._path}: cannot be read as Parquet ({reason}); write it again"
            ) from None
        missing = [name for name in wanted if name not in known]
        if missing:
            raise UserError(
                f"{self._path}: column {missing[0]!r} is missing; it has: "
                f"{', '.join(known)}; add it, or change ranker.features"
            )
        return [
            *wanted,
            *([WEIGHT] if WEIGHT in known and WEIGHT not in wanted else []),
        ]

    def _count(self, path: Path) -> Iterator[_Group]:
        with pq.ParquetFile(path, memory_map=True) as file:
            for number in range(file.num_row_groups):
                times = _seconds(file.read_row_group(number, [TIMESTAMP])[TIMESTAMP])
                inside = pc.and_(
                    pc.greater_equal(times, self._first), pc.less(times, self._end)
                )
                rows = pc.sum(inside).as_py() or 0
                if rows:
                    earliest = pc.min(times.filter(inside)).as_py()
                    yield _Group(path, number, rows, earliest)


class _Lane:
    """Takes tables of an exact length out of pieces of any length."""

    def __init__(self, pieces: Iterator[pa.Table]) -> None:
        self._pieces = pieces
        self._rest: pa.Table | None = None

    def take(self, count: int) -> pa.Table:
        parts: list[pa.Table] = []
        while count:
            piece = next(self._pieces) if self._rest is None else self._rest
            part = piece.slice(0, count)
            parts.append(part)
            count -= part.num_rows
            left = piece.slice(part.num_rows)
            self._rest = left if left.num_rows else None
        return pa.concat_tables(parts)


def prefetched(items: Iterator[Item]) -> Iterator[Item]:
    """Yield what a thread takes from `items`, a few ahead; its error is raised here."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(_PREFETCH)
    stopped = threading.Event()
    reader = threading.Thread(
        target=_read_ahead, args=(items, ready, stopped), name="prefetch", daemon=True
    )
    reader.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == _ERROR:
                raise value
            if kind == _END:
                return
            yield value
    finally:
        stopped.set()
        reader.join()


def _read_ahead(
    items: Iterator[Any], ready: queue.Queue[tuple[str, Any]], stopped: threading.Event
) -> None:
    def offer(kind: str, value: Any) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put((kind, value), timeout=0.1)

    try:
        for item in items:
            if stopped.is_set():
                return
            offer(_ITEM, item)
    except BaseException as error:  # whatever it is, the reader must hear of it
        offer(_ERROR, error)
    else:
        offer(_END, None)


def _seconds(times: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(times.type):
        return times.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    return times
