"""Impressions as arrays: what a ranking batch is cut from.

Dimension letters: N rows, F dense features, D vector dim.
"""

import dataclasses
import functools
import logging
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from learn_torchrec.config import OPERATIONAL, configuration, require
from learn_torchrec.ranker.vectors import MISSING, LearnVectors
from learn_torchrec.schema import ITEM_ID, USER_ID
from learn_torchrec.training.distributed import gather_objects
from learn_torchrec.training.sharding import ShardingKind

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


IdKind = Literal["hash", "index", "managed_collision"]


@configuration
class SparseFeature:
    """An ID feature: an integer or string column, or a list of them (multi-hot).

    Attributes:
        column: of the impressions; also the feature's name.
        num_embeddings: rows of its table.
        ids: how ids become rows of the table. "hash": any id, by a stable hash.
            "index": integers that are rows already; others are left out of the row's
            bag, and counted. "managed_collision": any id, TorchRec gives frequent
            ones a row of their own while it trains; for ids without bound.
        weights: a column of numbers like `column`, one for each id: its weight in
            the row's sum. None is 1 for all.
        sharding: of its table; None as `ranker.sharding.kind` says.
    """

    column: str
    num_embeddings: PositiveInt = 100_000
    ids: IdKind = "hash"
    weights: str | None = None
    sharding: Annotated[ShardingKind | None, OPERATIONAL] = None

    def __post_init__(self) -> None:
        require(
            "." not in self.column,
            f"column: {self.column!r} holds a dot, which no ID feature's name may; "
            "rename the column",
        )
        if self.ids == "managed_collision":
            require(
                self.weights is None,
                f"weights: not with managed_collision (column {self.column!r})",
            )
            require(
                self.sharding in (None, "auto", "row_wise"),
                f"sharding: {self.sharding}, but TorchRec shards tables with "
                f"managed_collision row-wise only (column {self.column!r})",
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return (self.column, self.weights) if self.weights else (self.column,)


@configuration
class FeaturesConfig:
    """Which columns of the impressions the ranker reads.

    Attributes:
        sparse: ID features.
        dense: number columns.
        auxiliary_label: column of 0 and 1 that the auxiliary network learns from;
            None for the ranker's own label.
    """

    sparse: tuple[SparseFeature, ...] = (
        SparseFeature(column=USER_ID),
        SparseFeature(column=ITEM_ID),
    )
    dense: tuple[str, ...] = ()
    auxiliary_label: str | None = None

    def __post_init__(self) -> None:
        names = [feature.column for feature in self.sparse]
        require(len(names) > 0, "sparse: name at least one column")
        require(
            any(f.ids != "managed_collision" for f in self.sparse),
            "sparse: at least one without managed_collision",
        )
        for kind, listed in (("sparse", names), ("dense", list(self.dense))):
            require(
                len(set(listed)) == len(listed),
                f"{kind}: a column is listed twice",
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The feature columns that must be there, each once."""
        sparse = [name for feature in self.sparse for name in feature.columns]
        extra = [self.auxiliary_label] if self.auxiliary_label else []
        return tuple(dict.fromkeys([*sparse, *self.dense, *extra]))


@dataclass(frozen=True, kw_only=True)
class JaggedIds:
    """One ID feature of all rows.

    Attributes:
        values: int64 [sum of lengths].
        offsets: int64 [N + 1].
        weights: float32 [sum of lengths]; None is 1 for all.
        left_out: ids of each row that are in no table, int64 [N]; None is none.
    """

    values: Ints
    offsets: Ints
    weights: Floats | None = None
    left_out: Ints | None = None

    def take(self, rows: Ints) -> "JaggedIds":
        """Return the feature of some rows."""
        if self._one_each:
            index, offsets = rows, np.arange(len(rows) + 1)
        else:
            lengths = self.offsets[rows + 1] - self.offsets[rows]
            offsets = np.r_[0, np.cumsum(lengths)]
            starts = self.offsets[rows] - offsets[:-1]
            index = np.arange(offsets[-1]) + np.repeat(starts, lengths)
        return JaggedIds(
            values=self.values[index],
            offsets=offsets,
            weights=None if self.weights is None else self.weights[index],
            left_out=None if self.left_out is None else self.left_out[rows],
        )

    @functools.cached_property
    def _one_each(self) -> bool:
        """Whether every row has one id: a row is then an id's place."""
        return bool((np.diff(self.offsets) == 1).all())

    @property
    def lengths(self) -> Ints:
        """Ids in each row, int64 [N]."""
        return np.diff(self.offsets)

    @classmethod
    def concatenate(cls, parts: Sequence["JaggedIds"]) -> "JaggedIds":
        """Return the rows of all parts, of one feature, in their order."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(
            values=np.concatenate([part.values for part in parts]),
            offsets=np.r_[0, np.cumsum(lengths)],
            weights=_joined([part.weights for part in parts]),
            left_out=_joined([part.left_out for part in parts]),
        )


@dataclass(frozen=True, kw_only=True)
class RankingRows:
    """All rows of a set of impressions.

    Attributes:
        dense: float32 [N, F].
        sparse: an ID feature each, in the order of the configuration.
        labels: float32 [N] of 0 and 1.
        weights: float32 [N].
        auxiliary_labels: float32 [N] of 0 and 1; None where they are the labels.
        user_rows: int64 [N], rows of the user vectors, -1 where missing.
        item_rows: int64 [N], likewise.
        vectors: where those rows point; None with LEARN off.
        managed: ID features whose values are keys that TorchRec maps to rows.
    """

    dense: Floats
    sparse: dict[str, JaggedIds]
    labels: Floats
    weights: Floats
    auxiliary_labels: Floats | None = None
    user_rows: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    item_rows: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    vectors: LearnVectors | None = None
    managed: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: NDArray[np.bool_]) -> "RankingRows":
        """Return the rows where `keep` [N] is true."""
        return self.take(np.flatnonzero(keep))

    def take(self, rows: Ints) -> "RankingRows":
        """Return some rows, by their numbers."""
        auxiliary = self.auxiliary_labels
        return dataclasses.replace(
            self,
            dense=self.dense[rows],
            sparse={name: ids.take(rows) for name, ids in self.sparse.items()},
            labels=self.labels[rows],
            weights=self.weights[rows],
            auxiliary_labels=None if auxiliary is None else auxiliary[rows],
            user_rows=self.user_rows[rows] if self.vectors else self.user_rows,
            item_rows=self.item_rows[rows] if self.vectors else self.item_rows,
        )

    @classmethod
    def concatenate(cls, parts: Sequence["RankingRows"]) -> "RankingRows":
        """Return the rows of all parts, prepared alike, in their order."""
        if len(parts) == 1:
            return parts[0]
        return dataclasses.replace(
            parts[0],
            dense=np.concatenate([part.dense for part in parts]),
            sparse={
                name: JaggedIds.concatenate([part.sparse[name] for part in parts])
                for name in parts[0].sparse
            },
            labels=np.concatenate([part.labels for part in parts]),
            weights=np.concatenate([part.weights for part in parts]),
            auxiliary_labels=_joined([part.auxiliary_labels for part in parts]),
            user_rows=np.concatenate([part.user_rows for part in parts]),
            item_rows=np.concatenate([part.item_rows for part in parts]),
        )

    def report(self, chosen: Ints | None = None) -> "RowsReport":
        """Count what the rows lack, or some of them, by their numbers."""
        rows = slice(None) if chosen is None else chosen
        missing = {}
        if self.vectors is not None:
            missing["user_vectors"] = int((self.user_rows[rows] == MISSING).sum())
            missing["item_vectors"] = int((self.item_rows[rows] == MISSING).sum())
        left_out = {
            name: int(ids.left_out[rows].sum())
            for name, ids in self.sparse.items()
            if ids.left_out is not None
        }
        count = len(self) if chosen is None else len(chosen)
        return RowsReport(rows=count, missing=missing, left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class RowsReport:
    """What a set of rows lacks.

    Attributes:
        rows: N.
        missing: rows without a user vector, and without an item vector.
        left_out: ids of each feature that are in no table.
    """

    rows: int
    missing: dict[str, int]
    left_out: dict[str, int]

    def __add__(self, other: "RowsReport") -> "RowsReport":
        return RowsReport(
            rows=self.rows + other.rows,
            missing=_sum(self.missing, other.missing),
            left_out=_sum(self.left_out, other.left_out),
        )

    def of_all_ranks(self) -> "RowsReport":
        """Return the sum of every rank's report; every rank takes part."""
        reports: list[RowsReport] = gather_objects(self)
        return functools.reduce(operator.add, reports)

    def facts(self) -> dict[str, Any]:
        """Return what a manifest keeps; `coverage` is the share that has a vector."""
        coverage = {
            name: 1 - count / max(self.rows, 1) for name, count in self.missing.items()
        }
        return {
            "rows": self.rows,
            "coverage": coverage,
            "missing_vectors": self.missing,
            "ids_left_out": self.left_out,
        }

    def log(self) -> None:
        """Warn of what is missing."""
        for name, count in self.missing.items():
            if count:
                logger.warning(
                    "%d of %d rows have no %s: zeros and a flag stand for it",
                    count,
                    self.rows,
                    name.replace("_", " ").removesuffix("s"),
                )
        for name, count in self.left_out.items():
            if count:
                logger.warning(
                    "feature %r: %d ids are outside its table and left out", name, count
                )


def _joined(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays) if arrays else None


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in one | other}
