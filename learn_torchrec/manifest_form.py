"""What a manifest must look like before anything in it is believed.

A checksum tells damage, not forgery: whoever writes a manifest can write its checksum.
So types, names and sizes are checked too, and a missing entry is one line.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Self

from learn_torchrec.errors import UserError

_TYPES: dict[str, type] = {
    **dict.fromkeys(("kind", "recipe", "created", "checksum"), str),
    **dict.fromkeys(("config", "inputs", "facts", "files", "versions"), dict),
}
_OPTIONAL = {"cutoff", "format_version"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 2**62


class Entries(dict[str, Any]):
    """A JSON object of a manifest, in which a missing entry is a `UserError`."""

    where = "manifest"

    @classmethod
    def of(cls, body: Mapping[str, Any], where: str) -> Self:
        """Return an object and all objects in it; `where` it is, for messages."""
        found = cls(
            (name, cls.of(value, where) if isinstance(value, dict) else value)
            for name, value in body.items()
        )
        found.where = where
        return found

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.where}: has no {name!r}; make the artefact again")


def manifest_problem(body: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the JSON of a manifest; None if nothing is."""
    for name, kind in _TYPES.items():
        if not isinstance(body.get(name), kind):
            return f"{name!r} is missing or of another type"
    if _is_deep(body):
        return "it is nested too deep"
    if unknown := sorted(body.keys() - _TYPES.keys() - _OPTIONAL):
        return f"unknown entry {unknown[0]!r}"
    if not (body.get("cutoff") is None or _is_count(body["cutoff"], -_LARGEST)):
        return "'cutoff' is not a time in unix seconds"
    for name in ("inputs", "versions"):
        if not all(isinstance(value, str) for value in body[name].values()):
            return f"{name!r} holds more than texts"
    return _files_problem(body["files"])


def _files_problem(files: Mapping[str, Any]) -> str | None:
    if not files:
        return "it lists no files"
    for name, record in files.items():
        if not _is_inside(name):
            return f"it lists {name!r}, which is no file of a directory"
        if not (
            isinstance(record, dict)
            and record.keys() == {"bytes", "sha256"}
            and _is_count(record["bytes"])
            and isinstance(record["sha256"], str)
            and _SHA256.fullmatch(record["sha256"])
        ):
            return f"size or checksum of {name!r} is missing"
    return None


def _is_deep(body: object, levels: int = 50) -> bool:
    parts: Iterable[object] = ()
    if isinstance(body, dict):
        parts = body.values()
    elif isinstance(body, list):
        parts = body
    return not levels or any(_is_deep(part, levels - 1) for part in parts)


def _is_inside(name: str) -> bool:
    """Whether a name is a plain relative path."""
    path = PurePosixPath(name)
    plain = name.isprintable() and str(path) == name and name != "."
    return plain and not path.is_absolute() and ".." not in path.parts


def _is_count(value: object, least: int = 0) -> bool:
    return type(value) is int and least <= value <= _LARGEST
