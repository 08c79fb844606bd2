"""Any ids, hashed to the rows of a table of fixed size."""

from typing import Literal

import numpy as np
from pydantic import PositiveInt

from learn_torchrec.arrays import Int64Array
from learn_torchrec.config import configuration
from learn_torchrec.ids import as_ids, hash_ids
from learn_torchrec.ranker.features.base import IdFeature
from learn_torchrec.ranker.features.columns import FeatureColumn


@configuration
class HashedFeature(IdFeature):
    """Integers or strings, hashed alike in every process and version.

    Attributes:
        num_embeddings: rows of its table; ids may collide.
        ids: the kind.
    """

    num_embeddings: PositiveInt = 100_000
    ids: Literal["hash"] = "hash"

    @property
    def table_rows(self) -> int:
        """Rows of its table."""
        return self.num_embeddings

    def rows_of(self, ids: FeatureColumn) -> Int64Array:
        """Return each id's hash modulo the table's rows, int64 [V]."""
        known = as_ids(ids.values, f"{ids.source}: column {ids.name!r}")
        return (hash_ids(known) % np.uint64(self.num_embeddings)).astype(np.int64)
