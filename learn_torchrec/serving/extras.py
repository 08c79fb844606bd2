"""Candidates that came after the bundle, with content and vectors of their own.

They get rows after those of the bundle, for one call.

Letters: B rows, N items of the bundle, X extra items, C content dim, R reduced dim, D
vector dim.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learn_torchrec.arrays import AnyArray, Float16Array, Int64Array
from learn_torchrec.content.reduction import Reduction
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.reduced import ReducedContent
from learn_torchrec.serving.request import RankRequest
from learn_torchrec.vector_table import VectorTable


@dataclass(frozen=True, kw_only=True)
class _LongerTable(VectorTable):
    """The items' tower vectors, and those of extra items, float16 [X, D]."""

    extra: Float16Array

    def gather(self, rows: Int64Array) -> Float16Array:
        """Return the vectors of rows [n], float16 [n, D]."""
        is_extra = rows >= len(self.index)
        found = super().gather(np.where(is_extra, UNKNOWN, rows))
        found[is_extra] = self.extra[rows[is_extra] - len(self.index)]
        return found


@dataclass(frozen=True, kw_only=True)
class _LongerContent(ReducedContent):
    """The items' reduced content, and that of extra items, float16 [X, R]."""

    extra: Float16Array

    def unit_vectors(self, rows: Int64Array) -> Float16Array:
        """Return the vectors of rows [n], float16 [n, R]."""
        is_extra = rows >= len(self.index)
        found = super().unit_vectors(np.where(is_extra, UNKNOWN, rows))
        found[is_extra] = self.extra[rows[is_extra] - len(self.index)]
        return found


def with_extras(
    inputs: LearnInputs,
    reduction: Reduction | None,
    requests: Sequence[RankRequest],
    rows: Int64Array,
    owners: Int64Array,
) -> tuple[LearnInputs, Int64Array]:
    """Return inputs and rows that know the requests' extra items.

    Args:
        inputs: of the bundle.
        reduction: of content; None if the bundle has none.
        requests: to score.
        rows: int64 [B], of their candidates, UNKNOWN where the bundle has none.
        owners: int64 [B], the request of each row.

    Raises:
        UserError: a vector of another length, one that is not finite, or content
            without a reduction.
    """
    if not any(request.extra_items for request in requests):
        return inputs, rows
    candidates = [item for request in requests for item in request.item_ids]
    found, places = [], []
    for place in np.flatnonzero(rows == UNKNOWN):
        extra = requests[owners[place]].extra_items.get(candidates[place])
        if extra is not None:
            found.append((candidates[place], extra))
            places.append(place)
    if not found:
        return inputs, rows
    rows = rows.copy()
    rows[places] = len(inputs.index) + np.arange(len(found))
    if inputs.vectors is not None:
        given = [(item, extra.vector) for item, extra in found]
        vectors = _stacked(given, inputs.vectors.dim, "vector")
        items = _LongerTable(**_fields(inputs.vectors.items), extra=vectors)
        longer = dataclasses.replace(inputs.vectors, items=items)
        inputs = dataclasses.replace(inputs, vectors=longer)
    if inputs.content is not None:
        if reduction is None:
            raise UserError(
                "extra_items: this bundle has no reduction of content; export the "
                "vectors again, then the bundle"
            )
        given = [(item, extra.content) for item, extra in found]
        content = _stacked(given, len(reduction.mean), "content")
        has = np.array([values is not None for _, values in given])
        reduced = np.where(has[:, None], reduction.apply(content), np.float16(0))
        kept = _LongerContent(**_fields(inputs.content), extra=reduced)
        inputs = dataclasses.replace(inputs, content=kept)
    return inputs, rows


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _stacked(
    given: Sequence[tuple[Any, AnyArray | None]], dim: int, name: str
) -> Float16Array:
    """Return vectors as rows, zeros where there is none, float16 [X, dim]."""
    stacked = np.zeros((len(given), dim), np.float16)
    for row, (item, values) in enumerate(given):
        if values is None:
            continue
        array = np.asarray(values, np.float32)
        if array.shape != (dim,):
            raise UserError(
                f"extra_items: the {name} of {item!r} has the shape {array.shape}, "
                f"not ({dim},); encode it as the bundle's items were"
            )
        with np.errstate(over="ignore"):
            stacked[row] = array
        if not np.isfinite(stacked[row]).all():
            raise UserError(
                f"extra_items: the {name} of {item!r} is not finite in half precision"
            )
    return stacked
