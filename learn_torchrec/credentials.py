"""Credentials in URIs: what is shown, logged or written never holds them.

`without_credentials` shows a URI. Libraries repeat URIs in their own errors, whole or
in decoded parts; so what a URI holds is remembered, and `hide` puts stars in its place
in any text: `UserError`, the programs' logs and their tracebacks pass through it.
"""

import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from urllib.parse import quote

_STARS = "***"
_START = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Options of a query that are no secrets, with values that cannot hold one.
_HARMLESS = re.compile(
    r"((allow_bucket_creation|endpoint_override|region|scheme)=[\w.:-]*(&|$))*"
)
_CONTAINER = re.compile(r"abfss?://[a-z0-9-]{3,63}@[^@]*$")  # no user
_USER_INFO = re.compile(r"(?<=://)[^\s/?#@]+(?=@)")
# Characters. Shorter ones than `_LONG` could be parts of other words, and are hidden as
# words of their own alone; a user's name beside a password may be a common word.
_SHORTEST, _LONG = 4, 8

_remembered: set[str] = set()


def without_credentials(text: str) -> str:
    """Return an argument with stars for the credentials of the URI in it, if any.

    Everything before the last `@` counts as user and password, as a password may hold
    any sign; so does every query but a harmless one.

    >>> without_credentials("parquet:s3://KEY:SEC/RET@bucket/log#user_id=uid")
    'parquet:s3://***@bucket/log#user_id=uid'
    >>> without_credentials("s3://bucket/log?region=eu"), without_credentials("a@b")
    ('s3://bucket/log?region=eu', 'a@b')
    """
    start = _START.search(text)
    if start is None:
        return text
    scheme, rest = text[: start.end()], text[start.end() :]
    user, at, address = rest.rpartition("@")
    if at and re.search("[?#]", user):  # of a password, or before an @ of a query
        return scheme + _STARS
    place, mark, query = address.partition("?")
    if at and not _CONTAINER.search(text):
        user = _STARS
    shown = scheme + user + at + place
    if mark:
        shown += mark + (query if _HARMLESS.fullmatch(query) else _STARS)
    return shown


def holds_credentials(text: str) -> bool:
    """Whether an argument has a URI with something to hide."""
    return without_credentials(text) != text


def remember(arguments: Iterable[str]) -> None:
    """Let `hide` know the credentials of the URIs in some arguments."""
    for argument in arguments:
        start = _START.search(argument)
        if start is not None and holds_credentials(argument):
            rest = argument[start.end() :]
            if _CONTAINER.search(argument):
                rest = rest.partition("@")[2]
            _remembered.update(_spellings(rest))


def _spellings(rest: str) -> Iterator[str]:
    """Yield what to hide of a URI after its scheme, as libraries may write it."""
    user = rest.rpartition("@")[0]
    query = rest.partition("?")[2]
    if _HARMLESS.fullmatch(query):
        query = ""
    values = [part.partition("=")[2] for part in re.split("[&;#]", query)]
    name, colon, password = user.partition(":")
    parts = [user, query, password, *values]
    if not colon or len(name) >= _LONG:
        parts.append(name)
    if re.search("[?#]", user):  # where it ends is unknown
        parts.append(rest)
    for part in parts:
        for one in {part, urllib.parse.unquote(part), urllib.parse.unquote_plus(part)}:
            # An option that is split at a sign of a password repeats half of it.
            halves = [half for half in re.split(r"\W+", one) if len(half) >= _LONG]
            for text in (one, *halves):
                if len(text) >= _SHORTEST:
                    yield from (text, repr(text)[1:-1], json.dumps(text)[1:-1])
                    yield from (quote(text, safe=""), quote(text))


def hide(text: str) -> str:
    """Return a text with stars for all credentials that are remembered."""
    if "://" in text:
        text = _USER_INFO.sub(_STARS, text)
    for one in sorted(_remembered, key=len, reverse=True):
        if len(one) < _LONG:
            text = re.sub(rf"(?<!\w){re.escape(one)}(?!\w)", _STARS, text)
        else:
            text = text.replace(one, _STARS)
    return text


def forget() -> None:
    """Let `hide` know nothing, as when the process began."""
    _remembered.clear()
