"""Our own schema on disk: Parquet files, or folders of them (`parquet:DIR`).

`items.parquet`, `interactions.parquet` and `impressions.parquet`, with the columns that
`base` lists. Each is a file, a folder of files, or a partitioned folder.
"""

import pyarrow as pa

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading import tables
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.schema import IMPRESSIONS_FILE, INTERACTIONS_FILE, ITEMS_FILE


class Parquet(Dataset):
    """Tables that engines and the streaming loader read in place."""

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

    def column(self, table: str, name: str) -> pa.ChunkedArray:
        """Return one checked column, read alone unless the table is in memory."""
        if table.removesuffix(".parquet") in vars(self):
            return super().column(table, name)
        read = tables.read_parquet(self.location / table, [name])
        return self.check(table, read, {name: tables.REQUIRED[table][name]})[name]
