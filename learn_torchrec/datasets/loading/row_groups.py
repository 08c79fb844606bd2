"""The row groups of a Parquet data set, in the same order on every rank.

A data set is a file, a folder of files, or a partitioned folder (`day=2026-01-02/`), on
any file system. Files are sorted by path. Opening reads footers only, and for an
interval of time the times of row groups whose statistics do not decide.

Letters: G row groups.
"""

import copy
import re
import urllib.parse
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from learn_torchrec.arrays import Int64Array, decoded
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.time_range import Interval, Lacking
from learn_torchrec.errors import UserError, first_line, require_columns
from learn_torchrec.page_checksums import VERIFIED, parquet_format

# The column of row numbers in the data set, with files in sorted order.
ROW_NUMBER = "_row_number"
SUFFIXES = (".parquet", ".parq", ".pq")
_INTEGER = re.compile(r"0|-?[1-9]\d*")
_NULL_KEY = "__HIVE_DEFAULT_PARTITION__"
PIECE_ROWS = 65_536  # decoded at a time, however large a row group is
_BUFFER = 65_536  # bytes of a column that are read ahead; pages may be larger


class RowSource(Protocol):
    """Rows in groups, in a fixed order; see `RowGroups`."""

    name: str
    sizes: Int64Array
    earliest: int | None
    lacking: Lacking

    @property
    def num_rows(self) -> int:
        """Selected rows of all groups."""

    def __len__(self) -> int: ...

    def empty(self) -> pa.Table:
        """Return a table like those of `pieces`, without rows."""

    def only(self, columns: Sequence[str]) -> "RowSource":
        """Return the same rows with some of their columns.

        Those by which the rows are selected must be among them.
        """

    def pieces(
        self, group: int, skip: int = 0, most: int = PIECE_ROWS
    ) -> Iterator[pa.Table]:
        """Yield the selected rows of a group in order, with `ROW_NUMBER`."""


class RowGroups:
    """A Parquet data set, read by row groups.

    Args:
        where: path or URI.
        columns: to read; None for all. Others are never read. One that a file lacks
            is null there.
        interval: of the selected rows; None for all.
        optional: further columns to read if the files have them.

    Attributes:
        name: of the data set, for messages.
        schema: of the columns, the same for all files.
        sizes: int64 [G], selected rows of every row group that has any.
        earliest: the first time in the interval; None without one.
        lacking: rows that the interval leaves out, as they lack a value: by column, how
            many, and the row number of the first.

    Raises:
        UserError: no data, a damaged file, a column that no file has, or one whose type
            differs between files.
    """

    def __init__(
        self,
        where: str | Path | Location,
        columns: Sequence[str] | None = None,
        interval: Interval | None = None,
        optional: Sequence[str] = (),
    ) -> None:
        location = Location.of(where)
        self.name, self._interval = location.name, interval
        fragments = fragments_of(location)
        known = {name for f in fragments for name in f.physical_schema.names}
        if ROW_NUMBER in known:
            raise UserError(
                f"{self.name}: has a column {ROW_NUMBER!r}, a name that reading needs "
                "for itself; rename or drop it"
            )
        if columns is not None:
            columns = [*columns, *(n for n in optional if n in known - {*columns})]
        self.schema = _common_schema(fragments, columns, self.name)
        groups = [(f, group) for f in fragments for group in f.row_groups]
        all_rows = np.array([group.num_rows for _, group in groups], np.int64)
        if not all_rows.sum():
            raise UserError(f"{self.name}: has no rows; give a file with rows")
        wanted, starts = all_rows, np.cumsum(all_rows) - all_rows
        self.earliest: int | None = None
        self.lacking: Lacking = {}
        if interval is not None:
            wanted, self.earliest, self.lacking = _count(groups, starts, interval)
        kept = np.flatnonzero(wanted)
        self.sizes: Int64Array = wanted[kept]
        self._starts = starts[kept]
        # Numbers only: descriptions of row groups cannot be sent to a worker.
        self._groups = [(groups[g][0], int(groups[g][1].id)) for g in kept]

    @property
    def num_rows(self) -> int:
        """Selected rows of all files."""
        return int(self.sizes.sum())

    def __len__(self) -> int:
        return len(self._groups)

    def empty(self) -> pa.Table:
        """Return a table like those of `pieces`, without rows."""
        return self.schema.append(pa.field(ROW_NUMBER, pa.int64())).empty_table()

    def only(self, columns: Sequence[str]) -> "RowGroups":
        """Return the same rows with some of their columns; others are not read."""
        narrow = copy.copy(self)
        narrow.schema = pa.schema([self.schema.field(name) for name in columns])
        return narrow

    def pieces(
        self, group: int, skip: int = 0, most: int = PIECE_ROWS
    ) -> Iterator[pa.Table]:
        """Yield the selected rows of a row group in order, with `ROW_NUMBER`.

        Args:
            group: 0 to G - 1.
            skip: selected rows to skip at its beginning.
            most: rows of a piece.

        Raises:
            UserError: it cannot be read, a value does not fit the common type, or the
                file has changed since it was opened.
        """
        fragment, number = self._groups[group]
        row, rest = int(self._starts[group]), int(self.sizes[group])
        try:
            for batch in self._decoded(fragment, number, most):
                numbers = np.arange(row, row + batch.num_rows)
                row += batch.num_rows
                piece = batch.append_column(ROW_NUMBER, pa.array(numbers))
                if self._interval is not None:
                    piece = self._interval.rows_of(piece)
                rest -= piece.num_rows
                if skip < piece.num_rows:
                    yield piece.slice(skip)
                skip = max(0, skip - piece.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{fragment.path}: row group {number} cannot be read "
                f"({first_line(error)}); write the file again"
            ) from None
        if rest:
            raise UserError(
                f"{fragment.path}: row group {number} has changed since it was opened; "
                "write files elsewhere and rename them"
            )

    def _decoded(
        self, fragment: ds.ParquetFileFragment, number: int, most: int
    ) -> Iterator[pa.Table]:
        keys = ds.get_partition_keys(fragment.partition_expression)
        own = fragment.physical_schema.names
        columns = [n for n in self.schema.names if n in own and n not in keys]
        remote = not isinstance(fragment.filesystem, pafs.LocalFileSystem)
        reading = {"pre_buffer": True} if remote else {"buffer_size": _BUFFER}
        with (
            fragment.open() as source,
            pq.ParquetFile(
                source, metadata=fragment.metadata, **reading, **VERIFIED
            ) as file,
        ):
            for batch in file.iter_batches(most, [number], columns):
                table = pa.Table.from_batches([batch])
                for name in self.schema.names:
                    if name not in columns:
                        value = pa.scalar(keys.get(name), self.schema.field(name).type)
                        constant = pa.repeat(value, batch.num_rows)
                        table = table.append_column(name, constant)
                table = table.select(self.schema.names)
                yield table if table.schema == self.schema else table.cast(self.schema)


def _count(
    groups: list[tuple[ds.ParquetFileFragment, ds.RowGroupInfo]],
    starts: Int64Array,
    interval: Interval,
) -> tuple[Int64Array, int | None, Lacking]:
    """Return the selected rows of every row group, their earliest time, and others.

    `starts` are the row numbers of the groups' first rows.
    """
    counts, earliest = np.zeros(len(groups), np.int64), []
    lacking: Lacking = {}
    for place, (fragment, group) in enumerate(groups):
        try:
            counts[place], first, found = interval.count(fragment, int(group.id))
        except (pa.ArrowException, OSError) as error:
            raise unreadable(fragment.path, error) from None
        earliest += [] if first is None else [first]
        for name, (count, row) in found.items():
            before, first_row = lacking.get(name, (0, int(starts[place]) + row))
            lacking[name] = before + count, first_row
    return counts, min(earliest, default=None), lacking


def open_parquet(where: str | Path | Location) -> ds.Dataset:
    """Return a Parquet data set, with sorted files, for engines that read Arrow.

    Raises:
        UserError: no data, a damaged file, or files of different schemas.
    """
    location = Location.of(where)
    fragments = fragments_of(location)
    schema = _common_schema(fragments, None, location.name)
    return ds.FileSystemDataset(
        fragments, schema, parquet_format(), location.filesystem
    )


def fragments_of(location: Location) -> list[ds.ParquetFileFragment]:
    """Return the files with rows, sorted by path, their footers read.

    A folder's files are those with a Parquet suffix, or all if none has one (Hive).
    Folders `key=value` give a column if the first file lacks it. Files without rows,
    whose types writers guess, count only if there are no others.

    Raises:
        UserError: no data, or a damaged file.
    """
    files = location.files(*SUFFIXES) if location.is_dir() else location.files()
    files = files or location.files()
    if not files:
        exists = location.exists()
        reason = "has no .parquet files" if exists else "no such file or folder"
        raise UserError(f"{location}: {reason}; name a Parquet file or a folder")
    paths = [file.path[len(location.path) :] for file in files]
    layout, hive, fragments = parquet_format(), None, []
    for file, path in zip(files, paths, strict=True):
        try:
            if hive is None:
                first = layout.make_fragment(file.path, location.filesystem)
                hive = hive_keys(paths, first.physical_schema.names)
            fragment = layout.make_fragment(
                file.path, location.filesystem, hive.parse(path)
            )
            fragment.ensure_complete_metadata()
            names = fragment.physical_schema.names
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise unreadable(file, error) from None
        _refuse_repeated_columns(names, file)
        fragments.append(fragment)
    return [one for one in fragments if one.count_rows()] or fragments


def _refuse_repeated_columns(names: Sequence[str], file: Location) -> None:
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        raise UserError(
            f"{file}: has column {repeated[0]!r} twice; rename or drop one of them"
        )


def hive_keys(paths: Sequence[str], inside: Collection[str] = ()) -> ds.Partitioning:
    """Return the partition keys: integers if all values are written as integers.

    `part=000` is text, which Arrow would infer to be 0. Keys that are `inside` the
    files are read there.
    """
    found: dict[str, set[str]] = {}
    for path in paths:
        for folder in path.split("/")[:-1]:
            key, separator, value = map(urllib.parse.unquote, folder.partition("="))
            if separator and key not in inside:
                found.setdefault(key, set()).add(value)
    kinds = {
        key: pa.int64() if all(map(_is_int64, values - {_NULL_KEY})) else pa.string()
        for key, values in found.items()
    }
    return ds.partitioning(pa.schema(kinds), flavor="hive")


def _is_int64(text: str) -> bool:
    return bool(_INTEGER.fullmatch(text)) and -(2**63) <= int(text) < 2**63


def unreadable(path: object, error: Exception) -> UserError:
    """Return the error for a file that is damaged or not Parquet."""
    reason = re.sub(r"^.*input source '.*?': ", "", first_line(error))  # the path again
    return UserError(f"{path}: cannot be read as Parquet ({reason}); write it again")


def _common_schema(
    fragments: list[ds.ParquetFileFragment], columns: Sequence[str] | None, name: str
) -> pa.Schema:
    """Return the columns of any file, with types wide enough for all files."""
    common: dict[str, pa.Field] = {}
    present: dict[str, None] = {}
    for fragment in fragments:
        fields = {field.name: field for field in fragment.physical_schema}
        keys = ds.get_partition_keys(fragment.partition_expression)
        fields |= {key: pa.field(key, pa.scalar(v).type) for key, v in keys.items()}
        present |= dict.fromkeys(fields)
        for column in fields if columns is None else fields.keys() & {*columns}:
            field = fields[column].with_nullable(True).remove_metadata()
            field = field.with_type(without_views(field.type))
            known = common.get(column, field)
            common[column] = _wider(known, field, fragment.path, name)
    names = common if columns is None else dict.fromkeys(columns)
    require_columns(present, names, name)
    return pa.schema([common[column] for column in names])


def without_views(kind: pa.DataType) -> pa.DataType:
    """Return a type without string and binary views, which Arrow cannot select."""
    if pa.types.is_list(kind):
        return pa.list_(without_views(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(without_views(kind.value_type))
    return kind if pa.types.is_dictionary(kind) else decoded(kind)


def _wider(one: pa.Field, other: pa.Field, path: str, name: str) -> pa.Field:
    """Return a field with the wider of two types, e.g. int64 for int32 and int64.

    Beside a plain type, a dictionary becomes plain.
    """
    if one.type == other.type:
        return one
    kinds = [decoded(one.type), decoded(other.type)]
    schemas = [pa.schema([pa.field(one.name, kind)]) for kind in kinds]
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise UserError(
            f"{path}: column {one.name!r} is {other.type}, but {one.type} in other "
            f"files of {name}; write all files with one type"
        ) from None
    return unified.field(0)
