"""Artefacts: directories with a manifest, which says how they were made.

The manifest lists every file with its checksum, so that a damaged artefact and a wrong
input are refused. `publish` writes artefacts; this module reads and checks them.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from learn_torchrec.errors import UserError, first_line

MANIFEST = "manifest.json"
CONFIG = "config.json"
FORMAT_VERSION = 3
_RECORDED_PACKAGES = (
    "learn-torchrec",
    "torch",
    "torchrec",
    "transformers",
    "pyarrow",
    "numpy",
)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artefact is and how it was made.

    Attributes:
        kind: of its content, e.g. "content" or "towers".
        recipe: digest of kind, format, deciding configuration and inputs: artefacts
            with the same recipe have the same content.
        config: the sections of the configuration that the stage reads.
        inputs: fingerprint of every input, by role.
        cutoff: unix seconds; the models behind the artefact learned from events
            strictly before it. None if nothing learned from behaviour.
        facts: for readers (counts, dimensions, statistics).
        files: size in bytes and SHA-256 of every file.
        versions: of the packages that made it.
        created: ISO 8601.
        checksum: of all other fields, to detect a damaged manifest.
    """

    kind: str
    recipe: str
    config: dict[str, Any]
    inputs: dict[str, str]
    cutoff: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    format_version: int = FORMAT_VERSION
    checksum: str = ""

    @property
    def fingerprint(self) -> str:
        """Digest of the artefact's content, recorded by the stages that read it."""
        return _digest([self.recipe, self.files])

    def write(self, directory: Path) -> None:
        """Write `manifest.json` into the artefact's directory."""
        body = asdict(self) | {"checksum": self.digest()}
        (directory / MANIFEST).write_text(
            json.dumps(body, indent=2) + "\n", encoding="utf-8"
        )

    def digest(self) -> str:
        """Return the value for `checksum`: of the other fields, as read from JSON."""
        return _digest(json.loads(json.dumps(asdict(self) | {"checksum": ""})))


def _digest(body: object) -> str:
    text = json.dumps(body, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_of(kind: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the digest that identifies what a stage would produce.

    Args:
        kind: of the artefact.
        config: the settings that decide its content, see `config.deciding`.
        inputs: fingerprint of every input, by role.
    """
    body = {"kind": kind, "format_version": FORMAT_VERSION}
    return _digest({**body, "config": config, "inputs": inputs})


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(directory: Path, kind: str) -> Manifest:
    """Read an artefact's manifest.

    Raises:
        UserError: no artefact, one of another kind or format version, or a damaged
            one.
    """
    path = directory / MANIFEST
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{directory}: no {kind} artefact here ({MANIFEST} is missing); "
            "run the stage that makes it, or name its directory"
        ) from None
    except ValueError as error:  # not JSON, or not text
        raise UserError(
            f"{path}: not valid JSON ({error}); remove {directory} and make it again"
        ) from None
    version = body.get("format_version") if isinstance(body, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: format {version}, but this version reads {FORMAT_VERSION}; make "
            "the artefact again"
        )
    try:
        manifest = Manifest(**body)
    except TypeError as error:
        raise UserError(f"{path}: damaged ({error}); make the artefact again") from None
    if manifest.kind != kind:
        raise UserError(
            f"{directory}: holds a {manifest.kind} artefact, but a {kind} artefact is "
            "needed; name its directory"
        )
    if manifest.checksum != manifest.digest():
        raise UserError(
            f"{path}: damaged (wrong checksum); restore it from a copy, or remove "
            f"{directory} and make it again"
        )
    return manifest


def damaged_file(directory: Path, manifest: Manifest) -> str | None:
    """Return the first file that differs from the manifest's record, or None.

    Raises:
        UserError: the manifest has a path that leads out of the directory.
    """
    for name, recorded in manifest.files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise UserError(
                f"{directory}: its manifest names a file outside of it, {name!r}; make "
                "the artefact again"
            )
        if not path.is_file() or recorded != describe_file(path):
            return name
    return None


def verify(directory: Path, kind: str) -> None:
    """Check every file of an artefact against the checksums of its manifest.

    Raises:
        UserError: names the first file that is missing or damaged.
    """
    damaged = damaged_file(directory, read_manifest(directory, kind))
    if damaged is not None:
        raise UserError(
            f"{directory / damaged}: damaged (not the checksum in {MANIFEST}); restore "
            f"it from a copy, or remove {directory} and make it again"
        )


@contextlib.contextmanager
def reading(
    directory: Path, manifest: Manifest, names: Iterable[str], advice: str
) -> Iterator[None]:
    """Guard a block that opens files of an artefact: errors become one line.

    File sizes are checked against the manifest first, which is cheap and detects
    truncated files.

    Args:
        directory: of the artefact.
        manifest: of the artefact.
        names: of the files, as in the manifest.
        advice: how to fix a damaged file.

    Raises:
        UserError: a file is missing or damaged.
    """
    for name in names:
        recorded = manifest.files.get(name, {}).get("bytes")
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path}: missing; {advice}")
        if (size := path.stat().st_size) != recorded:
            raise UserError(
                f"{path}: damaged ({size} bytes, its manifest says {recorded}); "
                + advice
            )
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{directory}: damaged ({first_line(error)}); {advice}"
        ) from None


def describe_file(path: Path) -> dict[str, Any]:
    """Return what a manifest records of a file: size in bytes and SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide results."""
    found = {}
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
