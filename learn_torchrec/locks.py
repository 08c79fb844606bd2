"""Locks of directories: one run at a time makes an artefact."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from learn_torchrec.errors import UserError


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock `directory` against other runs that would make it.

    The kernel releases the lock (flock) however the process ends, so the file of a
    killed run locks nothing; a block that ends removes it. Not `filelock`: its locks do
    not record their holder and leave their files, and without flock in the file system
    they would outlive a killed run.

    Raises:
        UserError: another run holds the lock (names its process), the lock file is not
            a plain file, or the file system has no locks.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    path = directory.parent / f".{directory.name}.lock"
    while True:
        stream = _open_lock(path)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = stream.read().strip() or "unknown"
            stream.close()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UserError(
                    f"{directory}: another run is making it (process {holder}); wait "
                    "for it, stop it, or choose another --out"
                ) from None
            raise UserError(
                f"{path}: cannot be locked ({error.strerror}); choose an --out on a "
                "file system with locks"
            ) from None
        # The previous holder may have removed the file since it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                break
        stream.close()
    with stream:
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _open_lock(path: Path) -> TextIO:
    """Open a lock file to read and append, without following a symbolic link.

    Raises:
        UserError: the path is not a plain file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "r+")
        os.close(descriptor)
    raise UserError(f"{path}: must be a plain file, to serve as the lock; remove it")
