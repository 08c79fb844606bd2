"""MovieLens in its published form: the folders of 100K, 1M, 10M, 20M and 25M.

| folder | ratings | movies | users |
|---|---|---|---|
| ml-100k | u.data, tabs | u.item, genre flags | u.user |
| ml-1m, ml-10m | ratings.dat, `::` | movies.dat | users.dat (1M) |
| ml-20m, ml-25m | ratings.csv | movies.csv | - |

A rating of 4 or 5 is a like, any other a dislike. Licence of the data: GroupLens,
research use.
"""

import io
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.ratings import DISLIKE, LIKE, likes
from learn_torchrec.datasets.adapters.text_files import UTF_8
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError, first_line
from learn_torchrec.schema import (
    ACTION,
    ATTRIBUTES,
    CATEGORY,
    ITEM_ID,
    ITEMS_FILE,
    LABEL,
    TIMESTAMP,
    TITLE,
    USER_ID,
)

_RATING = "rating"
_YEAR = re.compile(r"^(.*?)\s*\((\d{4})[^)]*\)\s*$")
# The genre flags of u.item, in their order.
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The file format of a release."""

    ratings: str
    movies: str
    separator: str
    has_header: bool = False


_LAYOUTS = (
    _Layout(ratings="u.data", movies="u.item", separator="\t"),
    _Layout(ratings="ratings.dat", movies="movies.dat", separator="::"),
    _Layout(ratings="ratings.csv", movies="movies.csv", separator=",", has_header=True),
)


class MovieLens(Dataset):
    """A release's folder. An impression is a rating, labelled 1 if it is a like."""

    @property
    def _layout(self) -> _Layout:
        for layout in _LAYOUTS:
            if (self.location / layout.ratings).exists():
                return layout
        raise UserError(
            f"{self.location}: has none of "
            + ", ".join(layout.ratings for layout in _LAYOUTS)
            + "; name a folder with a MovieLens release"
        )

    def sources(self, table: str) -> list[Location]:
        layout = self._layout
        name = layout.movies if table == ITEMS_FILE else layout.ratings
        return [self.location / name]

    def read_interactions(self) -> pa.Table:
        events, liked = self._read_ratings()
        return events.append_column(ACTION, pc.if_else(liked, LIKE, DISLIKE))

    def read_impressions(self) -> pa.Table:
        events, liked = self._read_ratings()
        return events.append_column(LABEL, liked.cast(pa.int64()))

    def _read_ratings(self) -> tuple[pa.Table, pa.ChunkedArray]:
        """Return the events in time order, and which of them are likes."""
        layout = self._layout
        names = [USER_ID, ITEM_ID, _RATING, TIMESTAMP]
        kinds = [pa.int64(), pa.int64(), pa.float64(), pa.int64()]
        table = _read_separated(
            self.location / layout.ratings, layout, dict(zip(names, kinds, strict=True))
        )
        table = table.sort_by([(TIMESTAMP, "ascending"), (USER_ID, "ascending")])
        return table.drop_columns([_RATING]), likes(table[_RATING])

    def read_items(self) -> pa.Table:
        layout = self._layout
        location = self.location / layout.movies
        if layout.movies == "u.item":
            lines = _text(location).splitlines()
            rows = [_flagged(line, location) for line in lines]
        else:
            kinds = {ITEM_ID: pa.int64(), TITLE: pa.string(), CATEGORY: pa.string()}
            table = _read_separated(location, layout, kinds)
            rows = [
                (row[ITEM_ID], row[TITLE], row[CATEGORY].replace("|", ", "))
                for row in table.to_pylist()
            ]
        titles = [_title_and_year(title) for _, title, _ in rows]
        return pa.table(
            {
                ITEM_ID: pa.array([id_ for id_, _, _ in rows], pa.int64()),
                TITLE: [title for title, _ in titles],
                CATEGORY: [_genres(genres) for _, _, genres in rows],
                ATTRIBUTES: [year and f"released in {year}" for _, year in titles],
            }
        )


def _read_separated(
    location: Location, layout: _Layout, kinds: dict[str, pa.DataType]
) -> pa.Table:
    """Read a delimited file whose columns are `kinds`, whatever its header says."""
    stream, delimiter = location.open(), layout.separator
    if len(delimiter) > 1:  # Arrow takes one character: one that no title has
        delimiter = "\x1f"
        text = _text(location).replace(layout.separator, delimiter)
        stream = io.BytesIO(text.encode())
    try:
        return pv.read_csv(
            stream,
            read_options=pv.ReadOptions(
                column_names=list(kinds), skip_rows=int(layout.has_header)
            ),
            parse_options=pv.ParseOptions(
                delimiter=delimiter, quote_char='"' if layout.has_header else False
            ),
            convert_options=pv.ConvertOptions(
                column_types=kinds, strings_can_be_null=False
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{location}: cannot be read ({first_line(error)})") from None


def _text(location: Location) -> str:
    """Return the text of a file: 10M is UTF-8, and 100K and 1M are latin-1."""
    body: bytes = location.open().read()
    try:
        return body.decode(UTF_8)
    except UnicodeDecodeError:
        return body.decode("latin-1")


def _flagged(line: str, location: Location) -> tuple[int, str, str]:
    """Read a line of u.item: id, title, dates, address, and a flag for each genre."""
    fields = line.split("|")
    if len(fields) != 5 + len(_GENRES) or not fields[0].isdigit():
        raise UserError(f"{location}: {line[:40]!r} is not a line of u.item")
    genres = [g for g, flag in zip(_GENRES, fields[5:], strict=True) if flag == "1"]
    return int(fields[0]), fields[1], ", ".join(genres)


def _title_and_year(title: str) -> tuple[str, str | None]:
    """Split `Matrix, The (1999)` into `The Matrix` and `1999`."""
    match = _YEAR.match(title)
    name, year = match.groups() if match else (title.strip(), None)
    for article in ("The", "A", "An"):
        if name.endswith(f", {article}"):
            name = f"{article} {name.removesuffix(f', {article}')}"
    return name, year


def _genres(text: str) -> str | None:
    return None if text in ("", "unknown", "(no genres listed)") else text
