"""Our own schema on disk: Parquet files, or folders of them (`parquet:DIR`).

`items.parquet`, `interactions.parquet` and `impressions.parquet`, with the columns that
`base` lists. Each is a file, a folder of files, or a partitioned folder.
"""

import pyarrow as pa

from learn_torchrec.arrays import Int64Array
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading import tables
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    TIMESTAMP,
)


class Parquet(Dataset):
    """Tables that engines and the streaming loader read in place."""

    map_of = "parquet"

    def sources(self, table: str) -> list[Location]:
        return [self.location / table]

    def read_items(self) -> pa.Table:
        return tables.read_parquet(self.location / ITEMS_FILE)

    def read_interactions(self) -> pa.Table:
        return tables.read_parquet(self.location / INTERACTIONS_FILE)

    def read_impressions(self) -> pa.Table:
        return tables.read_parquet(self.location / IMPRESSIONS_FILE)

    def parquet(self, table: str) -> Location:
        return self.location / table

    @property
    def times(self) -> Int64Array:
        """Times of all interactions, read alone unless the table is in memory."""
        if "_log" in vars(self):
            return super().times
        times: Int64Array = self._alone(INTERACTIONS_FILE, TIMESTAMP).to_numpy()
        return times

    @property
    def item_ids(self) -> pa.ChunkedArray:
        """The ids of the item table, read alone unless it is in memory."""
        if "items" in vars(self):
            return super().item_ids
        return self._alone(ITEMS_FILE, ITEM_ID)

    def _alone(self, table: str, name: str) -> pa.ChunkedArray:
        read = tables.read_parquet(self.location / table, [name])
        return self.check(table, read, [name])[name]
