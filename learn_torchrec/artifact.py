"""Artefacts: directories with a manifest, published atomically.

A stage writes into a temporary directory beside the final one, flushes every file and
the manifest to disk, and publishes the result by a rename. The manifest records how the
artefact was made, so that a finished stage is reused and a wrong input is refused.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from learn_torchrec.errors import UserError, first_line

logger = logging.getLogger(__name__)

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
        if not path.is_file() or recorded != _describe(path):
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


def refuse_unwritable(path: Path) -> None:
    """Check that an output can be written: the place, by a try, and its name's length.

    Raises:
        UserError: names the place and the reason.
    """
    working = path.with_name(f".{path.name}.{'0' * 8}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            working.lstat()  # too long a name is refused
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise UserError(f"--out {path}: {folder} is a file; choose another --out")
        # Not `os.access`, which knows the mode alone: `/proc` has one, too.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".learn-torchrec-"):
            pass
    except OSError as error:
        raise UserError(
            f"--out {path}: cannot be written ({error.strerror}); choose another --out"
        ) from None


def is_finished(
    directory: Path, kind: str, recipe: str, may_replace: bool = False
) -> bool:
    """Whether `directory` already holds the artefact of this recipe.

    Args:
        directory: of the artefact.
        kind: of the artefact.
        recipe: see `recipe_of`.
        may_replace: whether an artefact of another recipe may be overwritten.

    Raises:
        UserError: the directory holds something that must not be overwritten, or
            cannot be written.
    """
    is_there = _holds(directory, kind, recipe, may_replace)
    if not is_there:
        refuse_unwritable(directory)
    return is_there


def _holds(directory: Path, kind: str, recipe: str, may_replace: bool) -> bool:
    for parent in directory.absolute().parents:
        if (parent / MANIFEST).exists():
            raise UserError(
                f"{directory}: lies inside the artefact {parent}, which would be "
                "replaced as a whole; choose another --out"
            )
    _recover(directory)
    if not directory.exists():
        return False
    if not (directory / MANIFEST).exists():
        if directory.is_dir() and not any(directory.iterdir()):
            return False
        raise UserError(
            f"{directory}: exists and is not an artefact; choose another --out"
        )
    if read_manifest(directory, kind).recipe == recipe:
        logger.info("%s: reused, as its settings and inputs are the same", directory)
        return True
    if not may_replace:
        raise UserError(
            f"{directory}: holds a {kind} artefact made with other settings or "
            "inputs; choose another --out or pass --overwrite"
        )
    return False


@contextlib.contextmanager
def write_artifact(
    directory: Path,
    *,
    kind: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    cutoff: int | None = None,
    facts: dict[str, Any] | None = None,
    run_config: Mapping[str, Any] | None = None,
    recipe: str | None = None,
) -> Iterator[Path]:
    """Yield a working directory that becomes `directory` when the block succeeds.

    If the block raises, `directory` is unchanged. An older artefact there stays until
    the new one is complete.

    Args:
        directory: of the artefact.
        kind: see `Manifest`.
        config: see `Manifest`.
        inputs: see `Manifest`.
        cutoff: see `Manifest`.
        facts: read when the block ends, so the block may fill it in.
        run_config: the whole resolved configuration, saved as `config.json` for
            `--config`.
        recipe: see `recipe_of`; None if all of `config` decides the content.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    _recover(directory)
    for stale in _siblings(directory, "tmp"):
        shutil.rmtree(stale, ignore_errors=True)  # of a run that was killed
    working = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}.tmp"
    working.mkdir()
    try:
        yield working
        if run_config is not None:
            (working / CONFIG).write_text(
                json.dumps(run_config, indent=2) + "\n", encoding="utf-8"
            )
        manifest = Manifest(
            kind=kind,
            recipe=recipe or recipe_of(kind, config, inputs),
            config=dict(config),
            inputs=dict(inputs),
            cutoff=cutoff,
            facts=facts or {},
            files=_describe_files(working),
            versions=versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        manifest.write(working)
        _flush_to_disk(working)
        _swap(working, directory)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


def _describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    return {
        str(path.relative_to(directory)): _describe(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide results."""
    found = {}
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _flush_to_disk(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _siblings(directory: Path, suffix: str) -> list[Path]:
    """Return the working or retired directories of exactly this artefact."""
    pattern = re.compile(rf"\.{re.escape(directory.name)}\.[0-9a-f]{{8}}\.{suffix}")
    if not directory.parent.is_dir():
        return []
    return [p for p in directory.parent.iterdir() if pattern.fullmatch(p.name)]


def _recover(directory: Path) -> None:
    """Undo a swap that was killed between its two renames."""
    for retired in _siblings(directory, "old"):
        if directory.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            # Another rank may have done so at the same time.
            with contextlib.suppress(FileNotFoundError):
                retired.rename(directory)


def _swap(working: Path, directory: Path) -> None:
    """Move `working` to `directory`, replacing an older artefact."""
    retired = working.with_suffix(".old")
    if directory.exists():
        directory.rename(retired)
    working.rename(directory)
    if retired.exists():
        shutil.rmtree(retired)
