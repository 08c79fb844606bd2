"""Print a script that completes commands, options and settings in a shell."""

import argparse
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from learn_torchrec.config import to_dict
from learn_torchrec.errors import UserError
from learn_torchrec.presets import Run

from .checkup.installation import PIP
from .common import program
from .stages import STAGES

SHELLS = ("bash", "fish", "tcsh", "zsh")


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = program.parser("completion", __doc__)
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads it")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the script.

    Raises:
        UserError: the package `shtab`, which writes it, is not installed.
    """
    args = build_parser().parse_args(argv)
    try:
        import shtab
    except ImportError as error:
        raise UserError(f"completion needs shtab; run {PIP} install shtab") from error
    root = argparse.ArgumentParser(prog="learn-torchrec", description=program.__doc__)
    commands = root.add_subparsers()
    settings = tuple(setting_names(to_dict(Run())))
    paths = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
    for stage in STAGES.values():
        app = importlib.import_module(stage.module)
        parser = commands.add_parser(
            stage.command, parents=[app.build_parser()], add_help=False, help=stage.does
        )
        reads_run = "--preset" in parser.format_usage()
        for action in parser._actions:
            if action.metavar in paths:
                action.complete = paths[action.metavar]  # type: ignore[attr-defined]
            elif action.dest == "overrides" and reads_run:
                action.choices = settings
    print(shtab.complete(root, args.shell))


def setting_names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of a configuration's settings."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from setting_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


if __name__ == "__main__":
    program.run(main)
