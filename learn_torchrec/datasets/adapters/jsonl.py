"""Files of one JSON object a line, and whole JSON files, with one-line errors."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError


def read_lines(where: str | Path | Location) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one a line, gzipped or not.

    Lines of Python literals (single quotes), as the Amazon metadata of 2014 has them,
    are read too. Blank lines are skipped.

    Raises:
        UserError: no such file, a damaged one, or a line that is no object.
    """
    location = Location.of(where)
    for number, line in enumerate(text_lines(location), 1):
        if line.strip():
            yield _object(line, number, location)


def text_lines(location: Location) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, gzipped or not.

    Raises:
        UserError: no such file, or a damaged one.
    """
    rest = b""
    try:
        with location.open() as stream:
            while chunk := stream.read(1 << 20):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line.decode()
        if rest:
            yield rest.decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{location}: cannot be read as text ({reason})") from None


def read_json(where: str | Path | Location) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        UserError: no such file, not JSON, or no object.
    """
    location = Location.of(where)
    stream = location.open()
    try:
        body = json.loads(stream.read())
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{location}: not valid JSON ({reason})") from None
    if not isinstance(body, dict):
        raise UserError(f"{location}: holds a {type(body).__name__}, must be an object")
    return body


def _object(line: str, number: int, location: Location) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except ValueError:
        try:
            body = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            body = None
    if not isinstance(body, dict):
        raise UserError(
            f"{location}: line {number} is no JSON object; write one object a line"
        )
    return body
