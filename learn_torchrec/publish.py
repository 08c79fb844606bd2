"""Publishing artefacts: they appear whole or not at all.

A stage writes into a temporary directory beside the final one, flushes every file and
the manifest to disk, and publishes the result by a rename. A finished stage is reused.
"""

import contextlib
import ctypes
import datetime
import errno
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from learn_torchrec.artifact import (
    CONFIG,
    MANIFEST,
    Manifest,
    describe_file,
    read_manifest,
    recipe_of,
    versions,
)
from learn_torchrec.digests import record
from learn_torchrec.errors import UserError
from learn_torchrec.locks import locked, real_place
from learn_torchrec.outputs import refuse_inside_artifact, refuse_unwritable
from learn_torchrec.refusals import name_place

logger = logging.getLogger(__name__)

_HERE, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2(2)


@contextlib.contextmanager
def making(directory: Path) -> Iterator[None]:
    """Lock an artefact's directory, and complete what a killed run left of a swap.

    Whether the artefact is there is decided, again, inside the block: another run may
    have made it before the lock was free.

    Raises:
        UserError: another run is making it.
    """
    with locked(directory):
        _recover(directory)
        yield


def make_once(
    directory: Path, is_done: Callable[[], bool], work: Callable[[], None]
) -> bool:
    """Call `work` with `directory` locked, unless the artefact is there.

    Args:
        directory: of the artefact.
        is_done: see `is_finished`.
        work: makes the artefact.

    Returns:
        Whether `work` was called.
    """
    if is_done():  # needs no lock, which cannot be had where nothing can be written
        return False
    with making(directory):
        if is_done():
            return False
        work()
        return True


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
    refuse_inside_artifact(directory)
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

    The caller holds the lock, see `making`. If the block raises, `directory` is
    unchanged. An older artefact there stays until the new one is complete.

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
    directory = real_place(directory)
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
    except BaseException as error:
        name_place(error, directory)
        shutil.rmtree(working, ignore_errors=True)
        raise
    record({directory / n: one["sha256"] for n, one in manifest.files.items()})


def _describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    return {
        str(path.relative_to(directory)): describe_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


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


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories at once; false where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # another C library
        return False
    places = (_HERE, os.fsencode(one), _HERE, os.fsencode(other))
    if renameat2(*places, _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # file system or kernel
        return False
    raise OSError(number, os.strerror(number), str(other))


def _recover(directory: Path) -> None:
    """Undo a swap that was killed between its two renames, where it takes two.

    Without the lock this would undo one that is under way.
    """
    for retired in _siblings(directory, "old"):
        if directory.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            retired.rename(directory)


def _swap(working: Path, directory: Path) -> None:
    """Move `working` to `directory`, replacing an older artefact."""
    if directory.exists() and _exchange(working, directory):
        shutil.rmtree(working, ignore_errors=True)  # the next run tries again
        return
    retired = working.with_suffix(".old")
    if directory.exists():
        directory.rename(retired)
    try:
        working.rename(directory)
    except OSError:
        _recover(directory)
        raise
    shutil.rmtree(retired, ignore_errors=True)  # the next run tries again
