"""Options that the stages share: configuration, data, inputs and output."""

import argparse
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec import config, presets
from learn_torchrec.artifact import CONFIG
from learn_torchrec.datasets.adapters import ADAPTERS, open_dataset
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.derived import run as derived_run
from learn_torchrec.derived.run import Derived
from learn_torchrec.digests import trust_no_record
from learn_torchrec.errors import UserError

from . import program
from .program import run as run  # apps say options.run(main)
from .program import write_json as write_json

DEFAULT = "default"

logger = logging.getLogger(__name__)

_ADAPTERS = dict.fromkeys(sorted(ADAPTERS), "") | {
    "completejourney": "completejourney:auto is the wheel's grocer",
    "csv": "csv:DIR#user_id=COLUMN,...",
    "movielens": "movielens:auto is the wheel's MovieLens-100K",
    "parquet": "items, interactions, impressions .parquet in a folder or s3://...",
    "prepared": "what prepare wrote, perhaps with #impressions=ADAPTER:PATH",
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
        choices=(DEFAULT, *sorted(presets.PRESETS)),
        help=f"named configuration to start from; `{DEFAULT}` is derived from the data "
        "(default: that of the towers, ranker or codebook that the stage reads, else "
        f"{DEFAULT})",
    )
    source.add_argument(
        "--config",
        type=program.local_path,
        metavar="FILE",
        help="rerun a saved configuration (config.json beside any artefact)",
    )
    program.add_overrides(group, "change one setting; may be repeated")
    result.add_argument(
        "--verify",
        action=_Verify,
        nargs=0,
        help="read all inputs to compare their digests, also large files that have not "
        "changed since they were last read; so do the programs that this one starts",
    )
    return result


class _Verify(argparse.Action):
    """Lets this program and those that it starts trust no record of a digest."""

    def __call__(self, *_: object) -> None:
        trust_no_record()


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
    """Return the data set that the options name, opened once.

    Raises:
        UserError: an unknown adapter or a missing folder.
    """
    if "opened" not in args:
        args.opened = open_dataset(args.data, args.strict)
    opened: Dataset = args.opened
    return opened


def add_input(
    result: "argparse._ActionsContainer", option: str, what: str, required: bool = True
) -> None:
    """Add an option that names an earlier stage's artefact."""
    result.add_argument(
        option, type=program.local_path, required=required, metavar="DIR", help=what
    )


def paths_read(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Yield option and path of everything that the options name to be read.

    But `--reuse`: its vectors are of the same texts, and stay readable when replaced.
    """
    for name, value in vars(args).items():
        if isinstance(value, Path) and name not in ("out", "config", "reuse"):
            yield f"--{name.replace('_', '-')}", value
    if getattr(args, "data", None) is not None:
        for path in dataset(args).local_files():
            yield "--data", path


def config_read(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Yield the file of `--config`, which an artefact may contain, but no file be."""
    if args.config is not None:
        yield "--config", args.config


def parquet_of(names: Sequence[str]) -> Callable[[Path], bool]:
    """Return a function that tells whether a file is Parquet of exactly these columns.

    For `program.check_output_file`.
    """

    def is_ours(path: Path) -> bool:
        try:
            return list(pq.read_schema(path).names) == [*names]
        except (pa.ArrowException, OSError):
            return False

    return is_ours


def add_output(result: argparse.ArgumentParser, what: str) -> None:
    """Add the options of an app that writes an artefact."""
    result.add_argument(
        "--out",
        type=program.output_path,
        required=True,
        metavar="DIR",
        help=f"directory for {what}",
    )
    result.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an artefact made with other settings or inputs",
    )


def named_settings(
    text: str, section: str, taken: Collection[str] = (), option: str = "--arm"
) -> tuple[str, tuple[str, ...]]:
    """Return name and settings of an option `NAME:SETTING=VALUE;...`.

    Args:
        text: as given.
        section: that the settings belong to, such as "ranker."
        taken: names of others.
        option: for messages.

    Raises:
        UserError: another form, a name twice, or a setting of another section.
    """
    name, colon, settings = text.partition(":")
    if not colon or not name or name in taken:
        raise UserError(
            f"{option} {text}: write it as NAME:SETTING=VALUE;SETTING=VALUE"
            + (f", each name once, none of {', '.join(taken)}" if taken else "")
        )
    parts = tuple(part.strip() for part in settings.split(";") if part.strip())
    for part in parts:
        if not part.startswith(section):
            raise UserError(
                f"{option} {text}: {part}: only {section}* may differ here; give "
                "everything else with --set"
            )
    return name, parts


def resolve(args: argparse.Namespace, sections: Sequence[str] = ()) -> presets.Run:
    """Return the configuration that the options choose.

    In this order: --config; --preset; that of the towers, the ranker or the codebook
    which the stage reads; one whose `sections` (all by default) are derived from the
    data.

    Raises:
        UserError: an invalid setting, or data that nothing can be derived from.
    """
    if args.config is not None:
        run = config.load(presets.Run, args.config)
    elif args.preset in presets.PRESETS:
        run = presets.PRESETS[args.preset]()
    elif args.preset is None and (
        earlier := _saved(args, "ranker", "towers", "codebook")
    ):
        run = earlier
    elif "data" in args:
        derived = derive(args, sections)
        for choice in derived.choices:
            if choice.setting.partition(".")[0] in sections:
                logger.info("%s", choice)
        return derived.run
    else:
        run = presets.Run()
    return config.apply_overrides(run, args.overrides)


@contextlib.contextmanager
def choices_said_once() -> Iterator[None]:
    """Say each derived choice once, however many configurations share it."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in said
        said.add(message)
        return new

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def is_derived(args: argparse.Namespace) -> bool:
    """Whether the configuration is to be derived from the data."""
    return args.config is None and args.preset in (None, DEFAULT)


def derive(args: argparse.Namespace, sections: Sequence[str] = ()) -> Derived:
    """Derive the configuration from the data that --data names; see `derived`.

    The split is that of the vectors that the stage reads, if there are some.
    """
    earlier = _saved(args, "vectors") if args.preset is None else None
    split = None if earlier is None else earlier.split
    return derived_run.derive(
        dataset(args),
        args.overrides,
        split,
        sections,
        ranks=getattr(args, "ranks", 1),
        for_ranker=getattr(args, "for_ranker", True),
    )


def _saved(args: argparse.Namespace, *inputs: str) -> presets.Run | None:
    """Return the configuration beside the first of some input artefacts, if any."""
    for name in inputs:
        directory = getattr(args, name, None)
        if directory is not None and (directory / CONFIG).exists():
            return config.load(presets.Run, directory / CONFIG)
    return None
