"""Online Retail II (UCI): two years of purchases from a wholesaler of gifts.

A Parquet file (or a folder of them) of invoice lines: `InvoiceDate`, `StockCode`,
`Description`, `Quantity` and `CustomerID`. A line with a customer and a positive
quantity is a purchase; an item's title is its most frequent description.
Data: CC BY 4.0 (Chen, 2012).
"""

import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading import tables
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import SUFFIXES
from learn_torchrec.errors import require_columns
from learn_torchrec.schema import ACTION, ITEM_ID, TIMESTAMP, TITLE, USER_ID

BUY = "buy"
_CODE, _TITLE, _CUSTOMER = "StockCode", "Description", "CustomerID"
_LINE = ("InvoiceDate", "Quantity", _CODE, _TITLE, _CUSTOMER)


class OnlineRetail(Dataset):
    """Purchases with times; an invoice is a basket without an order."""

    def sources(self, table: str) -> list[Location]:
        return self.location.files(*SUFFIXES)

    def _read_lines(self) -> pa.Table:
        lines = tables.read_parquet(self.location)
        require_columns(lines.column_names, _LINE, self.location)
        return lines.filter(
            pc.and_(pc.greater(lines["Quantity"], 0), pc.is_valid(lines[_CUSTOMER]))
        )

    def read_items(self) -> pa.Table:
        lines = self._read_lines().select([_CODE, _TITLE]).drop_null()
        titles = pc.utf8_trim_whitespace(lines[_TITLE])
        counted = (
            pa.table({_CODE: lines[_CODE], _TITLE: titles})
            .group_by([_CODE, _TITLE])
            .aggregate([([], "count_all")])
            # Ties go to the first title in the alphabet, in every run.
            .sort_by(
                [
                    (_CODE, "ascending"),
                    ("count_all", "descending"),
                    (_TITLE, "ascending"),
                ]
            )
        )
        first = counted.group_by(_CODE, use_threads=False).aggregate(
            [(_TITLE, "first")]
        )
        return pa.table({ITEM_ID: first[_CODE], TITLE: first[f"{_TITLE}_first"]})

    def read_interactions(self) -> pa.Table:
        lines = self._read_lines()
        return pa.table(
            {
                USER_ID: lines[_CUSTOMER].cast(pa.int64()),
                ITEM_ID: lines[_CODE],
                TIMESTAMP: lines["InvoiceDate"],
                ACTION: pa.repeat(BUY, lines.num_rows),
            }
        )
