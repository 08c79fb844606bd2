"""MovieLens-1M as a ranking log of its last 20 months: train, valid, test by time.

The three files share their user and film ids; a film's only text is its title.
Licence of the data: GroupLens, research use, no redistribution.
"""

import functools

import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.ratings import DISLIKE, LIKE
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.tables import read_parquet
from learn_torchrec.errors import UserError, require_columns
from learn_torchrec.schema import (
    ACTION,
    IMPRESSIONS_FILE,
    ITEM_ID,
    LABEL,
    TIMESTAMP,
    TITLE,
    USER_ID,
)

_FILES = ("train.parquet", "valid.parquet", "test.parquet")
_COLUMNS = {
    "uid": USER_ID,
    "iid": ITEM_ID,
    "timestamp": TIMESTAMP,
    "label": LABEL,
    "title": TITLE,
}


class MovieLens1M(Dataset):
    """Every row is an impression and also an interaction: a like or a dislike.

    The files' columns of liked histories are not read: they repeat earlier rows.
    """

    def sources(self, table: str) -> list[Location]:
        return [self.location / name for name in _FILES]

    @functools.cached_property
    def _rows(self) -> pa.Table:
        parts = [self._part(path) for path in self.sources(IMPRESSIONS_FILE)]
        rows = pa.concat_tables(parts, promote_options="permissive")
        return rows.sort_by([(TIMESTAMP, "ascending"), (USER_ID, "ascending")])

    def _part(self, path: Location) -> pa.Table:
        table = read_parquet(path)
        fix = "name the folder of the ranking log"
        require_columns(table.column_names, _COLUMNS, path, fix)
        return table.select(list(_COLUMNS)).rename_columns(list(_COLUMNS.values()))

    def read_items(self) -> pa.Table:
        items = self._rows.select([ITEM_ID, TITLE]).group_by([ITEM_ID, TITLE])
        table = items.aggregate([]).sort_by(ITEM_ID)
        for name, other in ((ITEM_ID, TITLE), (TITLE, ITEM_ID)):
            counts = table.group_by(name).aggregate([(other, "count")])
            twice = counts.filter(pc.greater(counts[f"{other}_count"], 1))
            if twice.num_rows:
                raise UserError(
                    f"{self.location}: {name} {twice[name][0].as_py()!r} has more "
                    f"than one {other}; use files of the same release"
                )
        return table

    def read_interactions(self) -> pa.Table:
        action = pc.if_else(pc.equal(self._rows[LABEL], 1), LIKE, DISLIKE)
        return self._rows.drop_columns([LABEL, TITLE]).append_column(ACTION, action)

    def read_impressions(self) -> pa.Table:
        return self._rows.drop_columns([TITLE])
