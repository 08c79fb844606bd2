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
import select
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence
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
from learn_torchrec.outputs import refuse_unwritable, replacing
from learn_torchrec.refusals import naming, one_line
from learn_torchrec.text import printable

from .stages import STAGES

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
    """Says what is wrong with an argument in printable text without credentials."""

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
    return Parser(
        prog=f"learn-torchrec {command}",
        description=description,
        epilog="\n\n".join(notes),
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )


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


def check_output_file(path: Path, kind: str = "JSON") -> None:
    """Check that `--out` can be a file.

    Raises:
        UserError: it is a directory or a device, or cannot be written.
    """
    if path.is_dir():
        raise UserError(f"--out {path}: is a directory; name a {kind} file")
    refuse_unwritable(path)
    if path.exists() and not path.is_file():  # it would be replaced
        raise UserError(f"--out {path}: is no plain file; name a {kind} file")


def run(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> None:
    """Run an app's main: a `UserError` becomes one line and exit code 2.

    So does an operation that the system refuses. A run that was told to stop, and has
    saved what it needs to resume, exits with 0. When the reader of the output is gone
    (`| head`), the program ends as by SIGPIPE.
    """
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
    except BrokenPipeError:
        if not _stdout_is_broken():
            raise
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        mistake = one_line(error)
        record_failure(f"error: {mistake}" if mistake else traceback.format_exc())
        if mistake is None:
            raise
        _end(f"error: {mistake}")
    except KeyboardInterrupt:
        print("interrupted; run it again to resume", file=sys.stderr, flush=True)
        sys.exit(130)


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


def _stdout_is_broken() -> bool:
    """Whether standard output is the broken pipe; if so, point it at /dev/null."""
    descriptor = sys.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    # Python flushes once more when it exits, which would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def is_first_rank() -> bool:
    """Whether this process is rank 0; needs no process group."""
    return os.environ.get("RANK", "0") == "0"


def write_json(path: Path, body: object) -> None:
    """Write a JSON file that appears whole or not at all."""
    with naming(path), replacing(path) as working:
        working.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
