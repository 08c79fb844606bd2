"""Any ids, hashed to the rows of a table of fixed size."""

from typing import Literal

import numpy as np

from learn_torchrec.arrays import Int64Array
from learn_torchrec.config import configuration
from learn_torchrec.ids import hash_ids
from learn_torchrec.ranker.features.base import SizedFeature
from learn_torchrec.ranker.features.columns import FeatureColumn


@configuration
class HashedFeature(SizedFeature):
    """Integers, strings or booleans, hashed alike everywhere; ids may collide.

    Attributes:
        ids: the kind.
    """

    ids: Literal["hash"] = "hash"

    def rows_of(self, ids: FeatureColumn) -> Int64Array:
        """Return each id's hash modulo the table's rows, int64 [V]."""
        return (hash_ids(ids.ids()) % np.uint64(self.table_rows)).astype(np.int64)
