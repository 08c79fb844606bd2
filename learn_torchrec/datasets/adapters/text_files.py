"""Text files as people save them: lines, JSON lines and whole JSON files.

A byte order mark is dropped, lines may end as on Windows, and files may be gzipped.
Mistakes end in one line.
"""

import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError, first_line

UTF_8 = "utf-8-sig"  # UTF-8, with or without a byte order mark


def read_jsonl(
    where: str | Path | Location, encoding: str = UTF_8
) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one a line.

    Lines of Python literals (single quotes), as the Amazon metadata of 2014 has them,
    are read too. Blank lines are skipped.

    Raises:
        UserError: no such file, a damaged one, or a line that is no object.
    """
    location = Location.of(where)
    for number, line in enumerate(text_lines(location, encoding), 1):
        if line.strip():
            yield _object(line, number, location)


def text_lines(location: Location, encoding: str = UTF_8) -> Iterator[str]:
    """Yield the lines of a text file, without their ends.

    Raises:
        UserError: no such file, a damaged one, or one in another encoding.
    """
    try:
        with io.TextIOWrapper(location.open(), encoding) as stream:
            for line in stream:
                yield line.removesuffix("\n")
    except (OSError, EOFError, UnicodeError) as error:
        raise UserError(
            f"{location}: cannot be read as text ({first_line(error)})"
        ) from None


def read_json(where: str | Path | Location) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        UserError: no such file, not JSON, or no object.
    """
    location = Location.of(where)
    stream = location.open()
    try:
        body = json.loads(stream.read().decode(UTF_8))
    except (ValueError, OSError) as error:
        raise UserError(f"{location}: not valid JSON ({first_line(error)})") from None
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
