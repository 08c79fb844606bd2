"""MovieLens-100K from RecBole's atomic files, as they ship in the `recbole` wheel.

A rating of 4 or 5 is a conversion. Licence of the data: GroupLens, research use.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from learn_torchrec.datasets import as_of
from learn_torchrec.datasets.dataset import Dataset
from learn_torchrec.errors import UserError
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

LIKE, DISLIKE = "like", "dislike"
_POSITIVE_RATING = 4


class MovieLens(Dataset):
    """MovieLens-100K; `auto` finds the copy inside the installed `recbole` wheel."""

    def __init__(self, path: str) -> None:
        super().__init__(_wheel_directory() if path == "auto" else Path(path))

    def _sources(self, file: str) -> list[Path]:
        items, ratings, users = (
            self._atomic(suffix) for suffix in ("item", "inter", "user")
        )
        return {
            ITEMS_FILE: [items],
            INTERACTIONS_FILE: [ratings],
            IMPRESSIONS_FILE: [ratings, users, items],
        }[file]

    def _name(self, file: str) -> str:
        return str(self._sources(file)[0])

    def _read(self, file: str) -> pa.Table:
        return {
            ITEMS_FILE: self._read_items,
            INTERACTIONS_FILE: self._read_interactions,
            IMPRESSIONS_FILE: self._read_impressions,
        }[file]()

    def _atomic(self, suffix: str) -> Path:
        found = sorted(self.directory.glob(f"*.{suffix}"))
        if len(found) != 1:
            raise UserError(
                f"{self.directory}: has {len(found)} *.{suffix} files, one is needed; "
                "name a folder with MovieLens-100K in RecBole's atomic format"
            )
        return found[0]

    def _read_items(self) -> pa.Table:
        movies = _read_atomic(self._atomic("item"))
        genres = pc.replace_substring(movies["class"], " ", ", ")
        year = movies["release_year"]
        released = pc.if_else(
            pc.is_in(year, value_set=pa.array(["", None])),
            pa.scalar(None, pa.string()),
            pc.binary_join_element_wise("released in", year, " "),
        )
        return pa.table(
            {
                ITEM_ID: movies[ITEM_ID].cast(pa.int64()),
                TITLE: movies["movie_title"],
                CATEGORY: genres,
                ATTRIBUTES: released,
            }
        )

    @functools.cached_property
    def _ratings(self) -> pa.Table:
        ratings = _read_atomic(self._atomic("inter"))
        ratings = pa.table(
            {
                USER_ID: ratings[USER_ID].cast(pa.int64()),
                ITEM_ID: ratings[ITEM_ID].cast(pa.int64()),
                TIMESTAMP: ratings[TIMESTAMP].cast(pa.int64()),
                LABEL: pc.greater_equal(
                    ratings["rating"].cast(pa.float32()), _POSITIVE_RATING
                ).cast(pa.int64()),
            }
        )
        return ratings.sort_by([(TIMESTAMP, "ascending"), (USER_ID, "ascending")])

    def _read_interactions(self) -> pa.Table:
        action = pc.if_else(pc.equal(self._ratings[LABEL], 1), LIKE, DISLIKE)
        return self._ratings.drop_columns([LABEL]).append_column(ACTION, action)

    def _read_impressions(self) -> pa.Table:
        ratings = self._ratings
        users = _read_atomic(self._atomic("user"))
        users = users.set_column(0, USER_ID, users[USER_ID].cast(pa.int64()))
        movies = _read_atomic(self._atomic("item"))
        movies = movies.set_column(0, ITEM_ID, movies[ITEM_ID].cast(pa.int64()))
        user_row = pc.index_in(ratings[USER_ID], users[USER_ID])
        item_row = pc.index_in(ratings[ITEM_ID], movies[ITEM_ID])
        age = pc.divide(users["age"].cast(pa.int64()).take(user_row), 10)
        table = ratings.append_column("age_decade", age.cast(pa.string()))
        for name in ("gender", "occupation"):
            table = table.append_column(name, users[name].take(user_row))
        genres = pc.split_pattern(movies["class"].take(item_row), " ")
        table = table.append_column("genres", genres)
        table = table.append_column(
            "release_year", movies["release_year"].take(item_row)
        )
        for name, values in counters(ratings).items():
            table = table.append_column(name, pa.array(values))
        return table


def counters(ratings: pa.Table) -> dict[str, np.ndarray]:
    """The features a live ranker would have: counts and rates before each row."""
    times = ratings[TIMESTAMP].to_numpy()
    labels = ratings[LABEL].to_numpy()
    result = {}
    for name, column in (("user", USER_ID), ("item", ITEM_ID)):
        events, positives = as_of.running_counts(
            ratings[column].to_numpy(), times, labels
        )
        result[f"{name}_events"] = np.log1p(events).astype(np.float32)
        # Log-odds, shrunk towards even odds: an id without events says nothing.
        odds = (positives + 1) / (events - positives + 1)
        result[f"{name}_log_odds"] = np.log(odds).astype(np.float32)
    return result


def _read_atomic(path: Path) -> pa.Table:
    """Read a RecBole atomic file: tab-separated, header fields are `name:type`."""
    with path.open() as stream:
        header = stream.readline().rstrip("\n").split("\t")
    names = [field.partition(":")[0] for field in header]
    options = pv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    return pv.read_csv(
        path,
        read_options=pv.ReadOptions(column_names=names, skip_rows=1),
        parse_options=pv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=options,
    )


def _wheel_directory() -> Path:
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise UserError(
            "--data movielens:auto: the recbole wheel, which carries MovieLens-100K, "
            "is not installed; run: pip install --no-deps recbole==1.2.1"
        )
    return Path(spec.origin).parent / "dataset_example" / "ml-100k"
