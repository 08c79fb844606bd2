"""MovieLens-100K from the atomic files that the `recbole` wheel ships.

A rating of 4 or 5 is a conversion. Licence of the data: GroupLens, research use.
"""

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.ratings import DISLIKE, LIKE, likes
from learn_torchrec.datasets.adapters.recbole import read_atomic
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError, first_line, require_columns
from learn_torchrec.schema import (
    ACTION,
    ATTRIBUTES,
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

_WORDS = pa.list_(pa.string())
_ITEMS = {
    ITEM_ID: pa.int64(),
    "movie_title": _WORDS,
    "release_year": pa.string(),
    "class": _WORDS,
}
_RATINGS = {
    USER_ID: pa.int64(),
    ITEM_ID: pa.int64(),
    "rating": pa.float64(),
    TIMESTAMP: pa.int64(),
}
_USERS = {
    USER_ID: pa.int64(),
    "age": pa.int64(),
    "gender": pa.string(),
    "occupation": pa.string(),
}


class MovieLens100K(Dataset):
    """MovieLens-100K; `auto` finds the copy inside the installed `recbole` wheel."""

    def __init__(self, path: str) -> None:
        super().__init__(_wheel_directory() if path == "auto" else path)

    def sources(self, table: str) -> list[Location]:
        suffixes = {
            ITEMS_FILE: ("item",),
            INTERACTIONS_FILE: ("inter",),
            IMPRESSIONS_FILE: ("inter", "user"),
        }
        return [self._atomic(suffix) for suffix in suffixes[table]]

    def _atomic(self, suffix: str) -> Location:
        fix = "name a folder with MovieLens-100K in RecBole's atomic format"
        return self.only_file(f".{suffix}", fix)

    def _columns(self, suffix: str, kinds: Mapping[str, pa.DataType]) -> pa.Table:
        """Read MovieLens-100K's columns of an atomic file.

        Raises:
            UserError: one is missing or of another type.
        """
        path = self._atomic(suffix)
        fix = f"for other data than MovieLens-100K, use --data recbole:{self.location}"
        table = read_atomic(path)
        require_columns(table.column_names, kinds, path, fix)
        columns = {}
        for name, kind in kinds.items():
            try:
                columns[name] = table[name].cast(kind)
            except pa.ArrowException as error:
                reason = first_line(error)
                raise UserError(f"{path}: column {name!r}: {reason}; {fix}") from None
        return pa.table(columns)

    def read_items(self) -> pa.Table:
        movies = self._columns("item", _ITEMS)
        year = movies["release_year"]
        released = pc.if_else(
            pc.is_in(year, value_set=pa.array(["", None])),
            pa.scalar(None, pa.string()),
            pc.binary_join_element_wise("released in", year, " "),
        )
        return pa.table(
            {
                ITEM_ID: movies[ITEM_ID],
                TITLE: pc.binary_join(movies["movie_title"], " "),
                CATEGORY: pc.binary_join(movies["class"], ", "),
                ATTRIBUTES: released,
                "genres": movies["class"],
                "release_year": year,
            }
        )

    @functools.cached_property
    def _ratings(self) -> pa.Table:
        ratings = self._columns("inter", _RATINGS)
        labels = likes(ratings["rating"]).cast(pa.int64())
        ratings = ratings.drop_columns(["rating"]).append_column(LABEL, labels)
        return ratings.sort_by([(TIMESTAMP, "ascending"), (USER_ID, "ascending")])

    def read_interactions(self) -> pa.Table:
        action = pc.if_else(pc.equal(self._ratings[LABEL], 1), LIKE, DISLIKE)
        return self._ratings.drop_columns([LABEL]).append_column(ACTION, action)

    def read_impressions(self) -> pa.Table:
        ratings, users = self._ratings, self._columns("user", _USERS)
        user_row = pc.index_in(ratings[USER_ID], users[USER_ID])
        for name in ("age", "gender", "occupation"):
            ratings = ratings.append_column(name, users[name].take(user_row))
        return ratings


def _wheel_directory() -> Path:
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise UserError(
            "--data movielens:auto: the recbole wheel, which carries MovieLens-100K, "
            "is not installed; run: pip install --no-deps recbole==1.2.1"
        )
    return Path(spec.origin).parent / "dataset_example" / "ml-100k"
