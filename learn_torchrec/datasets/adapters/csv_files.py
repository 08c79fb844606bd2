"""CSV files as people save them.

Quoted texts may hold line breaks. Ids are read as strings: `007` is not 7, and
`0439358078` is a product beside `B00X4WHP5E`. They become integers only if every value
of the column, in all files of the data set, is written as an integer.
"""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from learn_torchrec.datasets.adapters.text_files import UTF_8
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError, first_line

_INTEGER = r"^(0|-?[1-9][0-9]*)$"
# How programs write a missing integer.
_MISSING = pa.array(["", "NULL", "null", "NA", "N/A", "n/a", "NaN", "nan", r"\N"])
# A text may fill a block, and the other columns' types are inferred from the first.
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file's delimiter, one character, and its encoding, as Python names it."""

    delimiter: str = ","
    encoding: str = UTF_8


def read(location: Location, form: Format, texts: Collection[str]) -> pa.Table:
    """Read a file, or a folder of files with the same columns.

    Args:
        location: of the file or folder.
        form: of the files.
        texts: columns to read as strings if present; other types are inferred.

    Raises:
        UserError: no such file, or not CSV in that format.
    """
    kinds = pv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
    with _one_line(location):
        parts = [
            pv.read_csv(file.open(), convert_options=kinds, **_format(form))
            for file in location.files()
        ]
        return pa.concat_tables(parts, promote_options="permissive")


def integer_columns(
    location: Location, form: Format, columns: Collection[str]
) -> set[str]:
    """Return the columns that hold nothing but integers, or are absent.

    Raises:
        UserError: see `read`.
    """
    found = set(columns)
    for file in location.files():
        kinds = pv.ConvertOptions(
            column_types=dict.fromkeys(found, pa.string()),
            include_columns=sorted(found),
            include_missing_columns=True,
        )
        with _one_line(file):
            reader = pv.open_csv(file.open(), convert_options=kinds, **_format(form))
            for batch in reader:
                found = {name for name in found if _are_integers(batch[name])}
                if not found:
                    return found
    return found


def as_ids(ids: pa.ChunkedArray, *, integers: bool) -> pa.ChunkedArray:
    """Return ids that were read as strings, as int64 or unchanged; "" is null."""
    missing = _MISSING if integers else _MISSING.slice(0, 1)
    present = pc.if_else(pc.is_in(ids, value_set=missing), None, ids)
    return present.cast(pa.int64()) if integers else present


def _are_integers(values: pa.Array) -> bool:
    present = values.filter(pc.invert(pc.is_in(values, value_set=_MISSING)))
    if not pc.all(pc.match_substring_regex(present, _INTEGER), min_count=0).as_py():
        return False
    try:
        present.cast(pa.int64())
    except pa.ArrowInvalid:  # more digits than int64 has
        return False
    return True


def _format(form: Format) -> dict[str, Any]:
    encoding = "utf8" if form.encoding == UTF_8 else form.encoding
    return {
        "parse_options": pv.ParseOptions(
            delimiter=form.delimiter, newlines_in_values=True
        ),
        "read_options": pv.ReadOptions(encoding=encoding, block_size=_BLOCK_BYTES),
    }


@contextlib.contextmanager
def _one_line(location: Location) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = first_line(error)
        fix = "; give encoding, e.g. encoding=latin-1" if "UTF" in reason else ""
        raise UserError(f"{location}: cannot be read as CSV ({reason}){fix}") from None
