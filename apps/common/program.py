"""How every program starts and ends: options, logging, one line for a mistake.

Imports nothing that takes long to load.
"""

import argparse
import contextlib
import ctypes
import io
import itertools
import json
import logging
import os
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from learn_torchrec.credentials import hide, remember, without_credentials
from learn_torchrec.errors import (
    Stopped,
    UserError,
    record_failure,
    refuse_other_text,
)
from learn_torchrec.locks import real_place
from learn_torchrec.outputs import (
    refuse_foreign,
    refuse_inputs,
    refuse_inside_artifact,
    refuse_unwritable,
    replacing,
)
from learn_torchrec.refusals import naming, one_line
from learn_torchrec.text import printable

from ..stages import STAGES
from .standard_output import keep_writing

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_FORMAT, _TIME = "%(asctime)s %(name)s: %(message)s", "%H:%M:%S"
OWN_LOGGERS = ("learn_torchrec", "apps", "__main__")


class HelpFormatter(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Shows each default that says something, and examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = "(default" in (action.help or "")
        if said or action.default is False or action.default in (None, "", []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument in printable text without credentials.

    Attributes:
        works_alone: whether ranks would each do all the work, and write one output.
    """

    works_alone = False

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """Return the options.

        Raises:
            UserError: this is one of several ranks that cannot share the work.
        """
        result = super().parse_args(*args, **options)
        if self.works_alone and "out" in result:
            refuse_ranks(f"{self.prog} does not share its work")
        return result

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message; end with exit code 2."""
        super().error(printable(hide(message)))


def local_path(text: str) -> Path:
    """Return a path on this machine; the type of an option that takes no URI."""
    if "://" in text:
        shown = without_credentials(text)
        raise argparse.ArgumentTypeError(f"{shown}: a URI; name a path on this machine")
    return Path(text)


def parser(
    command: str, description: str | None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Return the parser of a command, whose help ends with an example."""
    notes = [textwrap.fill(epilog, 80)] if epilog else []
    stage = STAGES.get(command)  # None: a benchmark
    if stage and stage.example:
        notes.append(f"example:\n  learn-torchrec {command} {stage.example}")
    result = Parser(
        prog=f"learn-torchrec {command}",
        description=description,
        epilog="\n\n".join(notes),
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    result.works_alone = stage is not None and not stage.distributed
    return result


def refuse_ranks(reason: str) -> None:
    """Refuse to run as one of several ranks, of torchrun say.

    Raises:
        UserError: with the reason.
    """
    ranks = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and ranks != "1":
        raise UserError(f"{reason}; start it alone, not on {ranks} ranks")


def add_overrides(result: "argparse._ActionsContainer", help_text: str) -> None:
    """Add the option that changes single settings."""
    result.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        dest="overrides",
        metavar="SECTION.FIELD=VALUE",
        help=help_text,
    )


def output_path(text: str) -> Path:
    """Return where an output lies, see `real_place`."""
    return real_place(local_path(text))


def add_output_file(
    result: "argparse._ActionsContainer", help_text: str, required: bool = True
) -> None:
    """Add the option that names a file to write, see `check_output_file`."""
    result.add_argument(
        "--out", type=output_path, required=required, metavar="FILE", help=help_text
    )


def check_output_file(
    path: Path,
    kind: str = "JSON",
    inputs: Iterable[tuple[str, Path]] = (),
    is_ours: Callable[[Path], bool] | None = None,
) -> None:
    """Check that `--out` can be a file, and destroys nothing.

    Args:
        path: of the output.
        kind: of file, for messages.
        inputs: option and path of each.
        is_ours: whether an existing file is one that the command wrote and may replace.

    Raises:
        UserError: it is a directory or a device, cannot be written, is, lies in or
            contains an input, lies in an artefact, or is somebody else's file.
    """
    if path.is_dir():
        raise UserError(f"--out {path}: is a directory; name a {kind} file")
    refuse_unwritable(path)
    if path.exists() and not path.is_file():  # it would be replaced
        raise UserError(f"--out {path}: is no plain file; name a {kind} file")
    refuse_inside_artifact(path)
    refuse_inputs(path, inputs)
    if is_ours is not None:
        refuse_foreign(path, is_ours, f"a {kind} file that this command wrote")


def check_output_folder(
    path: Path,
    names: Iterable[str],
    inputs: Iterable[tuple[str, Path]],
    is_ours: Callable[[], bool],
) -> None:
    """Check that `--out` can be a folder in which some names are made or replaced.

    Args:
        path: of the folder, whose other files stay.
        names: of what is made in it.
        inputs: option and path of each.
        is_ours: whether the command made the folder, and may replace files in it.

    Raises:
        UserError: see `check_output_file`.
    """
    refuse_unwritable(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path}: is a file; name a directory")
    inputs = list(inputs)
    for name in names:
        refuse_inside_artifact(path / name)
        refuse_inputs(path / name, inputs)
        refuse_foreign(path / name, lambda _: is_ours(), "this command's")


def json_with(*names: str) -> Callable[[Path], bool]:
    """Return a function that tells whether a file is a JSON object with such a name."""

    def is_ours(path: Path) -> bool:
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(body, dict) and any(name in body for name in names)

    return is_ours


def run(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> None:
    """Run an app's main: a `UserError` becomes one line and exit code 2.

    So does an operation that the system refuses. A run that was told to stop, and has
    saved what it needs to resume, exits with 0. When the reader of the output is gone
    (`| head`), the work goes on, and the program then ends as by SIGPIPE.
    """
    output = keep_writing()
    _set_up_output()
    given = sys.argv[1:] if argv is None else argv
    remember(given)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    try:
        for argument in given:
            refuse_other_text(argument)
        with _naming_output(given):
            main(argv)
        with naming(Path("standard output")):
            print(end="", flush=True)  # stdout may be closed, and None
    except Stopped as stopped:
        logging.getLogger(__name__).info("%s", stopped)
    except Exception as error:
        mistake = one_line(error)
        record_failure(f"error: {mistake}" if mistake else traceback.format_exc())
        if mistake is None:
            raise
        _end(f"error: {mistake}")
    except KeyboardInterrupt:
        print("interrupted; run it again to resume", file=sys.stderr, flush=True)
        sys.exit(130)
    if output is not None and output.is_broken:
        sys.exit(128 + signal.SIGPIPE)


def _naming_output(
    arguments: Sequence[str],
) -> contextlib.AbstractContextManager[None]:
    """Name what --out names in errors that name no file."""
    for option, value in itertools.pairwise([*arguments, ""]):
        if option == "--out" and value:
            return naming(Path(value))
        if option.startswith("--out="):
            return naming(Path(option.removeprefix("--out=")))
    return contextlib.nullcontext()


def _end(line: str) -> NoReturn:
    """Print a mistake and end with exit code 2, whether or not the output is full."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # Python would flush again when it exits, and exit with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(2)


def _end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Say in one line what the system refused a thread; its owner sees it, too."""
    reason = one_line(ended.exc_value) if ended.exc_value else None
    if reason is None:
        _print_bug(*ended[:3])
    else:
        logging.getLogger(__name__).warning("a background thread ended: %s", reason)


def _set_up_output() -> None:
    logging.basicConfig(force=True)  # importing torchrec sets up another format
    level = logging.INFO if is_first_rank() else logging.WARNING
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_OneLine(_FORMAT, _TIME))
    sys.excepthook = _print_bug
    threading.excepthook = _end_of_thread
    for name in OWN_LOGGERS:  # not the root: other libraries at INFO would drown ours
        logging.getLogger(name).setLevel(level)
    # All ranks read the same data and would say the same of it.
    said_once = logging.NOTSET if is_first_rank() else logging.ERROR
    logging.getLogger("learn_torchrec.datasets").setLevel(said_once)
    if isinstance(sys.stdout, io.TextIOWrapper):  # titles in a terminal of latin-1
        sys.stdout.reconfigure(errors="backslashreplace")


class _OneLine(logging.Formatter):
    """A message is one printable line without credentials; a traceback follows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.message = printable(hide(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """Return the traceback."""
        return hide(super().formatException(ei))


def _print_bug(
    kind: type[BaseException], bug: BaseException | None, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, bug, trace))
    print(hide(text), end="", file=sys.stderr, flush=True)


def end_with_parent() -> None:
    """Let the kernel send SIGTERM when the process that started this one ends.

    A launcher that is killed cannot end its ranks, which would keep the output locked.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def is_first_rank() -> bool:
    """Whether this process is rank 0; needs no process group."""
    return os.environ.get("RANK", "0") == "0"


def write_json(path: Path, body: object) -> None:
    """Write a JSON file that appears whole or not at all."""
    with naming(path), replacing(path) as working:
        working.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
