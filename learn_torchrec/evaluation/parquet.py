"""Parquet as pandas and Spark write it: a file, or a folder of parts read as one.

Parts may lie in folders such as `day=2026-01-01`, whose names become a column, and may
differ in the type of a column (pandas writes integers beside nulls as floats).
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from learn_torchrec.arrays import AnyArray, Int64Array, name_rows
from learn_torchrec.errors import UserError

_HIDDEN = (".", "_")  # checksums, _SUCCESS, _metadata
_PART = re.compile(r"part[-.]\d")  # names by Spark, Dask and `predict`


class ParquetParts:
    """All parts under one path, opened but not yet read.

    Args:
        path: a Parquet file, or a folder of them.
        what: what to name instead, for messages: "a prediction file or its directory".

    Raises:
        UserError: no such file, or one that is not Parquet.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._what = path, what
        # A single file's path is not data, even below a folder such as day=1.
        hive = {"partitioning": "hive", "partition_base_dir": str(path)}
        with self._readable():
            if not path.exists():
                raise FileNotFoundError
            self._dataset = ds.dataset(
                str(path), format="parquet", **(hive if path.is_dir() else {})
            )
            self._fragments = list(self._dataset.get_fragments())
            if not self._fragments:
                raise FileNotFoundError

    @property
    def names(self) -> list[str]:
        """The columns, including those from folder names."""
        names: list[str] = self._dataset.schema.names
        return names

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Metadata of the file, or of a folder's first part."""
        return self._dataset.schema.metadata or {}

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
        return ds.FileSystemDataset(
            self._fragments, schema, self._dataset.format, self._dataset.filesystem
        )

    def _schema(self, names: Sequence[str]) -> pa.Schema:
        """Return the columns with types to which those of all parts can be cast."""
        fields = []
        for name in names:
            own = self._dataset.schema.field(name)
            kinds = [
                part.physical_schema.field(name)
                for part in self._fragments
                if name in part.physical_schema.names
            ]
            try:
                fields.append(_one_type([own, *kinds], name))
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                types = ", ".join(dict.fromkeys(str(kind.type) for kind in kinds))
                raise UserError(
                    f"{self.path}: {name}: {types} in different parts; write all parts "
                    "with one type"
                ) from None
        return pa.schema(fields)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn failures of pyarrow into a `UserError`."""
        try:
            yield
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file; name {self._what}") from None
        except (pa.ArrowException, OSError) as error:
            first_line = str(error).splitlines()[0]
            raise UserError(
                f"{self.path}: not a readable Parquet file ({first_line})"
            ) from None


def _one_type(fields: Sequence[pa.Field], name: str) -> pa.Field:
    kinds = list(dict.fromkeys(field.type for field in fields))
    schemas = [pa.schema([pa.field(name, kind)]) for kind in kinds]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0)


def has_parquet(directory: Path) -> bool:
    """Whether a folder holds a part, directly or in subfolders."""
    return any(
        not any(part.startswith(_HIDDEN) for part in path.relative_to(directory).parts)
        for path in directory.rglob("*.parquet")
    )


def lone_part_note(path: Path) -> str:
    """Return a warning if a path is one of several parts in a folder, else ""."""
    if not path.is_file():
        return ""
    folder = path.parent
    if "=" in folder.name:
        while "=" in folder.name:
            folder = folder.parent
        parts = list(folder.rglob("*.parquet"))
    elif _PART.match(path.name):
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

    Raises:
        UserError: values that are not numbers.
    """
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
    ):
        raise UserError(f"{name}: {kind}; a number is needed")
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
