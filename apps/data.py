"""Make data: a generated market, or impressions drawn from a log that has none.

Each writes a folder of items, interactions and impressions, to be read with
`--data parquet:DIR`.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.artifact import recipe_of
from learn_torchrec.config import from_dict, meanings, to_dict
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.generated import drawn
from learn_torchrec.datasets.generated.drawn import DrawConfig, Drawing
from learn_torchrec.datasets.generated.market import KIND, MarketConfig, write_market
from learn_torchrec.datasets.sequences import TICK
from learn_torchrec.outputs import refuse_inputs
from learn_torchrec.page_checksums import WRITTEN
from learn_torchrec.progress import progress_bar
from learn_torchrec.publish import is_finished, make_once, write_artifact
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEMS_FILE,
    LABEL,
    SAMPLING_RATE,
    TIMESTAMP,
)

from .common import options, program

_MARKET = """Write a shop with users, items, interactions and impressions, day by day.

An item's text says what it is; users have interests that drift; a conversion depends on
both, on quality and on price. The impressions carry `oracle`, the true probability of
conversion, so that a model can be compared with the best there is.
"""
_IMPRESSIONS = """Draw impressions from the interactions of a data set that has none.

A user's events with gaps of at most --gap seconds are a visit. The items it took are
its rows with label 1; for each of them, --negatives of the other items known at that
time are drawn as rows with label 0. Nothing of a row looks ahead: only the log strictly
before the visit decides which items are known and how popular they are. The column
`sampling_rate` is the probability of being drawn.
"""
_HELP = {
    "negatives": "items to draw for each item that a visit took; one drawn twice is "
    "one row",
    "gap": "seconds between two events of a visit, at most; 0: events of one second",
    "by": "chance of an item: popularity (its earlier events, plus one), or uniform",
    "arrival": "column of the items with the time from which each exists; without it, "
    "it does so after its first event",
    "seed": "of the draws",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = program.parser("data", __doc__)
    makes = parser.add_subparsers(dest="what", required=True)
    market = _subparser(makes, "market", "a generated shop of any size", _MARKET)
    texts = meanings(MarketConfig)
    for field in dataclasses.fields(MarketConfig):
        text = texts[field.name].rstrip(".").replace(" % ", " %% ")
        _add_setting(market, field, text)
    impressions = _subparser(
        makes, "impressions", "impressions drawn from a log", _IMPRESSIONS
    )
    options.add_data(impressions)
    impressions.add_argument(
        "--from",
        dest="start",
        default=DrawConfig.start,
        metavar="MOMENT",
        help="only visits from then on: a share of the log, an ISO date or unix "
        "seconds",
    )
    impressions.add_argument(
        "--actions",
        default="",
        metavar="ACTION,...",
        help="events that take an item (default: all)",
    )
    for field in dataclasses.fields(DrawConfig):
        if field.name in _HELP:
            _add_setting(impressions, field, _HELP[field.name])
    return parser


def _subparser(
    makes: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    does: str,
    description: str,
) -> argparse.ArgumentParser:
    result = makes.add_parser(
        name,
        help=does,
        description=description,
        allow_abbrev=False,
        formatter_class=program.HelpFormatter,
    )
    options.add_output(result, "the data set")
    return result


def _add_setting(
    parser: argparse.ArgumentParser, field: "dataclasses.Field[object]", text: str
) -> None:
    parser.add_argument(
        f"--{field.name}", default=field.default, metavar="VALUE", help=text
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data set."""
    args = build_parser().parse_args(argv)
    if args.what == "market":
        _write_market(args)
    else:
        _draw_impressions(args)


def _write_market(args: argparse.Namespace) -> None:
    names = [field.name for field in dataclasses.fields(MarketConfig)]
    values = {name: getattr(args, name) for name in names}
    config = from_dict(MarketConfig, values, "data market")
    settings = to_dict(config)
    recipe = recipe_of(KIND, settings, {})

    def make() -> None:
        with (
            write_artifact(args.out, kind=KIND, config=settings, inputs={}) as working,
            progress_bar("market", config.impressions, unit="row") as bar,
        ):
            for done in write_market(config, working):
                bar.update(done - bar.n)

    if make_once(
        args.out, lambda: is_finished(args.out, KIND, recipe, args.overwrite), make
    ):
        print(
            f"{config.impressions:,} impressions; read them with "
            f"--data parquet:{args.out}"
        )


def _draw_impressions(args: argparse.Namespace) -> None:
    names = [field.name for field in dataclasses.fields(DrawConfig)]
    values = {name: getattr(args, name) for name in names}
    values["actions"] = [name for name in args.actions.split(",") if name]
    config = from_dict(DrawConfig, values, "data impressions")
    settings, dataset = to_dict(config), options.dataset(args)
    inputs = dataset.fingerprints(ITEMS_FILE, INTERACTIONS_FILE)
    recipe = recipe_of(drawn.KIND, settings, inputs)
    refuse_inputs(args.out, options.paths_read(args))

    def make() -> None:
        facts: dict[str, object] = {}
        with write_artifact(
            args.out, kind=drawn.KIND, config=settings, inputs=inputs, facts=facts
        ) as working:
            drawing = Drawing(dataset, config)
            rate = _write(drawing, dataset, working)
            facts |= drawing.counts
        _tell(drawing.counts, rate, args.out)

    make_once(
        args.out,
        lambda: is_finished(args.out, drawn.KIND, recipe, args.overwrite),
        make,
    )


def _tell(counts: Mapping[str, int], rate: float, out: Path) -> None:
    """Print what was drawn."""
    print(
        f"{counts['visits']:,} visits: {counts['positives']:,} positives, "
        f"{counts['negatives']:,} negatives, drawn with a mean rate of {rate:.2g}"
    )
    for count, what in (
        (counts["new"], "items that a visit took were not known before it"),
        (counts["crowded"], "visits took nearly all items that were known"),
    ):
        if count:
            print(f"{count:,} {what}; left out")
    print(f"read them with --data parquet:{out}")


def _write(drawing: Drawing, dataset: Dataset, working: Path) -> float:
    """Write the three tables; return the negatives' mean sampling rate."""
    pq.write_table(dataset.items, working / ITEMS_FILE, **WRITTEN)
    log = dataset.interactions
    order = log[TICK if TICK in log.column_names else TIMESTAMP].to_numpy()
    log = log.take(pa.array(np.argsort(order, kind="stable")))
    log = log.select([name for name in log.column_names if name != TICK])
    pq.write_table(log, working / INTERACTIONS_FILE, **WRITTEN)
    total, blocks = 0.0, drawing.blocks()
    first = next(blocks)
    path = working / IMPRESSIONS_FILE
    with pq.ParquetWriter(path, first.schema, **WRITTEN) as writer:
        for table in (first, *blocks):
            writer.write_table(table)
            rates = table[SAMPLING_RATE].to_numpy()
            total += float(rates[table[LABEL].to_numpy() == 0].sum())
    return total / max(1, drawing.counts["negatives"])


if __name__ == "__main__":
    options.run(main)
