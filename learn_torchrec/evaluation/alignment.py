"""What a map between vector spaces costs, by cohort.

Letters: n measured items, N items to be neighbours, C dims.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from learn_torchrec.arrays import BoolArray, Float64Array, Int64Array
from learn_torchrec.evaluation.topk import top_items
from learn_torchrec.spaces import cosines

_NEIGHBOURS = 10


@dataclass(frozen=True)
class AlignmentCost:
    """How mapped vectors differ from those of the earlier encoder.

    Attributes:
        items: number of measured items.
        cosine: mean, between an item's mapped and own standardized vector.
        neighbours: mean share of an item's ten nearest others that stay.
    """

    items: int
    cosine: float
    neighbours: float


def alignment_costs(
    own: Float64Array,
    mapped: Float64Array,
    others: Float64Array,
    cohorts: Mapping[str, BoolArray],
) -> dict[str, dict[str, Any]]:
    """Return the cost by cohort; a cohort without items is left out.

    Args:
        own: [n, C], standardized vectors of the earlier encoder.
        mapped: [n, C], of the same items from the new encoder.
        others: [N, C], of the earlier encoder: the neighbours.
        cohorts: bool [n], by name.
    """
    same = cosines(own, mapped)
    before, after = (_nearest(one, others) for one in (own, mapped))
    kept = np.array(
        [len(np.intersect1d(*pair)) for pair in zip(before, after, strict=True)]
    )
    share = kept / before.shape[1]
    return {
        name: asdict(
            AlignmentCost(
                int(chosen.sum()),
                round(float(same[chosen].mean()), 4),
                round(float(share[chosen].mean()), 4),
            )
        )
        for name, chosen in cohorts.items()
        if chosen.any()
    }


def _nearest(vectors: Float64Array, others: Float64Array) -> Int64Array:
    """Return the nearest other vectors of each, int64 [n, k]."""
    queries, table = (
        torch.nn.functional.normalize(torch.from_numpy(one).float(), dim=1)
        for one in (vectors, others)
    )
    return np.asarray(top_items(queries, table, min(_NEIGHBOURS, len(table))).items)
