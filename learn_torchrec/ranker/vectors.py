"""LEARN's vectors as the ranker finds them: by item, and by user as of a moment."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
import torch
from numpy.typing import NDArray
from torch import Tensor

from learn_torchrec.artifact import Manifest, read_manifest
from learn_torchrec.datasets.loading.tables import read_parquet
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN, IdIndex
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
Ids: TypeAlias = Any  # pa.Array, or integers or strings as an array, tensor or list
Times: TypeAlias = NDArray[np.int64] | Tensor | Sequence[int]
KIND = "vectors"
MISSING = UNKNOWN


class Matrix(Protocol):
    """Vectors [V, D] of any float type, in memory or on disk: rows by their numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """V and D."""

    def __getitem__(self, rows: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class VectorTable:
    """Vectors of one side.

    Attributes:
        ids: int64 or string [V]; a user has a row for each moment.
        times: int64 [V], unix seconds; None where vectors have no moment (items).
        vectors: [V, D].
    """

    ids: pa.Array
    times: Ints | None
    vectors: Matrix

    def rows_as_of(self, ids: pa.Array, times: Ints | None) -> Ints:
        """Return each query's row: its latest vector strictly before its time.

        What is searched is sorted once, so that a batch costs no pass over the table.

        Args:
            ids: [N], of the type of `self.ids`.
            times: int64 [N]; None for each id's latest vector.

        Returns:
            int64 [N], MISSING where there is none.
        """
        codes = self._known.rows_of(ids)
        if self.times is None:
            return codes
        keys, order, moments = self._by_moment
        if not len(keys):
            return np.full(len(ids), MISSING)
        stride = len(moments) + 1
        before = len(moments) if times is None else np.searchsorted(moments, times)
        place = np.searchsorted(keys, codes * stride + before) - 1
        found = (codes >= 0) & (place >= 0) & (keys[place] // stride == codes)
        return np.where(found, order[place], MISSING)

    def gather(self, rows: Ints) -> Floats:
        """Return the vectors of `rows` [N], float32 [N, D], zeros where MISSING."""
        if not self.vectors.shape[0]:
            return np.zeros((len(rows), self.vectors.shape[1]), np.float32)
        vectors = np.asarray(self.vectors[np.maximum(rows, 0)], np.float32)
        vectors[rows == MISSING] = 0.0
        return vectors

    @functools.cached_property
    def _known(self) -> IdIndex:
        return IdIndex.build(
            self.ids if self.times is None else self.ids.unique(), "vectors"
        )

    @functools.cached_property
    def _by_moment(self) -> tuple[Ints, Ints, Ints]:
        """Sorted keys of (id, moment), the row of each, and all moments in order."""
        assert self.times is not None
        moments, ranks = np.unique(self.times, return_inverse=True)
        keys = self._known.rows_of(self.ids) * (len(moments) + 1) + ranks
        order = np.argsort(keys, kind="stable")  # of equal moments the last row wins
        return keys[order], order, moments


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

    def index(self) -> "LearnVectors":
        """Return what finds rows and holds no vector: light enough to be sent."""
        nothing = np.empty((0, 0), np.float32)
        return replace(
            self,
            users=replace(self.users, vectors=nothing),
            items=replace(self.items, vectors=nothing),
        )

    def lookup(
        self, user_ids: Ids, item_ids: Ids, timestamps: Times | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `LearnFeatures` takes: user, item vectors, and which are there.

        Args:
            user_ids: int64 or string [B].
            item_ids: int64 or string [B].
            timestamps: unix seconds [B], see `rows`.

        Returns:
            float32 [B, D], [B, D] and [B, 2]; zeros where a vector is missing.
        """
        ids = (_as_ids(user_ids), _as_ids(item_ids))
        times = None if timestamps is None else _as_ids(timestamps).to_numpy()
        users, items = self.rows(*ids, times, source="the batch")
        has = np.stack([users != MISSING, items != MISSING], axis=1)
        return (
            torch.from_numpy(self.users.gather(users)),
            torch.from_numpy(self.items.gather(items)),
            torch.from_numpy(has.astype(np.float32)),
        )

    def rows(
        self, user_ids: pa.Array, item_ids: pa.Array, times: Ints | None, source: str
    ) -> tuple[Ints, Ints]:
        """Find the rows of users, as of strictly before `times`, and of items.

        Args:
            user_ids: [N].
            item_ids: [N].
            times: unix seconds [N]; None for each user's latest vector.
            source: where the ids come from, for the message.

        Returns:
            int64 [N] each, MISSING where there is none.

        Raises:
            UserError: ids of another type than the vectors'.
        """
        found = []
        for column, ids, table in (
            (USER_ID, user_ids, self.users),
            (ITEM_ID, item_ids, self.items),
        ):
            if ids.type != table.ids.type:
                raise UserError(
                    f"{source}: column {column!r} is {ids.type} but {table.ids.type} "
                    "in the vectors; use one type for ids"
                )
            found.append(table.rows_as_of(ids, times))
        return found[0], found[1]

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


def _as_ids(ids: Ids) -> pa.Array:
    if isinstance(ids, pa.Array):
        return ids
    return pa.array(ids.cpu().numpy() if isinstance(ids, Tensor) else ids)


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
