"""Locations of data: a path, or a URI of any file system that `pyarrow.fs` supports.

`s3://`, `hdfs://`, `gs://`, `abfs://`, `file://`, and `fsspec+NAME://` for those of
fsspec. Credentials and endpoints are configured as in the file system's own library.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from learn_torchrec import credentials
from learn_torchrec.digests import digests
from learn_torchrec.errors import UserError, first_line, refuse_other_text

_LOCAL = pafs.LocalFileSystem()


@dataclass(frozen=True)
class Location:
    """A file or folder.

    Attributes:
        name: as the user wrote it, without credentials, for messages.
        filesystem: of the path.
        path: within the file system.
    """

    name: str
    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def of(cls, where: "str | Path | Location") -> "Location":
        """Return the location of a path or URI without accessing it.

        Raises:
            UserError: a URI whose scheme or server is unknown, or a path that is no
                UTF-8.
        """
        if isinstance(where, Location):
            return where
        text = str(where)
        refuse_other_text(text)
        if "://" not in text:
            return cls(text, _LOCAL, str(Path(text).expanduser()))
        credentials.remember([text])
        name = credentials.without_credentials(text)
        try:
            filesystem, path = pafs.FileSystem.from_uri(text)
        except (pa.ArrowException, OSError, ValueError, ImportError) as error:
            fix = "a path, or a URI such as s3://bucket/folder, hdfs://host:port/folder"
            if name != text:
                fix = "signs such as / ? # @ [ of a key or password as %2F %3F %23 ..."
            reason = first_line(error).replace(text, name)
            raise UserError(f"{name}: {reason}; write {fix}") from None
        return cls(name, filesystem, path)

    def __truediv__(self, name: str) -> "Location":
        """Return the file or folder `name` in this folder."""
        uri = "://" in self.name
        where, mark, query = self.name.partition("?") if uri else (self.name, "", "")
        return Location(
            f"{where.rstrip('/')}/{name}{mark}{query}",
            self.filesystem,
            f"{self.path.rstrip('/')}/{name}",
        )

    def __str__(self) -> str:
        return self.name

    @property
    def file_name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        """Whether the path is on the local file system."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def is_dir(self) -> bool:
        """Whether a folder is here."""
        return self._info().type == pafs.FileType.Directory

    def exists(self) -> bool:
        """Whether a file or a folder is here."""
        return self._info().type != pafs.FileType.NotFound

    def files(self, *suffixes: str) -> list["Location"]:
        """Return the files of a folder, recursively, sorted by path; of a file, itself.

        Hidden files and Spark's bookkeeping (`_SUCCESS`) are skipped.

        Args:
            suffixes: of the names to keep; none for all.
        """
        if not self.is_dir():
            return [self] if self.exists() else []
        kept = sorted(
            path
            for path in self._contents()
            if not _is_hidden(path[len(self.path) :])
            and (not suffixes or path.endswith(suffixes))
        )
        return [self / path[len(self.path) :].lstrip("/") for path in kept]

    def size(self) -> int:
        """Return the file's bytes."""
        return int(self._info().size or 0)

    def open(self) -> Any:
        """Return a binary stream, decompressed by suffix (`.gz`, `.bz2`).

        Raises:
            UserError: no such file, no plain file, or no permission to read it.
        """
        if self.is_local:
            self._info()  # opening a pipe would wait for its writer
        try:
            return self.filesystem.open_input_stream(self.path, compression="detect")
        except OSError as error:
            raise UserError(f"{self}: {_reason(error)}") from None

    def state(self) -> tuple[int | None, int | None, int | None]:
        """Return size, modification time in ns and, of a local file, inode.

        Another state means other content, without reading it.
        """
        info = self._info()
        inode = None
        if self.is_local and info.type != pafs.FileType.NotFound:
            inode = Path(self.path).stat().st_ino
        return info.size, info.mtime_ns, inode

    def _contents(self) -> list[str]:
        """Return the paths of all files in the folder."""
        try:
            infos = self.filesystem.get_file_info(
                pafs.FileSelector(self.path, recursive=True)
            )
            return [one.path for one in infos if one.type == pafs.FileType.File]
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self}: the name of a file in it is not UTF-8 ({error.object!a}); "
                "rename it"
            ) from None
        except OSError as error:
            raise UserError(f"{self}: {_reason(error)}") from None

    def _info(self) -> pafs.FileInfo:
        try:
            info = self.filesystem.get_file_info(self.path)
        except (OSError, ValueError) as error:
            raise UserError(f"{self}: {_reason(error)}") from None
        if info.type == pafs.FileType.Unknown and self.is_local:
            raise UserError(f"{self}: is no plain file; copy what it gives into one")
        return info


def content_digests(files: Sequence[Location]) -> list[str]:
    """Return the SHA-256 of each file's bytes, see `digests`.

    For a remote file, its size and modification time if the file system has them,
    to save a transfer.

    Raises:
        UserError: a file that cannot be read.
    """
    try:
        local = iter(digests(_plain(file) for file in files if file.is_local))
        return [next(local) if file.is_local else _remote(file) for file in files]
    except OSError as error:
        name = error.filename or files[0]
        raise UserError(f"{name}: {_reason(error)}") from None


def _plain(file: Location) -> Path:
    """Return the path of a local file; a pipe or device, which may never end, is none.

    Raises:
        UserError: it is one.
    """
    file.size()
    return Path(file.path)


def _remote(file: Location) -> str:
    size, modified, _ = file.state()
    if modified is not None:
        return f"{size} bytes, changed {modified}"
    stream = file.filesystem.open_input_stream(file.path, compression=None)
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/") if part)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "may not be read; check its permissions"
    return first_line(error)
