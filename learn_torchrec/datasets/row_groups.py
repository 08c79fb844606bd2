"""The row groups of a Parquet data set, in one order that every rank agrees on.

A data set is a file, a folder of files, or a partitioned folder (`day=2026-01-02/`),
on any file system. Files are sorted by path. Only footers are read at first.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from learn_torchrec.datasets.location import Location
from learn_torchrec.errors import UserError

SUFFIXES = (".parquet", ".parq", ".pq")


class RowGroups:
    """A Parquet data set that is read a row group at a time.

    Args:
        where: path or URI.
        columns: to read; None for all. The others are never touched.

    Attributes:
        name: of the data set, for messages.
        schema: of the columns, the same for all files.
        sizes: int64 [G], rows of every row group.

    Raises:
        UserError: no data, a damaged file, a column that is missing, or one whose
            type differs between files.
    """

    def __init__(
        self, where: str | Path | Location, columns: Sequence[str] | None = None
    ) -> None:
        location = Location.of(where)
        self.name = location.name
        fragments = _fragments(location)
        self.schema = _common_schema(fragments, columns, self.name)
        groups = [(f, group) for f in fragments for group in f.row_groups]
        # Numbers only: what describes a row group does not travel to a worker.
        self._groups = [(fragment, int(group.id)) for fragment, group in groups]
        self.sizes: NDArray[np.int64] = np.array(
            [group.num_rows for _, group in groups], np.int64
        )
        self._bytes = [int(group.total_byte_size) for _, group in groups]
        self.starts = np.cumsum(self.sizes) - self.sizes
        if self.num_rows == 0:
            raise UserError(f"{self.name}: has no rows; nothing can be done with it")

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return int(self.sizes.sum())

    def __len__(self) -> int:
        return len(self._groups)

    def read(self, group: int) -> pa.Table:
        """Return one row group.

        Raises:
            UserError: it cannot be read, or a value does not fit the common type.
        """
        fragment, number = self._groups[group]
        try:
            part = fragment.subset(row_group_ids=[number])
            return part.to_table(
                schema=self.schema, columns=self.schema.names, use_threads=False
            )
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{fragment.path}: row group {number} cannot be read "
                f"({str(error).splitlines()[0]}); write the file again"
            ) from None

    def fingerprint(self) -> str:
        """Return a digest of the files' names and row groups."""
        digest = hashlib.sha256()
        for (fragment, number), rows, size in zip(
            self._groups, self.sizes, self._bytes, strict=True
        ):
            name = fragment.path.rpartition("/")[2]
            digest.update(f"{name} {number} {rows} {size}\n".encode())
        return digest.hexdigest()


def open_parquet(where: str | Path | Location) -> ds.Dataset:
    """Return a Parquet data set for engines that read Arrow, its files sorted.

    Raises:
        UserError: no data, a damaged file, or files that do not fit together.
    """
    location = Location.of(where)
    fragments = _fragments(location)
    schema = _common_schema(fragments, None, location.name)
    return ds.FileSystemDataset(
        fragments, schema, ds.ParquetFileFormat(), location.filesystem
    )


def _fragments(location: Location) -> list[ds.ParquetFileFragment]:
    files = location.files(*SUFFIXES) if location.is_dir() else location.files()
    if not files:
        exists = location.exists()
        reason = "has no .parquet files" if exists else "no such file or folder"
        raise UserError(f"{location}: {reason}; name a Parquet file or a folder")
    partitioning = ds.partitioning(flavor="hive")
    try:
        dataset = ds.dataset(
            [file.path for file in files],
            filesystem=location.filesystem,
            format="parquet",
            partitioning=partitioning,
            partition_base_dir=location.path,
        )
    except (pa.ArrowException, OSError) as error:
        raise UserError(_unreadable(files[0].name, error)) from None
    fragments = sorted(dataset.get_fragments(), key=lambda fragment: fragment.path)
    for fragment in fragments:
        try:
            fragment.ensure_complete_metadata()
        except (pa.ArrowException, OSError) as error:
            raise UserError(_unreadable(fragment.path, error)) from None
    return fragments


def _unreadable(path: str, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return f"{path}: cannot be read as Parquet ({reason}); write it again"


def _common_schema(
    fragments: list[ds.ParquetFileFragment], columns: Sequence[str] | None, name: str
) -> pa.Schema:
    """Return the type of every column, wide enough for all files."""
    common: dict[str, pa.Field] = {}
    for number, fragment in enumerate(fragments):
        fields = {field.name: field for field in fragment.physical_schema}
        keys = ds.get_partition_keys(fragment.partition_expression)
        fields |= {key: pa.field(key, pa.scalar(v).type) for key, v in keys.items()}
        for column in columns if columns is not None else fields:
            if column not in fields:
                raise UserError(
                    f"{fragment.path}: column {column!r} is missing; it has: "
                    f"{', '.join(fields)}"
                )
        for column in fields if columns is None else columns:
            field = fields[column].with_nullable(True).remove_metadata()
            if column not in common:
                if number and columns is None:
                    first = fragments[0].path
                    raise UserError(
                        f"{fragment.path}: has column {column!r}, which {first} does "
                        "not have; write all files with the same columns"
                    )
                common[column] = field
            else:
                common[column] = _wider(common[column], field, fragment.path, name)
        if columns is None and len(fields) < len(common):
            lacking = next(c for c in common if c not in fields)
            raise UserError(
                f"{fragment.path}: column {lacking!r} is missing, which other files "
                f"of {name} have; write all files with the same columns"
            )
    return pa.schema(list(common.values()))


def _wider(one: pa.Field, other: pa.Field, path: str, name: str) -> pa.Field:
    """Return the type that holds both: int32 and int64 make int64."""
    if one.type == other.type:
        return one
    try:
        unified = pa.unify_schemas(
            [pa.schema([one]), pa.schema([other])], promote_options="permissive"
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise UserError(
            f"{path}: column {one.name!r} is {other.type}, but {one.type} in other "
            f"files of {name}; write all files with one type"
        ) from None
    return unified.field(0)
