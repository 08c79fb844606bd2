"""Errors that are no bugs: a mistake that the user can fix, or a request to stop."""

import json
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path


class UserError(ValueError):
    """Bad input, option or environment.

    The message is one line that names the file, column, row, item or option and
    the fix. The command line prints it and exits with code 2; a traceback is
    reserved for our own bugs.
    """


class Stopped(Exception):
    """The run was asked to stop early, and has saved what it needs to resume."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type's name if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def record_failure(message: str) -> None:
    """Tell torchrun why this rank fails: it and torchx show that as the root cause.

    The format is that of `torch.distributed.elastic`'s error files.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        body = {"message": {"message": message, "extraInfo": details}}
        Path(file).write_text(json.dumps(body))


def require_columns(
    present: Collection[str], required: Iterable[str], source: object, fix: str = ""
) -> None:
    """Check that a table has its columns.

    Raises:
        UserError: names the source and the first column that is missing.
    """
    for name in required:
        if name not in present:
            raise UserError(
                f"{source}: column {name!r} is missing; it has: {', '.join(present)}"
                + (fix and f"; {fix}")
            )
