"""Codes of content vectors as ID features, looked up by item.

`content_code_1`, `content_code_2`, ... are the codes of each level. A code refines
those before it, so several levels can be one id: `content_code_1_2` is the pair.

Letters: N rows, L levels, K codes of a level.
"""

import re
from dataclasses import dataclass

import pyarrow as pa

from learn_torchrec.config import replace
from learn_torchrec.content.codes import ContentCodes, joined
from learn_torchrec.ids import UNKNOWN, as_ids, refuse_other_type
from learn_torchrec.ranker.features import FeaturesConfig, SparseFeature
from learn_torchrec.ranker.features.hashed import HashedFeature
from learn_torchrec.ranker.features.indexed import IndexedFeature
from learn_torchrec.schema import ITEM_ID

_PREFIX = "content_code"
_COLUMN = re.compile(rf"{_PREFIX}(_[1-9]\d?)+")
_MOST_ROWS = 2**20  # of a derived table


def is_code_column(name: str) -> bool:
    """Whether a column has the name of codes, whatever levels there are."""
    return _COLUMN.fullmatch(name) is not None


@dataclass(frozen=True)
class CodeColumns:
    """Codes by the names of columns; picklable.

    Attributes:
        codes: of the items.
        names: of the columns to add.
    """

    codes: ContentCodes
    names: tuple[str, ...] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """The column of each level."""
        return tuple(f"{_PREFIX}_{n}" for n in range(1, self.codes.levels + 1))

    def __contains__(self, name: str) -> bool:
        levels, known = _levels(name), self.codes.levels
        ascend = levels == sorted(set(levels))
        return is_code_column(name) and ascend and levels[-1] < known

    def add_to(self, table: pa.Table, source: str) -> pa.Table:
        """Return a table with the codes of each row's item; null if it has none.

        Raises:
            UserError: item ids of another type than those of the codes.
        """
        name = f"{source}: column {ITEM_ID!r}"
        wanted = as_ids(table[ITEM_ID], name)
        refuse_other_type(wanted, self.codes.index.type, name, "the codes")
        rows = self.codes.index.rows_of(wanted)
        found = self.codes.codes[rows]
        for column in self.names:
            ids = joined(found[:, _levels(column)], self.codes.size)
            ids = pa.array(ids, mask=rows == UNKNOWN)
            table = table.append_column(column, ids)
        return table

    def add_features(self, features: FeaturesConfig) -> FeaturesConfig:
        """Return features with codes: every level, unless some column is named.

        Named columns get a table with a row for each id, if they leave that open.
        """
        if not self.among(features):
            added = map(self._feature, self.levels)
            return replace(features, sparse=(*features.sparse, *added))
        return replace(features, sparse=tuple(map(self._completed, features.sparse)))

    def among(self, features: FeaturesConfig) -> list[SparseFeature]:
        """Return the features that read codes."""
        return [feature for feature in features.sparse if feature.column in self]

    def _completed(self, feature: SparseFeature) -> SparseFeature:
        is_open = isinstance(feature, HashedFeature) and not feature.num_embeddings
        if is_open and feature.column in self:
            return self._feature(feature.column, feature.name)
        return feature

    def _feature(self, column: str, name: str = "") -> SparseFeature:
        rows = self.codes.size ** len(_levels(column))
        kind = IndexedFeature if rows <= _MOST_ROWS else HashedFeature
        return kind(column=column, name=name, num_embeddings=min(rows, _MOST_ROWS))


def _levels(column: str) -> list[int]:
    """Return the levels, from 0, that a column joins."""
    return [int(level) - 1 for level in re.findall(r"\d+", column)]
