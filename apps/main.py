"""The `learn-torchrec` command: one program per stage, found by name.

The overview must answer at once and work where torch does not, so an app is imported
only when its command is given.
"""

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence

from learn_torchrec.errors import UserError, first_line

from .common import program
from .stages import STAGES

_OWN_PACKAGES = ("learn_torchrec", "apps")  # apps: run from a checkout


def main(argv: Sequence[str] | None = None) -> None:
    """Run `learn-torchrec <command> [options]`."""
    program.run(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: Sequence[str] | None) -> None:
    command, *options = argv or ["--help"]
    if command in ("-h", "--help"):
        print(_overview())
    elif command == "--version":
        print(f"learn-torchrec {_version()}")
    else:
        _app_main(command)(options)


def _overview() -> str:
    width = max(map(len, STAGES))
    return "\n".join(
        [
            "usage: learn-torchrec <command> [options]",
            "",
            *(f"  {name:<{width}}  {stage.does}" for name, stage in STAGES.items()),
            "",
            "learn-torchrec <command> --help lists the options of a command.",
        ]
    )


def _version() -> str:
    try:
        return importlib.metadata.version("learn-torchrec")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed: running from a checkout)"


def _app_main(command: str) -> Callable[[Sequence[str]], None]:
    """Import the app that `command` names, with dashes or underscores.

    Raises:
        UserError: no such command, or a package the app needs cannot be loaded.
    """
    name = command.replace("_", "-")
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1)
        hint = f"did you mean {near[0]}?" if near else "learn-torchrec --help lists all"
        raise UserError(f"unknown command {command!r}; {hint}")
    try:
        app = importlib.import_module(STAGES[name].module)
    except (ImportError, OSError) as error:  # OSError: a wheel's library cannot load
        if _is_ours(error):
            raise
        raise UserError(
            f"{name} cannot start: {first_line(error)}; learn-torchrec doctor names "
            "the fix"
        ) from error
    return app.main


def _is_ours(error: BaseException) -> bool:
    """Whether a failed import is a bug of this project, not of the machine."""
    missing = getattr(error, "name", None) or ""
    return missing.partition(".")[0] in _OWN_PACKAGES


if __name__ == "__main__":
    main()
