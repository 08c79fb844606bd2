"""Forge an artefact: change it, with a right checksum in the manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from learn_torchrec.artifact import Manifest, describe_file

Body = dict[str, Any]


def forge(directory: Path, change: Callable[[Body], object]) -> None:
    """Change a manifest, and write the checksum of what results."""
    path = directory / "manifest.json"
    body = json.loads(path.read_text())
    change(body)
    digest = Manifest(**(body | {"checksum": ""})).digest()
    path.write_text(json.dumps(body | {"checksum": digest}))


def listed_anew(directory: Path) -> None:
    """Let a manifest list the files that are there, as they are."""
    files = filter(Path.is_file, directory.rglob("*"))
    names = [str(path.relative_to(directory)) for path in files]
    names.remove("manifest.json")
    found = {name: describe_file(directory / name) for name in names}
    forge(directory, lambda body: body.update(files=found))
