"""RecBole's atomic files of any data set (`recbole:DIR`).

`NAME.inter` and `NAME.item`, separated by tabs; a header field is `name:type` with the
types token, token_seq, float and float_seq. Ids are strings, null if empty. Ratings,
where there are any, become likes and dislikes; without times, an event's time is its
line number.
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.types as pt

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.ratings import DISLIKE, LIKE, likes
from learn_torchrec.datasets.adapters.sequence_file import INTERACTION
from learn_torchrec.datasets.adapters.text_files import text_lines
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError, first_line, require_columns
from learn_torchrec.schema import (
    ACTION,
    BRAND,
    CATEGORY,
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    LABEL,
    TIMESTAMP,
    TITLE,
    USER_ID,
)

_RENAMED = {
    "movie_title": TITLE,
    "name": TITLE,
    "class": CATEGORY,
    "genre": CATEGORY,
    "genres": CATEGORY,
    "categories": CATEGORY,
    "store": BRAND,
}
_RATING = "rating"


class RecBole(Dataset):
    """Atomic files; an impression is a row with a `label`, else a rating."""

    def sources(self, table: str) -> list[Location]:
        suffix = ".item" if table == ITEMS_FILE else ".inter"
        fix = "name a folder with a data set in RecBole's atomic format"
        return [self.only_file(suffix, fix)]

    @property
    def has_impressions(self) -> bool:
        """Whether the header names a label or a rating."""
        (source,) = self.sources(IMPRESSIONS_FILE)
        names = [name for name, _ in _header(source)]
        return LABEL in names or _RATING in names

    def read_items(self) -> pa.Table:
        (source,) = self.sources(ITEMS_FILE)
        return _as_items(read_atomic(source))

    def read_interactions(self) -> pa.Table:
        (source,) = self.sources(INTERACTIONS_FILE)
        table = read_atomic(source)
        action = pa.array([INTERACTION] * table.num_rows)
        if _RATING in table.column_names:
            action = pc.if_else(likes(table[_RATING]), LIKE, DISLIKE)
        return _events(table, source).append_column(ACTION, action)

    def read_impressions(self) -> pa.Table:
        (source,) = self.sources(IMPRESSIONS_FILE)
        table = read_atomic(source)
        if LABEL in table.column_names:
            label = table[LABEL].cast(pa.float64())
        else:
            label = likes(table[_RATING])
        return _events(table, source).append_column(LABEL, label.cast(pa.float32()))


def _as_items(table: pa.Table) -> pa.Table:
    """Rename text columns to ours and join a title's tokens."""
    names = table.column_names
    for number, name in enumerate(names):
        ours = _RENAMED.get(name, name)
        names[number] = name if ours in names else ours
    table = table.rename_columns(names)
    if TITLE in names and pt.is_list(table[TITLE].type):
        titles = pc.binary_join(table[TITLE], " ")
        table = table.set_column(names.index(TITLE), TITLE, titles)
    return table


def read_atomic(location: Location) -> pa.Table:
    """Read an atomic file; a sequence becomes a list.

    Raises:
        UserError: no such file, or a value that is not of its header's type.
    """
    fields = _header(location)
    kinds = {"float": pa.float64()}
    try:
        table = pv.read_csv(
            location.open(),
            read_options=pv.ReadOptions(
                column_names=[name for name, _ in fields], skip_rows=1
            ),
            parse_options=pv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pv.ConvertOptions(
                column_types={n: kinds.get(kind, pa.string()) for n, kind in fields}
            ),
        )
        for number, (name, kind) in enumerate(fields):
            if kind in ("token_seq", "float_seq"):
                parts = pc.split_pattern(pc.fill_null(table[name], ""), " ")
                if kind == "float_seq":
                    parts = parts.cast(pa.list_(pa.float64()))
                table = table.set_column(number, name, parts)
            elif name in (USER_ID, ITEM_ID) and kind == "token":
                ids = pc.if_else(pc.equal(table[name], ""), None, table[name])
                table = table.set_column(number, name, ids)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{location}: is not an atomic file ({first_line(error)})"
        ) from None
    return table


def _header(location: Location) -> list[tuple[str, str]]:
    """Return the names and types of the fields."""
    header = next(text_lines(location), "")
    parts = [field.strip().partition(":") for field in header.split("\t")]
    names = [name for name, _, _ in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"{location}: has column {twice[0]!r} twice; rename one of them"
        )
    return [(name, kind) for name, _, kind in parts]


def _events(table: pa.Table, source: Location) -> pa.Table:
    require_columns(table.column_names, (USER_ID, ITEM_ID), source)
    if TIMESTAMP in table.column_names:
        # Microseconds order events within a second; a double holds no more digits.
        ticks = pc.floor(pc.multiply(table[TIMESTAMP].cast(pa.float64()), 1e6))
        times = ticks.cast(pa.int64()).cast(pa.timestamp("us"))
    else:
        times = pa.array(range(table.num_rows), pa.int64())
    return pa.table(
        {USER_ID: table[USER_ID], ITEM_ID: table[ITEM_ID], TIMESTAMP: times}
    )
