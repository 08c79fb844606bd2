"""Checks on tables: a wrong file ends in one line that names file, column and row."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER, open_parquet
from learn_torchrec.errors import UserError
from learn_torchrec.schema import (
    ACTION,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    LABEL,
    TIMESTAMP,
    USER_ID,
)

# Column kinds, by the word an error message uses for them.
_KINDS = {
    "int64 or string": lambda t: pt.is_int64(t) or pt.is_string(t),
    "int64 (unix seconds)": pt.is_int64,
    "string": pt.is_string,
    "0 or 1": lambda t: pt.is_integer(t) or pt.is_floating(t) or pt.is_boolean(t),
}
_ID, _TIME, _TEXT, _BINARY = _KINDS
_YEAR_2200 = 7_258_118_400

REQUIRED: dict[str, dict[str, str]] = {
    ITEMS_FILE: {ITEM_ID: _ID},
    INTERACTIONS_FILE: {USER_ID: _ID, ITEM_ID: _ID, TIMESTAMP: _TIME, ACTION: _TEXT},
    IMPRESSIONS_FILE: {USER_ID: _ID, ITEM_ID: _ID, TIMESTAMP: _TIME, LABEL: _BINARY},
}


def read_parquet(
    where: Path | Location, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read a Parquet file, a folder of them, or a partitioned folder.

    Args:
        where: path or URI.
        columns: to read; all, too, where one of them is missing: `check` names it.

    Raises:
        UserError: the path is missing or not readable as Parquet.
    """
    location = Location.of(where)
    if not location.exists():
        raise UserError(f"{location}: no such file; the data set needs it")
    try:
        dataset = open_parquet(location)
        has_all = columns is not None and set(columns) <= set(dataset.schema.names)
        return dataset.to_table(columns if has_all else None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{location}: cannot be read as Parquet ({reason}); write it again"
        ) from None


def check(table: pa.Table, required: Mapping[str, str], source: str) -> pa.Table:
    """Return `table` with plain types once every required column is in order.

    Dictionary-encoded and large strings become strings, narrower integers become
    int64, and Arrow timestamps become unix seconds.

    Args:
        table: what was read.
        required: column name to kind (see `REQUIRED`).
        source: the file, for the messages.

    Raises:
        UserError: an empty table, or a column that is missing, of the wrong type
            or has nulls.
    """
    if table.num_rows == 0:
        raise UserError(f"{source}: has no rows; nothing can be done with it")
    for name, kind in required.items():
        if name not in table.column_names:
            raise UserError(
                f"{source}: column {name!r} ({kind}) is missing; "
                f"it has: {', '.join(table.column_names)}"
            )
        index = table.column_names.index(name)
        column = plain(table.column(name))
        if not _KINDS[kind](column.type):
            raise UserError(
                f"{source}: column {name!r} is {column.type}, must be {kind}; cast it"
            )
        if column.null_count:
            row = row_of(table, pc.index(column.is_null(), pa.scalar(True)).as_py())
            raise UserError(
                f"{source}: column {name!r} has {column.null_count} nulls, the first "
                f"in row {row}; drop or fill those rows"
            )
        if kind == _BINARY:
            column = _binary(column, name, table, source)
        if kind == _TIME:
            _refuse_other_units(column, name, source)
        table = table.set_column(index, name, column)
    return table


def row_of(table: pa.Table, place: int | np.integer[Any]) -> int:
    """Return which row of its data set a table's row is, for messages."""
    if ROW_NUMBER in table.column_names:
        return int(table[ROW_NUMBER][int(place)].as_py())
    return int(place)


def check_known(ids: pa.ChunkedArray, known: pa.ChunkedArray, source: str) -> None:
    """Refuse a table that names an item the item table does not have."""
    if ids.type != known.type:
        raise UserError(
            f"{source}: column {ITEM_ID!r} is {ids.type} but {known.type} in the item "
            "table; use one type for item ids"
        )
    unknown = pc.invert(pc.is_in(ids, value_set=known))
    row = pc.index(unknown, pa.scalar(True)).as_py()
    if row >= 0:
        count = pc.sum(unknown).as_py()
        raise UserError(
            f"{source}: row {row} names item {ids[row].as_py()!r}, which the item "
            f"table does not have ({count} such rows); add it there or drop the rows"
        )


def check_same_type(table: pa.Table, other: pa.Table, column: str, names: str) -> None:
    """Refuse two tables whose ids could not be joined."""
    types = table.schema.field(column).type, other.schema.field(column).type
    if types[0] != types[1]:
        raise UserError(
            f"{names}: column {column!r} is {types[0]} in one and {types[1]} in the "
            "other; use one type for ids"
        )


def check_unique(ids: pa.ChunkedArray, source: str) -> None:
    """Refuse an item table that lists an item twice."""
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field(1), 1))
    if len(repeated):
        raise UserError(
            f"{source}: item {repeated.field(0)[0].as_py()!r} appears "
            f"{repeated.field(1)[0].as_py()} times; keep one row for each item"
        )


def files_fingerprint(sources: Sequence[Path | Location]) -> str:
    """Return a digest of the content of files, or of all files of folders."""
    digest = hashlib.sha256()
    for source in sources:
        location = Location.of(source)
        for file in location.files():
            digest.update(file.path.removeprefix(location.path).encode())
            digest.update(file.digest().encode())
    return digest.hexdigest()


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without dictionaries, large strings and narrow integers.

    Arrow timestamps become unix seconds.
    """
    if pt.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pt.is_large_string(column.type) or pt.is_string_view(column.type):
        return column.cast(pa.string())
    if pt.is_timestamp(column.type):
        return column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    if pt.is_integer(column.type) and not pt.is_uint64(column.type):
        return column.cast(pa.int64())
    return column


def _refuse_other_units(column: pa.ChunkedArray, name: str, source: str) -> None:
    latest = pc.max(column).as_py()
    if latest > _YEAR_2200:
        raise UserError(
            f"{source}: column {name!r} holds {latest}, which is no time in unix "
            "seconds before 2200; milliseconds? divide by 1000"
        )


def _binary(
    column: pa.ChunkedArray, name: str, table: pa.Table, source: str
) -> pa.ChunkedArray:
    values = column.cast(pa.float32(), safe=False)
    wrong = pc.invert(pc.is_in(values, value_set=pa.array([0, 1], pa.float32())))
    row = pc.index(wrong, pa.scalar(True)).as_py()
    if row >= 0:
        raise UserError(
            f"{source}: column {name!r} is {values[row].as_py()} in row "
            f"{row_of(table, row)}, must be 0 or 1"
        )
    return values
