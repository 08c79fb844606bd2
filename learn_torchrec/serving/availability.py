"""Which items may be recommended: a file of ids that a shop writes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.arrays import BoolArray
from learn_torchrec.errors import (
    UserError,
    first_line,
    refuse_special,
    require_columns,
)
from learn_torchrec.ids import UNKNOWN, IdIndex, as_ids, is_text, refuse_other_type
from learn_torchrec.page_checksums import VERIFIED
from learn_torchrec.schema import ITEM_ID


def read_available(path: Path, index: IdIndex) -> BoolArray:
    """Return which items of an index [I] a file names, bool [I].

    The file is text with an id a line, or Parquet with the column `item_id`.

    Raises:
        UserError: the file cannot be read, has ids of another type, or names no item of
            the index.
    """
    refuse_special(path)
    try:
        is_parquet = path.suffix == ".parquet"
        ids = _of_parquet(path) if is_parquet else _of_text(path, index)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise UserError(
            f"--available {path}: cannot be read ({first_line(error)}); name a text "
            "file with an id a line, or Parquet"
        ) from None
    refuse_other_type(ids, index.type, f"--available {path}", "the items")
    rows = index.rows_of(ids)
    result = np.zeros(len(index), bool)
    result[rows[rows != UNKNOWN]] = True
    if not result.any():
        raise UserError(
            f"--available {path}: none of its {len(ids)} ids is an item with a vector; "
            "name the ids as the items have them"
        )
    return result


def _of_parquet(path: Path) -> pa.Array:
    table = pq.read_table(path, **VERIFIED)
    require_columns(table.column_names, [ITEM_ID], path)
    return as_ids(table[ITEM_ID], f"{path}: {ITEM_ID}")


def _of_text(path: Path, index: IdIndex) -> pa.Array:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    kept = pa.array([line for line in lines if line], pa.large_string())
    if is_text(index.type):
        return kept
    try:
        return kept.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise UserError(
            f"--available {path}: {first_line(error)}; the items' ids are int64"
        ) from None
