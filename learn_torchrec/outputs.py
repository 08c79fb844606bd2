"""Outputs: refused where they would destroy something, then written whole.

An output may be replaced if the same command wrote it. It is refused if it cannot be
written, is, lies in or contains an input, lies inside an artefact, or is somebody
else's file.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from learn_torchrec.artifact import MANIFEST
from learn_torchrec.errors import UserError

Identity = tuple[int, int]  # device and inode


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a working file that becomes `path`, on disk, when the block succeeds.

    Its name is its own, so that two runs with one output do not mix theirs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    working = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield working
        with working.open("rb") as stream:
            os.fsync(stream.fileno())
        working.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            working.unlink(missing_ok=True)
        raise


class UnwritableError(UserError):
    """The system refuses an output, whatever the data."""


def refuse_unwritable(path: Path) -> None:
    """Check that an output can be written: the place, by a try, and its name's length.

    Raises:
        UserError: names the place and the reason; an `UnwritableError` where the
            system refuses it.
    """
    if not path.name:
        raise UserError(f"--out {path}: cannot be made; name a place in it")
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
        raise UnwritableError(
            f"--out {path}: cannot be written ({error.strerror}); choose another --out"
        ) from None


def refuse_inside_artifact(path: Path) -> None:
    """Refuse an output in an artefact, whose manifest says what it holds.

    Raises:
        UserError: names the artefact.
    """
    for parent in path.absolute().parents:
        if (parent / MANIFEST).exists():
            raise UserError(
                f"{path}: lies inside the artefact {parent}, which is read and "
                "replaced as a whole; choose another --out"
            )


def refuse_inputs(out: Path, inputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse an output that is, lies in or contains an input, under whatever name.

    Links of both kinds and mounts are followed.

    Args:
        out: a file or directory to make or replace.
        inputs: option and path of each.

    Raises:
        UserError: names the first such input.
    """
    place = Path(os.path.realpath(out))
    identity, above = _identity(place), _identities(place.parents)
    replaced = identity if place.is_file() else None
    for option, path in inputs:
        real = Path(os.path.realpath(path))
        if place == real or (identity and identity == _identity(real)):
            what = "is"
        elif place.is_relative_to(real) or _identity(real) in above:
            what = "lies in"
        elif real.is_relative_to(place) or identity in _identities(real.parents):
            what = "contains"
        elif replaced and replaced in _identities(real.rglob("*")):
            what = "is part of"
        else:
            continue
        raise UserError(
            f"--out {out}: {what} an input ({option} {path}), which would be "
            f"{'changed' if what == 'lies in' else 'replaced'}; choose another --out"
        )


def _identities(paths: Iterable[Path]) -> set[Identity]:
    """Return what paths lead to, those to nothing left out."""
    return {found for found in map(_identity, paths) if found is not None}


def _identity(path: Path) -> Identity | None:
    """Return what a path leads to; None for nothing."""
    try:
        found = path.stat()
    except OSError:  # absent, or not to be looked at
        return None
    return found.st_dev, found.st_ino


def refuse_foreign(path: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Refuse to replace a file that this command did not write; empty ones may go.

    Args:
        path: of the output.
        is_ours: whether an existing file is one that the command wrote.
        what: the command writes, for the message.

    Raises:
        UserError: it exists and is something else.
    """
    if path.is_file() and path.stat().st_size and not is_ours(path):
        raise UserError(
            f"--out {path}: exists and is not {what}; remove it, or choose another "
            "--out"
        )
