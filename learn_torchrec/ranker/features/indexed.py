"""Integers that are already rows of a table."""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from learn_torchrec.arrays import Int64Array
from learn_torchrec.config import configuration
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.features.base import SizedFeature
from learn_torchrec.ranker.features.columns import FeatureColumn


@configuration
class IndexedFeature(SizedFeature):
    """Integers from 0; ids outside the table are dropped and counted.

    Attributes:
        ids: the kind.
    """

    may_drop_ids: ClassVar[bool] = True
    may_grow: ClassVar[bool] = True

    ids: Literal["index"] = "index"

    def rows_of(self, ids: FeatureColumn) -> Int64Array:
        """Return the ids, int64 [V]; -1 for those outside the table."""
        if not pt.is_integer(ids.values.type) or pt.is_uint64(ids.values.type):
            raise UserError(
                f"{ids.source}: column {ids.name!r} is {ids.values.type}; ids of the "
                "kind 'index' must be int64: convert it, or use the kind 'hash'"
            )
        rows = ids.values.cast(pa.int64()).to_numpy()
        return np.where((rows >= 0) & (rows < self.table_rows), rows, -1)
