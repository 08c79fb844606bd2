"""Errors that are no bugs: a mistake that the user can fix, or a request to stop."""

import contextlib
import json
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from learn_torchrec.credentials import hide
from learn_torchrec.text import printable, shortened


class UserError(ValueError):
    """Bad input, option or environment.

    The message is one line that names the file, column, row, item or option and
    the fix. The command line prints it and exits with code 2; a traceback is
    reserved for our own bugs. What a message quotes cannot add a line to it, command a
    terminal, show credentials or hide the fix behind pages of text.

    Args:
        lines: the message; several where a list or a log's end belongs to it.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*(shortened(printable(hide(line))) for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class Stopped(Exception):
    """The run was asked to stop early, and has saved what it needs to resume."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type's name if it has none."""
    return (hide(str(error)).strip().splitlines() or [type(error).__name__])[0]


def refuse_other_text(path: str) -> None:
    """Refuse a path that is no UTF-8, which pyarrow and JSON cannot name.

    Raises:
        UserError: shows it with escapes.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path!a}: is not UTF-8; rename the file or folder") from None


def refuse_special(path: Path) -> None:
    """Refuse a pipe or a device as a file to read, which might never end.

    Raises:
        UserError: names it.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is no plain file; copy what it gives into one")


def record_failure(message: str) -> None:
    """Tell torchrun why this rank fails: it and torchx show that as the root cause.

    The format is that of `torch.distributed.elastic`'s error files.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = hide(message)
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        body = {"message": {"message": message, "extraInfo": details}}
        with contextlib.suppress(OSError):  # a full disk must not hide the message
            Path(file).write_text(json.dumps(body))


def require_columns(
    present: Collection[str], required: Iterable[str], source: object, fix: str = ""
) -> None:
    """Check that a table has its columns, each once.

    Raises:
        UserError: names the source and the first column that is missing, or twice.
    """
    for name in required:
        if list(present).count(name) > 1:
            raise UserError(f"{source}: has column {name!r} twice; rename one of them")
        if name not in present:
            raise UserError(
                f"{source}: column {name!r} is missing; it has: {', '.join(present)}"
                + (fix and f"; {fix}")
            )
