"""Digests of files, kept from one start to the next.

Artefacts and data are identified by what their files hold. Reading hundreds of
gigabytes for it at every start takes minutes, so a digest that was taken is recorded,
and holds while the file's inode, size, and times of modification and of change stay the
same. Of these, the time of change is set by the system alone: whatever is written,
copied or put in a file's place has another. A record stands for reading only where that
is sound and worth it:

- Files that are hashed in a second, together at most 256 MiB, are read at every start.
- A file that changed within the last seconds may change again before its file system's
  clock moves on. Its digest is not recorded, unless this process wrote it.
- A damaged record, or that of another file, is none: it holds a digest of itself.

Ranks that start together take the files in random order and find each other's records,
so that they share the work without a word.

What no time tells is a bit that flips on the disk. `--verify`, which is
`LEARN_TORCHREC_VERIFY=1`, reads everything. Records lie in `LEARN_TORCHREC_CACHE`, or
the user's own cache folder, and may be deleted at any time; where they cannot be
written, every start reads everything.
"""

import contextlib
import hashlib
import logging
import os
import random
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

VERIFY, PLACE = "LEARN_TORCHREC_VERIFY", "LEARN_TORCHREC_CACHE"
_READ_ALWAYS = 256 << 20  # bytes of the files of one call
_SETTLED = 3_000_000_000  # ns, more than a tick of any file system's clock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _State:
    """What differs once a file's content does; times in ns."""

    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "_State":
        found = path.stat()
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, which are read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(paths: Iterable[Path]) -> list[str]:
    """Return the SHA-256 of each file's bytes, of those that have a record from it."""
    paths = list(paths)
    if not _are_large(paths):
        return [file_digest(path) for path in paths]
    order = random.SystemRandom().sample(paths, len(paths))
    found = {path: _recorded(path) or _taken(path) for path in order}
    return [found[path] for path in paths]


def record(written: Mapping[Path, str]) -> None:
    """Record the digests of files that this process has just written, and no other."""
    if _are_large(list(written)):
        for path, digest in written.items():
            _keep(path, _State.of(path), digest)


def trust_no_record() -> None:
    """Let this process, and those that it starts, read all files."""
    os.environ[VERIFY] = "1"


def _are_large(paths: Sequence[Path]) -> bool:
    return sum(path.stat().st_size for path in paths) > _READ_ALWAYS


def _taken(path: Path) -> str:
    """Read a file; record its digest, for the state in which the reading began."""
    began, before = time.time_ns(), _State.of(path)
    digest = file_digest(path)
    is_settled = max(before.modified, before.changed) < began - _SETTLED
    if is_settled:
        _keep(path, before, digest)
    return digest


def _recorded(path: Path) -> str | None:
    """Return a file's digest as recorded; None if there is no record that holds."""
    place = _place_of(path)
    if place is None or os.environ.get(VERIFY, "") not in ("", "0"):
        return None
    try:
        digest, _, seal = place.read_text(encoding="ascii").partition(" ")
    except (OSError, ValueError):
        return None
    return digest if seal == _seal(_State.of(path), digest) else None


def _keep(path: Path, state: _State, digest: str) -> None:
    place = _place_of(path)
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        working = place.with_suffix(f".{uuid.uuid4().hex[:8]}")
        working.write_text(f"{digest} {_seal(state, digest)}", "ascii")
        working.replace(place)
    except OSError as error:
        logger.debug("%s: the next start reads %s again (%s)", place, path, error)


def _seal(state: _State, digest: str) -> str:
    """Return the digest that binds a file's digest to the file's state."""
    return hashlib.sha256(repr((astuple(state), digest)).encode()).hexdigest()


def _place_of(path: Path) -> Path | None:
    """Return where a file's digest is recorded; None for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get(PLACE) or f"{cache}/learn-torchrec"
    with contextlib.suppress(RuntimeError):
        name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
        return Path(folder).expanduser() / "digests" / name[:2] / name
    return None
