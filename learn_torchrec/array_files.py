"""Arrays in NumPy files: mapped, and written so that damage shows.

A checked file ends with a digest of its name and its content, which NumPy ignores.
Unfinished work is in such files: no manifest knows them yet.
"""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from learn_torchrec.arrays import AnyArray

logger = logging.getLogger(__name__)

_DIGEST_BYTES = hashlib.sha256().digest_size
_DAMAGE = (EOFError, OverflowError, TypeError, MemoryError, SyntaxError, ValueError)


def map_array(path: Path, kind: DTypeLike | None = None, dims: int = 0) -> AnyArray:
    """Map a NumPy file read-only; nothing in it is unpickled.

    Args:
        path: of the file.
        kind: its data type; None for any.
        dims: its number of dimensions; 0 for any.

    Raises:
        OSError: the file is missing; ValueError: damaged, not a plain file, or an array
            of another type or number of dimensions.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise ValueError(f"{path.name} is not a plain file")
    try:
        # A plain view: slices of a memmap would all be of its subclass.
        array = np.asarray(np.load(path, mmap_mode="r"))
    except _DAMAGE as error:
        raise ValueError(f"{path.name}: {error or 'not an array'}") from None
    if (kind and array.dtype != kind) or (dims and array.ndim != dims):
        raise ValueError(f"{path.name}: {array.dtype} of shape {array.shape}")
    return array


def read_array(path: Path) -> AnyArray:
    """Return the array of a NumPy file in memory; see `map_array`."""
    return np.array(map_array(path))


def write_checked(path: Path, array: AnyArray) -> None:
    """Write a checked file that appears whole or not at all, and survives a kill."""
    working = path.with_suffix(".tmp")
    with working.open("wb") as stream:
        np.save(stream, array)
    with working.open("r+b") as stream:
        digest = _digest(path, stream.read())
        stream.write(digest)
        stream.flush()
        os.fsync(stream.fileno())
    working.replace(path)


def read_checked(path: Path) -> AnyArray:
    """Return the array of a checked file in memory.

    Raises:
        OSError: the file is missing; ValueError: not what was written under its name.
    """
    if not is_intact(path):
        raise ValueError(f"{path.name} is damaged")
    return read_array(path)


def read_if_intact(path: Path) -> AnyArray | None:
    """Return the array of a checked file; None if there is none, or a damaged one."""
    if not path.exists():
        return None
    try:
        return read_checked(path)
    except (OSError, ValueError) as error:
        logger.warning("%s: damaged (%s); made again", path, error)
        return None


def is_intact(path: Path) -> bool:
    """Whether a checked file holds what was written under its name."""
    if not path.is_file():
        return False
    body = path.read_bytes()
    return body[-_DIGEST_BYTES:] == _digest(path, body[:-_DIGEST_BYTES])


def _digest(path: Path, body: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + b"\0" + body).digest()
