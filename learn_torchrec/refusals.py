"""What the system refuses, said in one line: a full disk, a limit, no memory.

The kernel's error numbers reach Python as an `OSError` only from Python's own calls.
Libraries put them into the text of errors of their own, each in its way, with or
without the file; here they become the same line.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from learn_torchrec.errors import UserError, first_line

_SPACE = "free space there, or choose another place"
_PLACE = "choose another place"
_AGAIN = "check the disk or the network, and run it again"
_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _SPACE),
    **dict.fromkeys((errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM), _PLACE),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST), _PLACE),
    **dict.fromkeys((errno.ENOTEMPTY, errno.ELOOP, errno.EXDEV, errno.EMLINK), _PLACE),
    **dict.fromkeys((errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP), _PLACE),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOLCK), _AGAIN),
    **dict.fromkeys((errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN), _AGAIN),
    **dict.fromkeys((errno.ENETUNREACH, errno.ECONNREFUSED), _AGAIN),
    **dict.fromkeys((errno.ECONNRESET, errno.ECONNABORTED), _AGAIN),
    **dict.fromkeys((errno.EINTR, errno.EAGAIN), "run it again"),
    **dict.fromkeys((errno.EBUSY, errno.ETXTBSY), "wait for what uses it"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit: ulimit -n"),
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "something removed it meanwhile; run it again",
    errno.ENOMEM: "choose smaller sizes or batches, or a machine with more memory",
    errno.EADDRINUSE: "choose another port",
}
# Numbers as libraries write them: Python and Arrow, Rust, DuckDB, torch.
_NUMBERS = re.compile(
    r'\[[Ee]rrno (\d+)\]|\(os error (\d+)\)|"errno":"(\d+)"|errno: (\d+)'
)
# The words of lost connections and missing files are no refusals in a library's text.
_SPOKEN = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO]
_SPOKEN += [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.ESTALE]
_SPOKEN += [errno.EINTR]
_WORDS = {os.strerror(number): number for number in _SPOKEN}
_WORDS |= dict.fromkeys(
    # Of torch, NumPy, CUDA and Python's threads.
    ("DefaultCPUAllocator:", "out of memory", "Unable to allocate", "bad_alloc"),
    errno.ENOMEM,
) | {
    "Storage size calculation overflowed": errno.ENOMEM,
    "can't start new thread": errno.EAGAIN,
    # PyTorch's file writer does not say which error it met.
    "iostream error": errno.EIO,
    ". unexpected pos ": errno.EIO,
}
_QUOTED_PATH = re.compile(r"""(['"])(/[^'"]+?)\\?\1""")
# Not of the place that is written.
_OF_PROCESS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
# Errors of Python code, whose text is not of the system.
_OF_CODE = (TypeError, AttributeError, LookupError, AssertionError, NameError)
_WRITING = "while writing "


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file or directory that a block writes in errors that name none.

    Blocks may be nested; the innermost counts.
    """
    try:
        yield
    except Exception as error:
        name_place(error, path)
        raise


def name_place(error: BaseException, path: Path) -> None:
    """Note in an error what was being written; see `naming`."""
    error.add_note(f"{_WRITING}{path}")


def one_line(error: BaseException) -> str | None:
    """Return the line for a user's mistake or a refusal of the system; None for a bug.

    A refusal's line names the file, where one is known, the reason and the fix.
    """
    for each in _with_causes(error):
        if isinstance(each, UserError):
            return str(each)
        number = _number_of(each)
        if number is not None:
            return str(UserError(_line(each, number)))
    return None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, those that other ranks met, and those it was raised from."""
    while error is not None:
        yield error
        failures: dict[int, Any] = getattr(error, "failures", {})  # of a checkpoint
        if isinstance(failures, dict):
            for failure, _ in failures.values():
                yield failure
        error = error.__cause__


def _number_of(error: BaseException) -> int | None:
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _FIXES else None
    if isinstance(error, _OF_CODE):
        return None
    text = str(error)
    if match := _NUMBERS.search(text):
        number = int(next(filter(None, match.groups())))
        return number if number in _FIXES else None
    return next((number for words, number in _WORDS.items() if words in text), None)


def _line(error: BaseException, number: int) -> str:
    reason = os.strerror(number)
    place = _named(error) if number in _OF_PROCESS else _place(error)
    if not isinstance(error, OSError) and _named(error) is None:
        reason += f" ({first_line(error)})"
    return (
        f"{place}: {reason}; {_FIXES[number]}"
        if place
        else f"{reason}; {_FIXES[number]}"
    )


def _place(error: BaseException) -> str | None:
    """Return the file of an error, if it, its text or the block that met it has one."""
    name = _named(error)
    notes: list[str] = getattr(error, "__notes__", [])
    noted = (n.removeprefix(_WRITING) for n in notes if n.startswith(_WRITING))
    # `os.path`, as `Path.exists` raises for a name that is too long.
    if name and (os.sep in name or os.path.exists(name)):  # noqa: PTH110
        return name
    # A bare name is often relative to a folder that the kernel alone knows.
    return next(noted, name)


def _named(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        for name in (error.filename2, error.filename):
            if isinstance(name, str | bytes | os.PathLike):
                return os.fsdecode(name)
    match = _QUOTED_PATH.search(str(error))
    return match[2] if match else None
