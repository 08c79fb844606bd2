"""Artefacts: directories with a manifest, which says how they were made.

The manifest lists every file with its checksum, so that a damaged artefact and a wrong
input are refused. `publish` writes artefacts; this module reads and checks them.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from learn_torchrec.digests import digests
from learn_torchrec.digests import file_digest as file_digest
from learn_torchrec.errors import UserError, first_line
from learn_torchrec.manifest_form import Entries, manifest_problem

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


# What opening a file of a damaged or forged artefact may raise.
_DAMAGE = (
    *(OSError, ValueError, EOFError, zipfile.BadZipFile, RuntimeError, MemoryError),
    *(ArithmeticError, AttributeError, LookupError, TypeError, SafetensorError),
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


def read_manifest(directory: Path, kind: str | None = None) -> Manifest:
    """Read an artefact's manifest, which lists all files of the directory.

    `kind` is that of the artefact; None for any.

    Raises:
        UserError: no artefact, one of another kind or format version, a damaged one, or
            one with files that its manifest does not list.
    """
    path = directory / MANIFEST
    body = _read_json(path, kind or "readable")
    version = body.get("format_version") if isinstance(body, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: format {version}, but this version reads {FORMAT_VERSION}; make "
            "the artefact again"
        )
    if problem := manifest_problem(body):
        raise UserError(f"{path}: damaged ({problem}); make the artefact again")
    for name in ("config", "inputs", "facts"):
        body[name] = Entries.of(body[name], f"{path}: {name}")
    manifest = Manifest(**body)
    if kind is not None and manifest.kind != kind:
        raise UserError(
            f"{directory}: holds a {manifest.kind} artefact, but a {kind} artefact is "
            "needed; name its directory"
        )
    if manifest.checksum != manifest.digest():
        raise UserError(
            f"{path}: damaged (wrong checksum); restore it from a copy, or remove "
            f"{directory} and make it again"
        )
    _refuse_unlisted(directory, manifest)
    return manifest


def _read_json(path: Path, kind: str) -> Any:
    """Return the JSON of a manifest.

    Raises:
        UserError: no such file, one of another kind, or other content.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for its writer
            raise UserError(f"{path}: not a plain file; make the artefact again")
        body = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path.parent}: no {kind} artefact here ({MANIFEST} is missing); "
            "run the stage that makes it, or name its directory"
        ) from None
    except UserError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:  # not JSON, or not text
        raise UserError(
            f"{path}: not valid JSON ({first_line(error)}); remove {path.parent} and "
            "make it again"
        ) from None
    return body


def _refuse_unlisted(directory: Path, manifest: Manifest) -> None:
    """Refuse files that a copy has added, say, and that nobody has verified."""
    found = {
        str(Path(folder, name).relative_to(directory))
        for folder, folders, files in os.walk(directory)
        for name in (*files, *(n for n in folders if Path(folder, n).is_symlink()))
    }
    extra = sorted(found - manifest.files.keys() - {MANIFEST})
    if extra:
        raise UserError(
            f"{directory / extra[0]}: not a file of this artefact ({MANIFEST} does not "
            f"list it; such files: {len(extra)}); move it elsewhere, or make "
            f"{directory} again"
        )


def listed_files(directory: Path, manifest: Manifest, start: str = "") -> list[Path]:
    """Return the files of an artefact whose names begin with `start`, sorted.

    Readers name an artefact's files by its manifest alone, never by a search.
    """
    names = sorted(name for name in manifest.files if name.startswith(start))
    return [directory / name for name in names]


def artifact_of(path: Path) -> Path | None:
    """Return the artefact that a path is, or lies in; None for any other path."""
    for folder in (path, *path.absolute().parents[:2]):
        manifest = folder / MANIFEST
        if not manifest.is_file():
            continue
        try:
            body = json.loads(manifest.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            body = None
        if folder == path or (isinstance(body, dict) and "format_version" in body):
            return folder
    return None


def damaged_file(
    directory: Path, manifest: Manifest, only: Collection[str] | None = None
) -> str | None:
    """Return the first file that differs from the manifest's record, or None.

    All sizes are looked at before a file is read; see `digests` for which files are.
    `only` are names of files to look at; None for all.

    Raises:
        UserError: the manifest has a path that leads out of the directory.
    """
    root = directory.resolve()
    files = {n: one for n, one in manifest.files.items() if only is None or n in only}
    for name, recorded in files.items():
        path = directory / name
        if not path.resolve().is_relative_to(root):
            raise UserError(
                f"{directory}: its manifest names a file outside of it, {name!r}; make "
                "the artefact again"
            )
        if not path.is_file() or recorded["bytes"] != path.stat().st_size:
            return name
    found = digests(directory / name for name in files)
    pairs = zip(files.items(), found, strict=True)
    return next((n for (n, one), sha in pairs if one["sha256"] != sha), None)


def verify(
    directory: Path, kind: str | None = None, only: Collection[str] | None = None
) -> None:
    """Check every file of an artefact against the checksums of its manifest.

    See `read_manifest` and `damaged_file` for the arguments.

    Raises:
        UserError: names the first file that is missing or damaged.
    """
    damaged = damaged_file(directory, read_manifest(directory, kind), only)
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
    except UserError:
        raise
    except _DAMAGE as error:
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
