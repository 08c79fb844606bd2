"""Rows that cannot be used: left out and said so, or refused. One rule for all data.

What a stage can do without is left out with one sentence that counts and names it, and
`--strict` refuses it. What looks like a mistake is refused always: most rows are
unusable, or a value that is there is wrong.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER
from learn_torchrec.datasets.loading.tables import row_of
from learn_torchrec.datasets.loading.time_range import Lacking, lacking_rows
from learn_torchrec.datasets.sequences import ItemRows
from learn_torchrec.errors import UserError
from learn_torchrec.schema import ITEM_ID

logger = logging.getLogger(__name__)

_NAMED = 3  # ids in a message


@dataclass(kw_only=True)
class Tolerance:
    """The policy of a data set, and what it has left out.

    Attributes:
        strict: refuse every row that would be left out.
        sentences: said so far, one for each kind of rows.
    """

    strict: bool = False
    sentences: list[str] = field(default_factory=list)

    def __call__(self, count: int, total: int, what: str, fix: str = "") -> None:
        """Say that rows are left out, or refuse them.

        Args:
            count: of the rows.
            total: rows of the table, including them.
            what: the sentence: file, number of rows, what is wrong, which.
            fix: for the message that refuses most rows of a table; "" where that is no
                mistake.

        Raises:
            UserError: the policy is strict, or most rows would be left out.
        """
        if not count:
            return
        if self.strict:
            raise UserError(f"{what}; correct them, or leave them out without --strict")
        if fix and 2 * count > total:
            raise UserError(f"{what}; too many to leave out: {fix}")
        if what not in self.sentences:
            self.sentences.append(what)
            logger.warning("%s; left out", what)

    def lacking(self, name: str, rows: Lacking, kept: int) -> None:
        """Leave out rows of the file `name` that lack a value; `kept` rows have all.

        Most rows may, as in a log with events of anonymous users, but not all.
        """
        total = kept + sum(count for count, _ in rows.values())
        fix = "" if kept else "fill the column, or name another"
        for column, (count, row) in rows.items():
            what = f"{count} of {total} rows have no {column}, the first is row {row}"
            self(count, total, f"{name}: {what}", fix)

    def unknown(
        self, name: str, items: str, ids: pa.ChunkedArray, count: int, total: int
    ) -> None:
        """Leave out `count` events with `ids` that the file `items` lacks."""
        self(
            count,
            total,
            f"{name}: {count} of {total} events are of items that {items} lacks: "
            f"{name_ids(ids)}",
            "add the items, or write ids alike in both files",
        )

    def without_content(
        self,
        name: str,
        store: ItemRows,
        ids: pa.ChunkedArray,
        count: int,
        total: int,
    ) -> None:
        """Leave out `count` events with `ids` that a content store lacks."""
        self(
            count,
            total,
            f"{name}: {count} of {total} events are of items without a content vector "
            f"in {store.directory} (they have no text, or are newer): {name_ids(ids)}",
            "give these items a text, and encode the items again",
        )

    def without_text(self, name: str, ids: pa.ChunkedArray, total: int) -> None:
        """Leave out the items `ids` of the file `name`, which have no text.

        All may not lack one.
        """
        fix = "fill a column of texts, or name one in content.prompt.template"
        self(
            len(ids),
            total,
            f"{name}: {len(ids)} of {total} items have no text and get no content "
            f"vector: {name_ids(ids)}",
            fix if len(ids) == total else "",
        )

    def complete(
        self, table: pa.Table, columns: Collection[str], name: str
    ) -> pa.Table:
        """Return the rows of a table that have a value in all of these columns.

        If any are left out, the others have a column `ROW_NUMBER`. Columns that the
        table does not have are skipped.
        """
        keep, lacking = lacking_rows(table, columns)
        if not lacking:
            return table
        rows = {n: (count, row_of(table, row)) for n, (count, row) in lacking.items()}
        self.lacking(name, rows, int(keep.sum()))
        if ROW_NUMBER not in table.column_names:
            numbers = pa.array(np.arange(table.num_rows))
            table = table.append_column(ROW_NUMBER, numbers)
        return table.filter(pa.array(keep))

    def one_row_each(self, items: pa.Table, name: str) -> pa.Table:
        """Return a checked item table with the first row of every item."""
        ids = items[ITEM_ID].combine_chunks()
        codes = ids.dictionary_encode().indices.to_numpy()  # by first appearance
        _, firsts = np.unique(codes, return_index=True)
        repeated = np.setdiff1d(np.arange(len(ids)), firsts)
        if not len(repeated):
            return items
        rows, first_rows = (
            items.take(pa.array(places)).to_pylist()
            for places in (repeated, firsts[codes[repeated]])
        )
        changed = sum(a != b for a, b in zip(rows, first_rows, strict=True))
        self(
            len(repeated),
            len(ids),
            f"{name}: {len(repeated)} of {len(ids)} rows repeat the {ITEM_ID} of an "
            f"earlier row, {changed} of them with other values: "
            f"{name_ids(ids.take(pa.array(repeated)))}",
        )
        return items.take(pa.array(firsts))


def name_ids(ids: pa.Array | pa.ChunkedArray) -> str:
    """Return the first few distinct ids, and how many more there are."""
    distinct = ids.unique()
    names = ", ".join(repr(one) for one in distinct[:_NAMED].to_pylist())
    more = len(distinct) - _NAMED
    return f"{names} and {more} more" if more > 0 else names
