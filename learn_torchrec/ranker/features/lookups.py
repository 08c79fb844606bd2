"""Features that are not in the impressions: item columns, codes, past counts and rates.

A feature's column is looked for in the impressions, then among the codes of content
vectors, then in the catalogue, then among the past counts and rates. What the
impressions lack is added to them where rows are encoded, piece by piece.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import pyarrow as pa

from learn_torchrec.arrays import Float32Array, taken
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN, IdIndex, as_ids, refuse_other_type
from learn_torchrec.ranker.features import FeaturesConfig
from learn_torchrec.ranker.features.codes import CodeColumns, is_code_column
from learn_torchrec.ranker.features.past import PastColumn, past_columns, read_past
from learn_torchrec.ranker.tasks import TaskConfig
from learn_torchrec.schema import IMPRESSIONS_FILE, ITEM_ID, ITEMS_FILE

_COLUMNS_FILE = "columns.arrow"


class ItemColumns:
    """Columns of the catalogue, found by item id.

    Args:
        items: `ITEM_ID`, each id once, and other columns; in memory.
        name: of the table, for messages.
        index: of the ids, where there is one already.
    """

    def __init__(
        self, items: pa.Table, name: str, index: IdIndex | None = None
    ) -> None:
        self.name, self._table = name, items.drop_columns([ITEM_ID])
        self._index = index or IdIndex.build(
            items[ITEM_ID], f"{name}: column {ITEM_ID!r}"
        )

    def write(self, directory: Path) -> None:
        """Write the columns and the index of the ids into a new directory."""
        directory.mkdir(parents=True)
        self._index.write(directory)
        with pa.ipc.new_file(str(directory / _COLUMNS_FILE), self._table.schema) as out:
            out.write_table(self._table)

    @classmethod
    def open(cls, directory: Path, name: str) -> Self:
        """Map the files of `write`.

        Raises:
            OSError: a file is missing; ValueError, ArrowInvalid: damaged.
        """
        index = IdIndex.open(directory)
        mapped = pa.memory_map(str(directory / _COLUMNS_FILE))
        table = pa.ipc.open_file(mapped).read_all()
        return cls(table.append_column(ITEM_ID, index.ids), name, index)

    def add_to(self, table: pa.Table, source: str) -> pa.Table:
        """Return a table with the columns of each row's item; null if it is unknown.

        Raises:
            UserError: item ids of another type than the catalogue's.
        """
        name = f"{source}: column {ITEM_ID!r}"
        wanted = as_ids(table[ITEM_ID], name)
        refuse_other_type(wanted, self._index.type, name, self.name)
        rows = self._index.rows_of(wanted)
        found = taken(self._table, pa.array(rows, mask=rows == UNKNOWN))
        for field in found.schema:
            table = table.append_column(field.name, found[field.name])
        return table


class Past(Protocol):
    """A past count or rate: `PastValues`, `PastPairs`, or what serving knows."""

    @property
    def column(self) -> PastColumn:
        """The column that it adds."""

    def of(self, table: pa.Table, /) -> Float32Array:
        """Return the column's values for checked impressions, float32 [N]."""


@dataclass(frozen=True)
class Lookups:
    """What is added to impressions before they are encoded; picklable.

    Attributes:
        items: columns of the catalogue; None without any.
        past: past counts and rates.
        codes: of content vectors; None without any.
    """

    items: ItemColumns | None = None
    past: Sequence[Past] = ()
    codes: CodeColumns | ItemColumns | None = None

    def add_to(self, table: pa.Table, source: str) -> pa.Table:
        """Return checked impressions with the added columns.

        Raises:
            UserError: ids of another type than the catalogue's, the codes' or the
                log's.
        """
        for part in (self.items, self.codes):
            if part is not None:
                table = part.add_to(table, source)
        for past in self.past:
            table = table.append_column(past.column.name, pa.array(past.of(table)))
        return table


@dataclass(frozen=True)
class Origins:
    """Where the columns of the features come from."""

    impressions: tuple[str, ...]
    items: tuple[str, ...]
    past: tuple[PastColumn, ...]
    codes: tuple[str, ...] = ()

    @property
    def reads_items(self) -> bool:
        """Whether a column needs the catalogue, whose values counts may share."""
        return bool(self.items) or any(column.shared for column in self.past)

    @property
    def added(self) -> frozenset[str]:
        """The columns that the impressions lack."""
        past = (column.name for column in self.past)
        return frozenset([*self.items, *self.codes, *past])


def find_columns(
    dataset: Dataset,
    features: FeaturesConfig,
    tasks: Sequence[TaskConfig],
    codes: CodeColumns | None = None,
) -> Origins:
    """Return where the features' columns come from; reads no rows of `parquet:` data.

    Raises:
        UserError: a column is nowhere; names those that exist, and the closest.
    """
    here = dataset.schema(IMPRESSIONS_FILE).names
    absent = [name for name in features.columns if name not in here]
    coded = tuple(name for name in absent if codes is not None and name in codes)
    wanted = [name for name in absent if name not in coded]
    past, known = past_columns(tasks), ()
    if any(name not in past for name in wanted):
        known = dataset.schema(ITEMS_FILE).names
        past = past_columns(tasks, known)
    for name in wanted:
        if name not in past and name not in known:
            raise _unknown(dataset, name, features, [*past], codes)
    return Origins(
        impressions=tuple(name for name in features.columns if name in here),
        items=tuple(name for name in wanted if name in known),
        past=tuple(past[name] for name in wanted if name not in known),
        codes=coded,
    )


def open_lookups(
    dataset: Dataset,
    features: FeaturesConfig,
    tasks: Sequence[TaskConfig],
    actions: Sequence[str],
    codes: CodeColumns | None = None,
) -> Lookups:
    """Read what the features need beside the impressions.

    Args:
        dataset: the data.
        features: the columns.
        tasks: whose labels' rates may be among them.
        actions: of the interactions that past counts count.
        codes: of content vectors, if any.

    Raises:
        UserError: see `find_columns`; a bad catalogue or log.
    """
    origins = find_columns(dataset, features, tasks, codes)
    if codes is not None:
        codes = replace(codes, names=origins.codes) if origins.codes else None
    items = None
    if origins.items:
        table = dataset.columns(ITEMS_FILE, [ITEM_ID, *origins.items])
        name = dataset.name(ITEMS_FILE)
        table = dataset.tolerance.one_row_each(dataset.check(ITEMS_FILE, table), name)
        items = ItemColumns(table, name)
    return Lookups(items, read_past(dataset, origins.past, actions), codes)


def _unknown(
    dataset: Dataset,
    name: str,
    features: FeaturesConfig,
    past: Sequence[str],
    codes: CodeColumns | None,
) -> UserError:
    in_sparse = any(name in feature.columns for feature in features.sparse)
    here, items = (
        [column for column in dataset.schema(table).names if column != ITEM_ID]
        for table in (IMPRESSIONS_FILE, ITEMS_FILE)
    )
    close = difflib.get_close_matches(name, [*here, *items, *past], n=1)
    hint = f"did you mean {close[0]!r}?" if close else "name one that exists"
    if is_code_column(name):
        hint = "codes of content are read with --codes DIR, see encode-codes"
        if codes is not None:
            hint = f"--codes has {', '.join(codes.levels)}, which can be joined"
    return UserError(
        f"ranker.features.{'sparse' if in_sparse else 'dense'}: no column {name!r}; "
        f"the impressions have {', '.join([ITEM_ID, *here])}; the catalogue has "
        f"{', '.join(items) or 'none besides'}; computed are {', '.join(past)}; {hint}"
    )
