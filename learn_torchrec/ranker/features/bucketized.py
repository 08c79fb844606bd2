"""Numbers, bucketized at boundaries; the buckets are embedded like ids."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, FiniteFloat

from learn_torchrec.arrays import Int64Array
from learn_torchrec.config import configuration, require
from learn_torchrec.ranker.features.base import IdFeature
from learn_torchrec.ranker.features.columns import FeatureColumn


@configuration
class BucketizedFeature(IdFeature):
    """A number column whose effect need not be smooth.

    Attributes:
        boundaries: ascending numbers between the buckets, such as quantiles of the
            column; a number on a boundary belongs to the bucket above it.
        ids: the kind.
    """

    boundaries: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
    ids: Literal["bucketized"] = "bucketized"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            all(np.diff(self.boundaries) > 0),
            f"boundaries: must be ascending (column {self.column!r})",
        )

    @property
    def table_rows(self) -> int:
        """Rows of its table, one for each bucket."""
        return len(self.boundaries) + 1

    @property
    def row_mapping(self) -> str:
        """How numbers map to rows: by the boundaries."""
        return f"{self.ids} at {', '.join(map(str, self.boundaries))}"

    def rows_of(self, ids: FeatureColumn) -> Int64Array:
        """Return the bucket of every number, int64 [V]."""
        numbers = ids.numbers(np.float64)
        return np.searchsorted(self.boundaries, numbers, side="right").astype(np.int64)
