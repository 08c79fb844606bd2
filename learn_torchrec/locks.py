"""Locks of directories: one run at a time makes what is in them."""

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from learn_torchrec.errors import UserError
from learn_torchrec.refusals import name_place, naming

# What flock says where the file system has none.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class _NoLocksError(Exception):
    """The file system of a lock file has no flock."""


def real_place(path: Path) -> Path:
    """Return where an output lies: behind a symbolic link or a dot, else the path.

    A link would otherwise be replaced itself, and locked under another name than what
    it leads to. `absent/../place` is `place`, which the system finds only once `absent`
    is there.
    """
    if path.is_symlink() or path.name == "" or ".." in path.parts:
        return Path(os.path.realpath(path))
    return path


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock `directory` against other runs that would make it.

    The kernel releases the lock (flock) however the process ends, so the file of a
    killed run locks nothing; a block that ends removes it. Not `filelock`: its locks do
    not record their holder and leave their files, and without flock in the file system
    they would outlive a killed run. There, a file says which host's runs may make
    `directory`, and a lock in that host's temporary folder which of them does.

    Raises:
        UserError: another run holds the lock (names its process), or the lock file is
            not a plain file.
    """
    directory = real_place(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    path = directory.parent / f".{directory.name}.lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_flocked(path, directory))
        except _NoLocksError:
            path.unlink(missing_ok=True)  # nobody can lock it
            stack.enter_context(_claimed(path.with_suffix(".claim"), directory))
        yield


@contextlib.contextmanager
def _flocked(path: Path, directory: Path) -> Iterator[None]:
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
            if error.errno in _NO_LOCKS:
                raise _NoLocksError from None
            name_place(error, path)
            raise
        # The previous holder may have removed the file since it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                break
        stream.close()
    with stream:
        with naming(path):
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _claimed(claim: Path, directory: Path) -> Iterator[None]:
    """Lock without flock beside `directory`: among hosts by a file, here by flock.

    The claim of a host whose run was killed is taken over by the next run on that host.
    """
    user = f"user {os.getuid()} on {socket.gethostname()}"
    place = hashlib.sha256(os.path.realpath(directory).encode()).hexdigest()[:16]
    here = Path(tempfile.gettempdir()) / f"learn-torchrec-{os.getuid()}-{place}.lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_flocked(here, directory))
        except _NoLocksError:
            raise UserError(
                f"{directory}: cannot be locked, neither there nor in {here.parent}; "
                "choose an --out on a file system with locks, or set TMPDIR to one"
            ) from None
        try:
            with claim.open("x", encoding="utf-8") as stream:
                stream.write(user)
        except FileExistsError:
            holder = claim.read_text(encoding="utf-8")
            if holder != user:
                raise UserError(
                    f"{directory}: another run is making it ({holder or 'unknown'}); "
                    f"wait for it, or remove {claim} if that run has ended"
                ) from None
        stack.callback(claim.unlink, missing_ok=True)
        yield


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
