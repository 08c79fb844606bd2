"""Parquet as pandas and Spark write it: a file, or a folder of parts read as one.

Parts may lie in folders such as `day=2026-01-01`, whose names become a column, and may
differ in the type of a column (pandas writes integers beside nulls as floats). CSV is
copied to Parquet first.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from learn_torchrec.arrays import AnyArray, Int64Array, decoded, name_rows
from learn_torchrec.artifact import artifact_of, read_manifest
from learn_torchrec.datasets.adapters import csv_files
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import (
    SUFFIXES,
    fragments_of,
    unreadable,
)
from learn_torchrec.errors import UserError
from learn_torchrec.ids import is_text, type_name
from learn_torchrec.page_checksums import parquet_format

# Names by Spark, Dask, DuckDB, Polars and `predict`.
_PART = re.compile(r"(part[-._]|data_)?\d")


class ParquetParts:
    """All parts under one path, opened but not yet read.

    Args:
        path: a Parquet or CSV file, or a folder of them.
        what: what to name instead, for messages: "a prediction file or its directory".
        may_lack: a column that some parts may lack; it is null there.

    Raises:
        UserError: no such file, or one that is not Parquet. If the path lies in an
            artefact: a damaged manifest, or files that it does not list.
    """

    def __init__(self, path: Path, what: str, may_lack: str = "") -> None:
        self.path, self._may_lack, location = path, may_lack, Location.of(path)
        if artefact := artifact_of(path):
            read_manifest(artefact)  # all its files are listed
        if not location.files():
            reason = "an empty folder" if path.exists() else "no such file"
            raise UserError(f"{path}: {reason}; name {what}")
        if all(
            file.path.endswith(csv_files.SUFFIXES) for file in _data_files(location)
        ):
            self._copy = tempfile.TemporaryDirectory()  # as long as this object
            location = _as_parquet(location, Path(self._copy.name))
        self._fragments = fragments_of(location)
        self._fields = [_fields_of(part) for part in self._fragments]

    @property
    def names(self) -> list[str]:
        """The columns of any part, including those from folder names."""
        return list(dict.fromkeys(name for part in self._fields for name in part))

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Metadata of the file, or of a folder's first part."""
        return self._fragments[0].physical_schema.metadata or {}

    def require(self, names: Sequence[str], need: str) -> None:
        """Refuse a table without some columns.

        Raises:
            UserError: a column is missing; ends with `need`.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise UserError(f"{self.path}: no column {', '.join(missing)}; {need}")

    def read(self, names: Sequence[str]) -> pa.Table:
        """Return some columns of all parts; other columns may have any type.

        Raises:
            UserError: an unreadable part, or incompatible types of a column.
        """
        dataset = self._columns(names)
        with self._readable():
            return dataset.to_table()

    def count(self, name: str, rows: ds.Expression | None = None) -> int:
        """Return the number of rows, or of those that a filter on `name` selects."""
        dataset = self._columns([name])
        with self._readable():
            return int(dataset.count_rows(filter=rows))

    def row_groups(self) -> list[ds.Fragment]:
        """Return the row groups of all parts, in the parts' order."""
        with self._readable():
            return [
                group for one in self._fragments for group in one.split_by_row_group()
            ]

    def batches(
        self,
        group: ds.Fragment,
        names: Sequence[str],
        batch_rows: int,
        rows: ds.Expression | None = None,
        filtered_by: Sequence[str] = (),
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of a row group: the columns `names`, at most `batch_rows` rows.

        `rows` is a filter, `filtered_by` the columns that it uses.

        Raises:
            UserError: see `read`.
        """
        schema = self._schema(list(dict.fromkeys([*names, *filtered_by])))
        with self._readable():
            yield from group.to_batches(
                schema=schema, columns=list(names), filter=rows, batch_size=batch_rows
            )

    def _columns(self, names: Sequence[str]) -> ds.Dataset:
        schema = self._schema(names)
        return ds.FileSystemDataset(self._fragments, schema, parquet_format())

    def _schema(self, names: Sequence[str]) -> pa.Schema:
        """Return the columns with types to which those of all parts can be cast."""
        fields = []
        for name in names:
            kinds: dict[pa.DataType, None] = {}
            for part, columns in zip(self._fragments, self._fields, strict=True):
                if name in columns:
                    kinds[columns[name]] = None
                elif name != self._may_lack:
                    raise UserError(
                        f"{part.path}: no column {name}, unlike other parts of "
                        f"{self.path}; write all parts with the same columns"
                    )
            try:
                fields.append(_one_type(name, list(kinds)))
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                raise UserError(
                    f"{self.path}: {name}: {', '.join(map(str, kinds))} in different "
                    "parts; write all parts with one type"
                ) from None
        return pa.schema(fields)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn failures of pyarrow into a `UserError`."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self.path, error) from None


def _data_files(location: Location) -> list[Location]:
    """Return a folder's CSV and Parquet files, or all if there are none."""
    return location.files(*csv_files.SUFFIXES, *SUFFIXES) or location.files()


def _as_parquet(location: Location, folder: Path) -> Location:
    """Copy CSV to a Parquet file; a column has a type if all its values do."""
    table = csv_files.read(location, csv_files.Format())
    columns = [csv_files.typed(column) for column in table.columns]
    path = folder / "copy.parquet"
    pq.write_table(pa.table(columns, table.column_names), path)
    return Location.of(path)


def _fields_of(part: ds.ParquetFileFragment) -> dict[str, pa.DataType]:
    """Return the type of each of a part's columns."""
    fields = {field.name: decoded(field.type) for field in part.physical_schema}
    keys = ds.get_partition_keys(part.partition_expression)
    return fields | {name: pa.scalar(value).type for name, value in keys.items()}


def _one_type(name: str, kinds: Sequence[pa.DataType]) -> pa.Field:
    schemas = [pa.schema([pa.field(name, kind)]) for kind in kinds]
    field = pa.unify_schemas(schemas, promote_options="permissive").field(0)
    # Decimals cannot be compared with every integer.
    return field.with_type(pa.float64()) if pa.types.is_decimal(field.type) else field


def lone_part_note(path: Path) -> str:
    """Return a warning if a path is one of several parts in a folder, else ""."""
    folder = path.parent
    if "=" in path.name or "=" in folder.name:
        while "=" in folder.name:
            folder = folder.parent
        parts = list(folder.rglob("*.parquet"))
    elif path.is_file() and _PART.match(path.name):
        parts = [one for one in folder.glob("*.parquet") if _PART.match(one.name)]
    else:
        return ""
    if len(parts) < 2:
        return ""
    return (
        f"{path}: one of {len(parts)} parts, read alone; name {folder} to read all of "
        "them"
    )


def refuse_null(column: pa.Array, name: str, first_row: int = 0) -> None:
    """Refuse nulls.

    Raises:
        UserError: names the column and the rows.
    """
    if column.null_count:
        is_null = column.is_null().to_numpy(zero_copy_only=False)
        rows = name_rows(is_null, first_row)
        raise UserError(f"{name}: null in {rows}; remove or fill them")


def as_numbers(column: pa.Array, name: str) -> AnyArray:
    """Return a column [N] of numbers or booleans without nulls, decimals as float64.

    Numbers and booleans may be written as text.

    Raises:
        UserError: values that are not numbers.
    """
    if is_text(column.type):
        column = csv_files.typed(column)
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
    ):
        raise UserError(f"{name}: {type_name(kind)}; a number is needed")
    return np.asarray(column.to_numpy(zero_copy_only=False))


def as_counts(column: pa.Array, name: str, first_row: int = 0) -> Int64Array:
    """Return a column [N] of counts, which a left join may have turned into floats.

    Raises:
        UserError: nulls or NaN, fractions, negative numbers or other values.
    """
    refuse_null(column, name, first_row)
    values = as_numbers(column, name)
    if values.dtype.kind == "f":
        refuse_null(pa.array(values, from_pandas=True), name, first_row)
        is_bad = values != np.floor(values)
        is_bad |= np.abs(values) >= 2.0**63
        if is_bad.any():
            rows = name_rows(is_bad, first_row)
            raise UserError(f"{name}: no whole number in {rows}; write counts")
    counts = values.astype(np.int64)
    if (counts < 0).any():
        rows = name_rows(counts < 0, first_row)
        raise UserError(f"{name}: negative count in {rows}; counts start at 0")
    return counts


def as_cohorts(column: pa.Array, name: str) -> pa.Array:
    """Return a column's values as text, large_string [N].

    Raises:
        UserError: values that cannot be names, such as lists.
    """
    try:
        return column.cast(pa.large_string())
    except pa.ArrowException:
        raise UserError(
            f"{name}: {column.type} values are no cohorts; use strings or integers"
        ) from None
