"""Options that the stages share: configuration, data, inputs and output."""

import argparse
from pathlib import Path

from learn_torchrec import config, presets
from learn_torchrec.datasets.adapters import ADAPTERS, open_dataset
from learn_torchrec.datasets.adapters.base import Dataset

from . import program
from .program import run as run  # apps say options.run(main)
from .program import write_json as write_json

DATA_HELP = (
    "data set as ADAPTER:PATH: movielens:auto (the wheel's MovieLens-100K), "
    "parquet:DIR (items, interactions, impressions .parquet; a path or a URI such as "
    "s3://...), prepared:DIR (what prepare wrote), csv:DIR#user_id=COLUMN,..., or "
    f"another of {', '.join(sorted(ADAPTERS))}"
)


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return an app's parser with the options that choose its configuration."""
    result = program.parser(name, description)
    group = result.add_argument_group("configuration")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--preset",
        default="quickstart",
        choices=sorted(presets.PRESETS),
        help="named configuration to start from (default: %(default)s)",
    )
    source.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="rerun a saved configuration (config.json beside any artefact)",
    )
    program.add_overrides(group, "change one setting; may be repeated")
    return result


def add_data(result: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add the options that name the data set, see `dataset`."""
    result.add_argument(
        "--data",
        required=default is None,
        default=default,
        metavar="ADAPTER:PATH",
        help=DATA_HELP,
    )
    result.add_argument(
        "--strict",
        action="store_true",
        help="refuse rows that cannot be used (no id, an unknown item, no text, no "
        "label); without it they are left out, counted and named",
    )


def dataset(args: argparse.Namespace) -> Dataset:
    """Open the data set that the options name."""
    return open_dataset(args.data, args.strict)


def add_input(
    result: argparse.ArgumentParser, option: str, what: str, required: bool = True
) -> None:
    """Add an option that names an earlier stage's artefact."""
    result.add_argument(option, type=Path, required=required, metavar="DIR", help=what)


def add_output(result: argparse.ArgumentParser, what: str) -> None:
    """Add the options of an app that writes an artefact."""
    result.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help=f"directory for {what}"
    )
    result.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an artefact made with other settings or inputs",
    )


def resolve(args: argparse.Namespace) -> presets.Run:
    """Return the configuration that the options choose."""
    if args.config is not None:
        run = config.load(presets.Run, args.config)
    else:
        run = presets.PRESETS[args.preset]()
    return config.apply_overrides(run, args.overrides)
