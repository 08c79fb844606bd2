"""Before the stages: turn a log of any size into memory-mapped sequences.

Cleans, cuts, caps, groups and sorts the interactions out of core, with DuckDB on this
machine or with Spark, and reports how many rows were dropped and why. The result is a
data set too: --data prepared:DIR, and for the ranker's stages
--data 'prepared:DIR#impressions=parquet:DATA'. Moments of the log and of the
impressions, and events by day, are counted once for all ranks.
"""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.preparation.engines import Engine, open_engine
from learn_torchrec.datasets.preparation.prepare import (
    ITEMS,
    LOG,
    PreparedLog,
    check_types,
    prepare,
    unknown_items,
)
from learn_torchrec.datasets.preparation.prepared import KIND, write_prepared
from learn_torchrec.publish import write_artifact
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    TIMESTAMP,
)

from .common import options
from .common.job import Job, describe

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("prepare", __doc__)
    options.add_data(parser)
    options.add_output(parser, "the prepared data set")
    parser.add_argument(
        "--engine",
        default="duckdb",
        choices=("duckdb", "spark"),
        help="what runs the preparation",
    )
    parser.add_argument(
        "--memory",
        default="2GB",
        metavar="SIZE",
        help="memory of the engine, which spills to disk",
    )
    return parser


def plan(args: argparse.Namespace) -> Job:
    """Return what the app would make; engines differ only in the time they take."""
    dataset = options.dataset(args)
    tables = [ITEMS_FILE, INTERACTIONS_FILE]
    tables += [IMPRESSIONS_FILE] if dataset.has_impressions else []
    return describe(args, KIND, ("prepare",), dataset.fingerprints(*tables))


def main(argv: Sequence[str] | None = None) -> None:
    """Write a prepared data set."""
    args = build_parser().parse_args(argv)
    job = plan(args)
    job.make(lambda: _prepare(args, job))


def _prepare(args: argparse.Namespace, job: Job) -> None:
    dataset = options.dataset(args)
    facts: dict[str, object] = {}
    with (
        write_artifact(job.out, **job.manifest(None, facts)) as working,
        # Inside `working`, which the next run removes if this one is killed.
        tempfile.TemporaryDirectory(dir=working) as scratch,
    ):
        engine = open_engine(args.engine, Path(scratch), args.memory)
        try:
            time_type = _load(engine, dataset)
            name = dataset.name(INTERACTIONS_FILE)
            prepared = prepare(engine, job.run.prepare, time_type, name)
            _tolerate(dataset, engine, prepared)
            shown = dataset.impression_moments if dataset.has_impressions else None
            facts.update(write_prepared(working, prepared, dataset.items, shown))
            job.refuse_changed_data()
        finally:
            engine.close()
    dropped = ", ".join(f"{n} {name}" for name, n in prepared.dropped.items() if n)
    logger.info(
        "%s events of %s users; dropped: %s; histories end and targets start at %s",
        *(facts["events"], facts["users"], dropped or "nothing", facts["moment"]),
    )


def _tolerate(dataset: Dataset, engine: Engine, log: PreparedLog) -> None:
    """Say which rows cannot be used, or refuse them, as when a log is in memory."""
    name, dropped = dataset.name(INTERACTIONS_FILE), log.dropped
    reasons = ("nulls", "bad_times", "unknown_items")
    total = log.valid_rows + sum(dropped[reason] for reason in reasons)
    for reason, what, fix in (
        ("nulls", "have no user, item, time or action", ""),
        ("bad_times", "are before 1970 or after 2200", "write times in unix seconds"),
    ):
        rows = f"{name}: {dropped[reason]} of {total} rows {what}"
        dataset.tolerance(dropped[reason], total, rows, fix)
    if count := dropped["unknown_items"]:
        ids, items = unknown_items(engine), dataset.name(ITEMS_FILE)
        dataset.tolerance.unknown(name, items, ids, count, total)


def _load(engine: Engine, dataset: Dataset) -> pa.DataType:
    """Register the log and the items; return the type of the log's times."""
    ids = dataset.items[ITEM_ID]
    rows = pa.array(range(len(ids)), pa.int64())
    engine.register(ITEMS, pa.table({ITEM_ID: ids, "item": rows}))
    location = dataset.parquet(INTERACTIONS_FILE)
    if location is None:
        table = dataset.read(INTERACTIONS_FILE)
        engine.register(LOG, table)
        schema = table.schema
    else:
        schema = engine.scan(LOG, location)
    check_types(schema, ids.type, dataset.name(INTERACTIONS_FILE))
    return schema.field(TIMESTAMP).type


if __name__ == "__main__":
    options.run(main)
