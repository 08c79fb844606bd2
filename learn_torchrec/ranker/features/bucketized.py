"""Numbers, bucketized at boundaries; the buckets are embedded like ids."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, FiniteFloat

from learn_torchrec.arrays import Float64Array, Int64Array
from learn_torchrec.config import configuration, replace, require
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.features.base import IdFeature
from learn_torchrec.ranker.features.columns import FeatureColumn


@configuration
class BucketizedFeature(IdFeature):
    """A number column whose effect need not be smooth.

    Attributes:
        boundaries: ascending numbers between the buckets; a number on a boundary
            belongs to the bucket above it.
        buckets: of about equally many rows, whose boundaries derivation chooses (see
            `derive`) if there are none.
        ids: the kind.
    """

    boundaries: tuple[FiniteFloat, ...] = ()
    buckets: Annotated[int | None, Field(ge=2)] = None
    ids: Literal["bucketized"] = "bucketized"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.boundaries or self.buckets),
            f"boundaries: missing (column {self.column!r}); or set a number of buckets",
        )
        require(
            all(np.diff(self.boundaries) > 0),
            f"boundaries: must be ascending (column {self.column!r})",
        )

    def with_quantiles(self, numbers: Float64Array) -> "BucketizedFeature":
        """Return the feature with boundaries that cut numbers into its buckets."""
        if self.boundaries or self.buckets is None or not len(numbers):
            return self
        shares = np.linspace(0, 1, self.buckets + 1)[1:-1]
        found = np.unique(np.quantile(numbers, shares, method="nearest"))
        return replace(self, boundaries=tuple(found.tolist()))

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
        if not self.boundaries:
            raise UserError(
                f"ranker.features.sparse: bucketized {self.name!r} has no boundaries; "
                "give them, or let `quickstart` derive them from the data"
            )
        numbers = ids.numbers(np.float64)
        return np.searchsorted(self.boundaries, numbers, side="right").astype(np.int64)
