"""LEARN's vectors as the ranker finds them: by item, and by user as of a moment."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from learn_torchrec.artifact import Manifest, read_manifest
from learn_torchrec.datasets.as_of import latest_before
from learn_torchrec.datasets.tables import read_parquet
from learn_torchrec.errors import UserError
from learn_torchrec.schema import (
    ITEM_ID,
    ITEM_VECTORS_FILE,
    TIMESTAMP,
    USER_ID,
    USER_VECTORS_FILE,
    VECTOR,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
KIND = "vectors"
MISSING = -1


@dataclass(frozen=True, kw_only=True)
class VectorTable:
    """Vectors of one side.

    Attributes:
        ids: int64 or string [V]; a user has a row for each moment.
        times: int64 [V], unix seconds; None where vectors have no moment (items).
        vectors: float32 [V, D].
    """

    ids: pa.Array
    times: Ints | None
    vectors: Floats

    def rows_as_of(self, ids: pa.Array, times: Ints) -> Ints:
        """Return each query's row: its latest vector strictly before its time.

        Args:
            ids: [N], of the type of `self.ids`.
            times: int64 [N].

        Returns:
            int64 [N], MISSING where there is none.
        """
        if self.times is None:
            found = pc.index_in(ids, value_set=self.ids)
            return found.fill_null(MISSING).to_numpy().astype(np.int64)
        known = self.ids.unique()
        codes = pc.index_in(self.ids, value_set=known).to_numpy().astype(np.int64)
        queries = pc.index_in(ids, value_set=known).fill_null(MISSING)
        return latest_before(
            codes, self.times, queries.to_numpy().astype(np.int64), times
        )


@dataclass(frozen=True, kw_only=True)
class LearnVectors:
    """Both sides of a vectors artefact."""

    users: VectorTable
    items: VectorTable
    manifest: Manifest

    @property
    def dim(self) -> int:
        """D."""
        return int(self.items.vectors.shape[1])

    def refuse_leak(self, times: Ints, purpose: str) -> None:
        """Refuse impressions that the towers may have learned from.

        Args:
            times: int64 [N] of the impressions.
            purpose: what they are for, for the message.

        Raises:
            UserError: an impression lies before the towers' cut-off.
        """
        cutoff = self.manifest.cutoff
        if cutoff is not None and len(times) and times.min() < cutoff:
            raise UserError(
                f"leak: the vectors' towers learned from events up to {cutoff}, but "
                f"the impressions to {purpose} start at {times.min()} (unix seconds); "
                "train the towers with an earlier split.towers_until, or use later "
                "impressions"
            )


def load_vectors(directory: Path) -> LearnVectors:
    """Load a vectors artefact.

    Raises:
        UserError: no such artefact, or files that do not hold vectors.
    """
    manifest = read_manifest(directory, KIND)
    users = read_parquet(directory / USER_VECTORS_FILE)
    items = read_parquet(directory / ITEM_VECTORS_FILE)
    return LearnVectors(
        users=VectorTable(
            ids=_column(users, USER_ID, directory / USER_VECTORS_FILE),
            times=_column(users, TIMESTAMP, directory / USER_VECTORS_FILE).to_numpy(),
            vectors=_matrix(users, directory / USER_VECTORS_FILE),
        ),
        items=VectorTable(
            ids=_column(items, ITEM_ID, directory / ITEM_VECTORS_FILE),
            times=None,
            vectors=_matrix(items, directory / ITEM_VECTORS_FILE),
        ),
        manifest=manifest,
    )


def _column(table: pa.Table, name: str, path: Path) -> pa.Array:
    if name not in table.column_names:
        raise UserError(f"{path}: column {name!r} is missing; export the vectors again")
    return table[name].combine_chunks()


def _matrix(table: pa.Table, path: Path) -> Floats:
    column = _column(table, VECTOR, path)
    if not pt.is_fixed_size_list(column.type) or column.null_count:
        raise UserError(
            f"{path}: column {VECTOR!r} is {column.type}, must be a fixed-size list of "
            "float32 without nulls; export the vectors again"
        )
    matrix = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    finite = np.isfinite(matrix).all(1)
    if not finite.all():
        raise UserError(
            f"{path}: the vector in row {int(np.argmin(finite))} is not finite; "
            "export the vectors again"
        )
    return matrix.astype(np.float32, copy=False)
