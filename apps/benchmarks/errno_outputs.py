"""What outputs hold, comparable between runs: see `errno_faults`."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from learn_torchrec.artifact import MANIFEST, file_digest, verify
from learn_torchrec.errors import UserError

from .stages import content_of

# Files that say when and how fast something ran, and names of such parts of JSON.
_RECORDS = ("logs", "refresh.log", "seconds.json")
_SECONDS = ("seconds", "training_seconds")
_NUMBER = re.compile(rb"\d+(\.\d+)?")


def pieces_of(output: Path) -> dict[str, str]:
    """Return a digest of each piece of an output; a piece is whole or not there.

    A file is one, an artefact as well (of its listed files, each compared with its
    record), and a link; another folder has those in it. Hidden names are no pieces, nor
    are records of how a run went. Reports are compared without their numbers, which
    are in other JSON.
    """
    return dict(_pieces(output, ""))


def hidden_in(output: Path) -> set[str]:
    """Return the hidden names in a folder that is no artefact."""
    if not output.is_dir() or (output / MANIFEST).exists():
        return set()
    return {
        path.name
        for path in output.rglob(".*")
        if not any((parent / MANIFEST).exists() for parent in path.parents)
    }


def _pieces(place: Path, name: str) -> Iterator[tuple[str, str]]:
    if place.is_symlink():
        yield name, str(place.readlink())
    elif (place / MANIFEST).exists():
        yield name, _artefact(place)
    elif place.is_dir():
        for path in sorted(place.iterdir()):
            if path.name not in _RECORDS and not path.name.startswith("."):
                yield from _pieces(path, f"{name}/{path.name}")
    elif place.exists():
        yield name, _file(place)


def _artefact(directory: Path) -> str:
    try:
        verify(directory, json.loads((directory / MANIFEST).read_text())["kind"])
    except UserError as error:
        return str(error)
    return json.dumps(content_of(directory))


def _file(path: Path) -> str:
    if path.suffix == ".json" and not path.name.startswith("report"):
        return json.dumps(_without_seconds(json.loads(path.read_text())))
    if path.suffix in (".html", ".json", ".md"):
        return hashlib.sha256(_NUMBER.sub(b"#", path.read_bytes())).hexdigest()
    return file_digest(path)


def _without_seconds(body: object) -> object:
    if isinstance(body, list):
        return [_without_seconds(one) for one in body]
    if not isinstance(body, dict):
        return body
    return {k: _without_seconds(v) for k, v in body.items() if k not in _SECONDS}
