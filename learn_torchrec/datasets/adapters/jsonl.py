"""JSONL in our own schema (`jsonl:DIR`).

`items.jsonl`, `interactions.jsonl` and, where there are any, `impressions.jsonl`, each
perhaps gzipped (`.jsonl.gz`), with the columns that `base` lists. Ids keep their type:
`7` is an integer, `"7"` a string. Times are unix seconds.
"""

import pyarrow as pa

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.adapters.item_texts import table_of
from learn_torchrec.datasets.adapters.text_files import read_jsonl
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.schema import IMPRESSIONS_FILE, INTERACTIONS_FILE, ITEMS_FILE


class Jsonl(Dataset):
    """Three files with one JSON object per line."""

    def sources(self, table: str) -> list[Location]:
        plain = self.location / table.replace(".parquet", ".jsonl")
        zipped = self.location / f"{plain.file_name}.gz"
        return [zipped if zipped.exists() and not plain.exists() else plain]

    def read_items(self) -> pa.Table:
        return self._read(ITEMS_FILE)

    def read_interactions(self) -> pa.Table:
        return self._read(INTERACTIONS_FILE)

    def read_impressions(self) -> pa.Table:
        return self._read(IMPRESSIONS_FILE)

    def _read(self, table: str) -> pa.Table:
        (source,) = self.sources(table)
        return table_of(read_jsonl(source), source)
