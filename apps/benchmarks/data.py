"""Rows a second and memory of the preparation, and batches a second of the loader.

- `scale`: the whole preparation of a generated log by DuckDB, each size in a process of
  its own.
- `batches_over_plain_loop`: ranking batches from Parquet in file order, relative to a
  plain loop of pyarrow and torch over the same columns. Shuffled batches are compared
  with that loop, which does not shuffle, and with one that shuffles a buffer of row
  groups. All may use all cores, and all copy every column into writable tensors.
- `loader_hang_tests`: the loader's tests, including those of dying and hanging
  processes.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch

from learn_torchrec.datasets.loading.loader import Loader, LoaderConfig
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.prefetch import prefetch
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER, RowGroups
from learn_torchrec.datasets.preparation.engines import open_engine
from learn_torchrec.datasets.preparation.prepare import PrepareConfig, prepare
from learn_torchrec.datasets.preparation.prepared import KIND, write_prepared
from learn_torchrec.publish import write_artifact

from ..common.hardware import describe_machine
from ..common.program import run
from . import measure

_ROW_GROUP, _FILE_ROWS = 131_072, 5_000_000
_DISK_PER_ROW = 100  # bytes: the log, what DuckDB spills, the result
_DAYS = 300
_BATCH, _RANKING_ROWS, _REPEATS = 4096, 2_000_000, 11
_GROUPS = 2  # row groups in the plain loop's buffer, as many rows as a window's
_CONFIG = PrepareConfig(history_days=270, target_days=30, min_events=2)

logger = logging.getLogger(__name__)


def write_log(directory: Path, count: int) -> int:
    """Write `count` interactions as Parquet files; return the number of items.

    Fifty events a user on average, long-tail items, in time order.
    """
    num_items = max(1000, count // 100)
    directory.mkdir(parents=True)
    for start in range(0, count, _FILE_ROWS):
        size = min(_FILE_ROWS, count - start)
        random = np.random.default_rng([7, start])
        times = np.sort(random.integers(start, start + size, size))
        table = pa.table(
            {
                "user_id": random.integers(0, count // 50, size),
                "item_id": (num_items * random.random(size) ** 3).astype(np.int64),
                "timestamp": times * (_DAYS * 86_400) // count + 1,
                "action": pa.DictionaryArray.from_arrays(
                    random.integers(0, 3, size).astype(np.int32), ["buy", "cart", "see"]
                ),
            }
        )
        path = directory / f"part-{start // _FILE_ROWS:05d}.parquet"
        pq.write_table(table, path, row_group_size=_ROW_GROUP)
    return num_items


def prepare_once(folder: str, num_items: int, memory: str) -> dict[str, Any]:
    """Prepare the log in a folder; return seconds, peak memory and kept events."""
    items = pa.table({"item_id": range(num_items)})
    directory, scratch = Path(folder) / "log", Path(folder) / "scratch"
    scratch.mkdir()
    started = time.perf_counter()
    engine = open_engine("duckdb", scratch, memory)
    engine.register("items", items.append_column("item", items["item_id"]))
    engine.scan("log", Location.of(directory))
    prepared = prepare(engine, _CONFIG, pa.int64(), str(directory))
    out = Path(folder) / "prepared"
    with write_artifact(out, kind=KIND, config={}, inputs={}) as working:
        facts = write_prepared(working, prepared, items)
    engine.close()
    seconds, peak_mb = time.perf_counter() - started, measure.peak_memory_mb()
    return {"seconds": seconds, "peak_mb": peak_mb, "events": facts["events"]}


def measure_scale(count: int, memory: str, scratch: Path) -> dict[str, Any]:
    """Return one size's entry of `scale`, measured in a process of its own."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        num_items = write_log(Path(folder) / "log", count)
        arguments = (folder, num_items, memory)
        measured = measure.in_fresh_process("data", "prepare_once", *arguments)
    line = {
        "rows": count,
        "rows_per_s": round(count / measured["seconds"]),
        "peak_mb": round(measured["peak_mb"]),
        "events_kept": measured["events"],
    }
    logger.info("%s", line)
    return line


def write_impressions(path: Path, count: int) -> None:
    """Write ranking rows: four ids, ten numbers, a label."""
    random = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {
        f"id{n}": random.integers(0, 10**6, count) for n in range(4)
    }
    columns |= {f"dense{n}": random.random(count, np.float32) for n in range(10)}
    columns["label"] = random.integers(0, 2, count).astype(np.float32)
    pq.write_table(pa.table(columns), path, row_group_size=_ROW_GROUP)


def as_tensors(table: pa.Table | pa.RecordBatch) -> dict[str, torch.Tensor]:
    """Return every column as a tensor, copied once."""
    result = {}
    for name in table.schema.names:
        if name != ROW_NUMBER:
            column = table.column(name)
            chunks = column.chunks if isinstance(table, pa.Table) else [column]
            values = np.concatenate([chunk.to_numpy() for chunk in chunks])
            result[name] = torch.from_numpy(values)
    return result


def plain_loop(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches as a hand-written loop would."""
    for batch in ds.dataset(path).to_batches(batch_size=_BATCH):
        yield as_tensors(batch)


def plain_shuffle(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches as a loop that shuffles a buffer of row groups would."""
    random = np.random.default_rng(0)
    file = pq.ParquetFile(path)
    groups = random.permutation(file.num_row_groups)
    for few in np.split(groups, range(_GROUPS, len(groups), _GROUPS)):
        buffer = as_tensors(file.read_row_groups(few.tolist()))
        order = torch.from_numpy(random.permutation(len(buffer["label"])))
        for rows in order.split(_BATCH):
            yield {name: v.index_select(0, rows) for name, v in buffer.items()}


def loader_in_order(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the loader's batches in the files' order."""
    config = LoaderConfig(batch_size=_BATCH, drop_last=False, shuffle=False, lanes=1)
    for batch in Loader(RowGroups(path), config).batches(epoch=0):
        yield as_tensors(batch)


def loader_shuffled(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches as the ranker does: from windows that a thread prefetches."""
    config = LoaderConfig(batch_size=_BATCH, drop_last=False)
    loader = Loader(RowGroups(path), config, transform=as_tensors)
    for (window,) in prefetch(loader.windows(epoch=0), depth=1):
        for step in range(len(window.bounds) - 1):
            rows = torch.from_numpy(window.take(step))
            yield {name: v.index_select(0, rows) for name, v in window.rows.items()}


def compare_loaders(scratch: Path) -> dict[str, float]:
    """Return batches a second relative to the plain loops', in order and shuffled."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "impressions.parquet"
        write_impressions(path, _RANKING_ROWS)
        batches = -(-_RANKING_ROWS // _BATCH)

        def drain(make: Callable[[], Iterator[Any]]) -> Callable[[], None]:
            def drained() -> None:
                rows = sum(len(batch["label"]) for batch in make())
                assert rows == _RANKING_ROWS, rows

            return drained

        seconds = measure.interleaved_medians(
            {
                "plain": drain(lambda: plain_loop(path)),
                "ordered": drain(lambda: loader_in_order(path)),
                "plain shuffle": drain(lambda: plain_shuffle(path)),
                "shuffled": drain(lambda: loader_shuffled(path)),
            },
            repeats=_REPEATS,
        )
    return {
        "batches_per_s": round(batches / seconds["ordered"], 1),
        "batches_over_plain_loop": round(seconds["plain"] / seconds["ordered"], 2),
        "shuffled_over_plain_loop": round(seconds["plain"] / seconds["shuffled"], 2),
        "shuffled_over_plain_shuffle": round(
            seconds["plain shuffle"] / seconds["shuffled"], 2
        ),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; with --json also write the results."""
    parser = measure.parser("data", __doc__)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[1_000_000, 10_000_000, 100_000_000],
        metavar="N",
        help="sizes of the log",
    )
    parser.add_argument("--memory", default="2GB", metavar="SIZE", help="DuckDB's")
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="folder with room for the data"
    )
    args = parser.parse_args(argv)
    measure.require(duckdb="duckdb", pytest="pytest")
    measure.require_machine(1, max(args.rows) * _DISK_PER_ROW, args.scratch)
    results = {
        "machine": describe_machine(),
        "engine_memory": args.memory,
        "scale": [measure_scale(n, args.memory, args.scratch) for n in args.rows],
        **compare_loaders(args.scratch),
        "loader_hang_tests": measure.run_tests("tests/datasets/test_loader.py"),
    }
    measure.publish(results, args.json)


if __name__ == "__main__":
    run(main)
