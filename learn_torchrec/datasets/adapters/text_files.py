"""Text files as people save them: lines, JSONL and JSON.

A byte order mark is dropped (UTF-16 is read by its own), Windows line ends and gzip are
understood.
"""

import ast
import codecs
import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError, first_line
from learn_torchrec.text import parse_json

UTF_8 = "utf-8-sig"  # UTF-8, with or without a byte order mark


@contextlib.contextmanager
def readable(source: object) -> Iterator[None]:
    """Name the file of values that Arrow cannot hold or convert.

    Such are halves of surrogate pairs, integers beyond 64 bits, lists nested without
    end, and texts in a column of numbers.

    Raises:
        UserError: names the source and the reason.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except RecursionError:
        raise UserError(
            f"{source}: cannot be read (a value is nested too deeply)"
        ) from None
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        raise UserError(f"{source}: cannot be read ({first_line(error)})") from None


def read_jsonl(location: Location, encoding: str = UTF_8) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file.

    Python literals (single quotes) are read too, as in the Amazon metadata of 2014.
    Blank lines are skipped.

    Raises:
        UserError: no such file, a damaged file, or a line that is not an object.
    """
    for number, line in enumerate(text_lines(location, encoding), 1):
        if line.strip():
            yield _object(line, number, location)


def text_lines(location: Location, encoding: str = UTF_8) -> Iterator[str]:
    """Yield the lines of a text file, without line ends.

    Raises:
        UserError: no such file, a damaged file, or another encoding.
    """
    try:
        form = encoding_of(location, encoding)
        with io.TextIOWrapper(location.open(), form) as stream:
            for line in stream:
                yield line.removesuffix("\n")
    except (OSError, EOFError, UnicodeError) as error:
        raise UserError(
            f"{location}: cannot be read as text ({first_line(error)})"
        ) from None


def encoding_of(location: Location, encoding: str = UTF_8) -> str:
    """Return a file's encoding: UTF-16 by its byte order mark, else the one given."""
    with location.open() as stream:
        mark = stream.read(2)
    return "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else encoding


def read_json(location: Location) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: no such file, not JSON, or not an object.
    """
    try:
        body = parse_json(location.open().read().decode(encoding_of(location)))
    except (ValueError, OSError) as error:
        raise UserError(f"{location}: not valid JSON ({first_line(error)})") from None
    if not isinstance(body, dict):
        raise UserError(f"{location}: holds a {type(body).__name__}, must be an object")
    return body


def _object(line: str, number: int, location: Location) -> dict[str, Any]:
    try:
        body = parse_json(line)
    except ValueError:
        try:
            body = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            body = None
    if not isinstance(body, dict) or not all(isinstance(name, str) for name in body):
        raise UserError(
            f"{location}: line {number} is not a JSON object; write one per line"
        )
    return body
