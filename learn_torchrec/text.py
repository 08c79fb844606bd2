"""Text of others, such as a name in a file: in messages and tables, and as JSON."""

import json
import unicodedata
from typing import Any


def printable(text: str) -> str:
    r"""Return a user's text as one line that neither a terminal nor XML interprets.

    White space of any kind becomes spaces; invisible characters, such as those that
    turn the direction of text, are dropped; others that are no print, such as those
    that begin a terminal's commands, show as U+FFFD.

    >>> printable("a\nb\x1b[31m")
    'a b\ufffd[31m'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one
        if one.isprintable()
        else " "
        if one.isspace()
        else ""
        if unicodedata.category(one) == "Cf"
        else "\ufffd"
        for one in text
    )


def shortened(line: str, longest: int = 1000) -> str:
    """Return a line without its middle if it is too long to be read.

    >>> shortened("data: 123456789; fix", 16)
    'data: 12[...] fix'
    """
    if len(line) <= longest:
        return line
    end = longest // 4
    return f"{line[: longest - 2 * end]}[...]{line[-end:]}"


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
