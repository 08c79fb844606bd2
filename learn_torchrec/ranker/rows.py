"""Encoded impressions, from which batches are cut, and what is missing in them.

Letters: N rows, F dense features.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from learn_torchrec.arrays import BoolArray, Float32Array, Int64Array
from learn_torchrec.jagged import offsets_of
from learn_torchrec.ranker.features.base import IdBags
from learn_torchrec.ranker.learn.batch import LearnRows
from learn_torchrec.ranker.learn.vectors import MISSING

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RankingRows:
    """Impressions as arrays; users and items are rows of the vector tables.

    Attributes:
        dense: float32 [N, F].
        sparse: ID features whose values are table rows, in the configured order.
        managed: ID features whose values are keys that TorchRec maps to rows.
        sequences: ID features whose tables attention reads; values are table rows.
        labels: float32 [N] of 0 and 1, by column; empty where they are not needed.
        weights: float32 [N].
        has_null: bool [N, features], whether a feature has a null there.
        nullable: the features' names in that order.
        learn: where LEARN's inputs are; None with LEARN off.
    """

    dense: Float32Array
    sparse: dict[str, IdBags]
    managed: dict[str, IdBags]
    sequences: dict[str, IdBags]
    labels: dict[str, Float32Array]
    weights: Float32Array
    has_null: BoolArray
    nullable: tuple[str, ...]
    learn: LearnRows | None = None

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, rows: Int64Array) -> "RankingRows":
        """Return the rows with these indices."""
        return RankingRows(**{n: _take(getattr(self, n), rows) for n in _FIELDS})

    @classmethod
    def concatenate(cls, parts: Sequence["RankingRows"]) -> "RankingRows":
        """Concatenate parts that were encoded alike."""
        if len(parts) == 1:
            return parts[0]
        return cls(**{n: _join([getattr(part, n) for part in parts]) for n in _FIELDS})

    def report(self) -> "RowsReport":
        """Count missing vectors, dropped ids and nulls."""
        missing: dict[str, int] = {}
        if self.learn is not None:
            found = ("user", self.learn.user_rows), ("item", self.learn.item_rows)
            missing = {
                f"{side}_vectors": int((rows == MISSING).sum())
                for side, rows in found
                if rows is not None
            }
        left_out = {
            name: int(ids.left_out.sum())
            for name, ids in (self.sparse | self.sequences).items()
            if ids.left_out is not None
        }
        counts = self.has_null.sum(axis=0).tolist()
        nulls = {n: c for n, c in zip(self.nullable, counts, strict=True) if c}
        return RowsReport(
            rows=len(self), missing=missing, left_out=left_out, nulls=nulls
        )


_FIELDS = [field.name for field in dataclasses.fields(RankingRows)]


def _take(value: Any, rows: Int64Array) -> Any:
    """Take rows of an array, of bags, or of a dictionary of either."""
    if isinstance(value, dict):
        return {name: _take(part, rows) for name, part in value.items()}
    if isinstance(value, IdBags | LearnRows):
        return value.take(rows)
    if isinstance(value, tuple):  # names
        return value
    return None if value is None else value[rows]


def _join(parts: Sequence[Any]) -> Any:
    """Concatenate arrays, bags or dictionaries of either."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: _join([part[name] for part in parts]) for name in first}
    if isinstance(first, IdBags):
        return IdBags(
            values=np.concatenate([part.values for part in parts]),
            offsets=offsets_of(np.concatenate([part.lengths for part in parts])),
            weights=_join([part.weights for part in parts]),
            left_out=_join([part.left_out for part in parts]),
        )
    if isinstance(first, LearnRows):
        return LearnRows.concatenate(parts)
    if first is None or isinstance(first, tuple):
        return first
    return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class RowsReport:
    """What is missing in a set of rows.

    Attributes:
        rows: N.
        missing: rows without a user vector, and without an item vector.
        left_out: dropped ids by feature: its table has no row for them.
        nulls: rows with a null by feature; features without nulls are left out.
    """

    rows: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    nulls: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Self) -> "RowsReport":
        return RowsReport(
            rows=self.rows + other.rows,
            missing=_sum(self.missing, other.missing),
            left_out=_sum(self.left_out, other.left_out),
            nulls=_sum(self.nulls, other.nulls),
        )

    def facts(self) -> dict[str, Any]:
        """Return the manifest's entries; `coverage` is the share with a vector."""
        coverage = {
            name: 1 - count / max(self.rows, 1) for name, count in self.missing.items()
        }
        return {
            "rows": self.rows,
            "coverage": coverage,
            "missing_vectors": self.missing,
            "ids_left_out": self.left_out,
            "nulls": self.nulls,
        }

    def log(self) -> None:
        """Warn about missing vectors, dropped ids and nulls."""
        for name, count in self.missing.items():
            if count:
                logger.warning(
                    "%d of %d rows have no %s; zeros and a flag replace it",
                    count,
                    self.rows,
                    name.replace("_", " ").removesuffix("s"),
                )
        for name, count in self.left_out.items():
            if count:
                logger.warning(
                    "feature %r: dropped %d ids outside its table", name, count
                )
        for name, count in self.nulls.items():
            logger.warning(
                "feature %r: null in %d of %d rows; it counts as missing there "
                "(ranker.features.nulls=refuse names the first)",
                *(name, count, self.rows),
            )


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in one | other}
