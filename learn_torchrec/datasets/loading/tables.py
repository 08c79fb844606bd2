"""Checks of tables: each error is one line that names file, column and row."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.arrays import as_arrow, as_strings, widened
from learn_torchrec.datasets.loading.location import Location, content_digests
from learn_torchrec.datasets.loading.row_groups import (
    ROW_NUMBER,
    open_parquet,
    unreadable,
)
from learn_torchrec.errors import UserError
from learn_torchrec.ids import as_ids, is_text, type_name
from learn_torchrec.schema import (
    ACTION,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    TIMESTAMP,
    USER_ID,
)
from learn_torchrec.times import as_seconds, is_time

# Kinds of columns, as error messages call them, and the types they may have.
_KINDS = {
    "int64 or string": lambda t: pt.is_integer(t) or is_text(t),
    "int64 (unix seconds)": is_time,
    "string": is_text,
    "0 or 1": lambda t: (
        pt.is_boolean(t) or pt.is_integer(t) or pt.is_floating(t) or pt.is_decimal(t)
    ),
}
_ID, _TIME, _TEXT, BINARY = _KINDS

REQUIRED: dict[str, dict[str, str]] = {
    ITEMS_FILE: {ITEM_ID: _ID},
    INTERACTIONS_FILE: {USER_ID: _ID, ITEM_ID: _ID, TIMESTAMP: _TIME, ACTION: _TEXT},
    IMPRESSIONS_FILE: {USER_ID: _ID, ITEM_ID: _ID, TIMESTAMP: _TIME},
}


def read_parquet(
    where: Path | Location, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read a Parquet file, a folder of them, or a partitioned folder.

    Args:
        where: path or URI.
        columns: to read; if one is missing, all are read and `check` reports it.

    Raises:
        UserError: the path is missing or not readable as Parquet.
    """
    location = Location.of(where)
    if not location.exists():
        stem = location.file_name.removesuffix(".parquet")
        fix = f"; say which it is: --data parquet:DIR#{stem}=FILE"
        known = location.file_name in REQUIRED
        raise UserError(f"{location}: no such file{fix if known else ''}")
    try:
        dataset = open_parquet(location)
        has_all = columns is not None and set(columns) <= set(dataset.schema.names)
        return dataset.to_table(columns if has_all else None)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(location, error) from None


def check(
    table: pa.Table, required: Mapping[str, str], source: str, prefix: str = ""
) -> pa.Table:
    """Check a table's required columns and return it with these in normal form.

    Ids become int64 or large_string (see `ids.as_ids`), times int64 unix seconds,
    actions string, labels float32, which alone may be null.

    Args:
        table: as it was read.
        required: kind by column name (see `REQUIRED`).
        source: the file, for messages.
        prefix: of the option that names a column, such as `csv:DIR#items`.

    Raises:
        UserError: an empty table, or a column that is missing, of the wrong type or has
            nulls.
    """
    if table.num_rows == 0:
        raise UserError(f"{source}: has no rows; give a file with rows")
    for name, kind in required.items():
        if name not in table.column_names:
            known = (n for n in table.column_names if n != ROW_NUMBER)
            fix = f"; say which it is: --data {prefix}.{name}=COLUMN" if prefix else ""
            if fix and name == ACTION:
                fix += f", or {prefix.partition('#')[0]}#default_action=buy"
            raise UserError(
                f"{source}: column {name!r} ({kind}) is missing; "
                f"it has: {', '.join(known)}{fix}"
            )
        index = table.column_names.index(name)
        column = as_arrow(table.column(name))
        where = f"{source}: column {name!r}"
        if not _KINDS[kind](column.type):
            raise UserError(
                f"{where} is {type_name(column.type)}, must be {kind}; convert it"
            )
        if column.null_count and kind != BINARY:
            row = row_of(table, pc.index(column.is_null(), pa.scalar(True)).as_py())
            raise UserError(
                f"{where} has {column.null_count} nulls, the first in row {row}; drop "
                "or fill those rows"
            )
        if kind == _ID:
            column = as_ids(column, where)
        elif kind == _TIME:
            column = pa.array(as_seconds(column, where))
        elif kind == _TEXT:
            column = as_strings(column)
        else:
            column = _binary(column, table, where)
        table = table.set_column(index, name, column)
    return widened(table)


def row_of(table: pa.Table, place: int | np.integer[Any]) -> int:
    """Return the row number in the data set of a table's row, for messages."""
    if ROW_NUMBER in table.column_names:
        return int(table[ROW_NUMBER][int(place)].as_py())
    return int(place)


def files_fingerprint(sources: Sequence[Path | Location]) -> str:
    """Return a digest of the content of files and folders."""
    digest = hashlib.sha256()
    folders = [Location.of(source) for source in sources]
    files = [(folder, file) for folder in folders for file in folder.files()]
    contents = content_digests([file for _, file in files])
    for (folder, file), content in zip(files, contents, strict=True):
        digest.update(file.path.removeprefix(folder.path).encode())
        digest.update(content.encode())
    return digest.hexdigest()


def _binary(column: pa.ChunkedArray, table: pa.Table, where: str) -> pa.ChunkedArray:
    values = column.cast(pa.float32(), safe=False)
    allowed = pa.array([0, 1, None], pa.float32())
    wrong = pc.invert(pc.is_in(values, value_set=allowed))
    row = pc.index(wrong, pa.scalar(True)).as_py()
    if row >= 0:
        raise UserError(
            f"{where} is {values[row].as_py()} in row {row_of(table, row)}, must be 0 "
            "or 1"
        )
    return values
