"""What ranks a catalogue, compared user by user: several seeds, intervals over users.

A user's metric is averaged over the seeds; intervals come from resampling users, the
same for all rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from learn_torchrec.arrays import Float64Array, IntArray

_RESAMPLES = 2000
_DRAWN_AT_ONCE = 1 << 24  # 128 MiB
_ENDS = (2.5, 97.5)


def compare_rows(
    rows: Mapping[str, Sequence[Float64Array]],
    reference: str,
    weights: IntArray | Float64Array | None = None,
) -> dict[str, Any]:
    """Return each row's mean with a 95 % interval, and how far a reference is above it.

    Args:
        rows: a metric of each user, float64 [U], by row and seed; a row that does not
            depend on the seed has one.
        reference: name of the row that the others are compared with.
        weights: of the users, [U]; equal without them.

    Returns:
        `rows`, by name: `mean`, `low`, `high`, and the means of the `seeds`; of all but
        the reference also `below`, how far they are below it: `difference`, `low` and
        `high`. `over`: the same of the `row` with the greatest mean of the others; None
        without another row.
    """
    values = np.stack([np.mean(seeds, axis=0) for seeds in rows.values()])
    weigh = np.ones(values.shape[1])
    if weights is not None:
        weigh = weights.astype(np.float64)
    resampled = dict(zip(rows, _resampled_means(values, weigh), strict=True))
    found = {row: _summary(seeds, resampled[row], weigh) for row, seeds in rows.items()}
    best = found[reference]["mean"]
    others = {row: one for row, one in found.items() if row != reference}
    for row, one in others.items():
        low, high = np.percentile(resampled[reference] - resampled[row], _ENDS)
        difference = best - one["mean"]
        one["below"] = {
            "difference": difference,
            "low": float(low),
            "high": float(high),
        }
    over = None
    if others:
        nearest = max(others, key=lambda row: others[row]["mean"])
        over = {"row": nearest} | others[nearest]["below"]
    return {"rows": found, "over": over}


def _summary(
    seeds: Sequence[Float64Array], resampled: Float64Array, weights: Float64Array
) -> dict[str, Any]:
    low, high = np.percentile(resampled, _ENDS)
    means = [float(np.average(each, weights=weights)) for each in seeds]
    mean = float(np.mean(means))
    return {"mean": mean, "low": float(low), "high": float(high), "seeds": means}


def _resampled_means(values: Float64Array, weights: Float64Array) -> Float64Array:
    """Return the weighted means [rows, resamples] of users drawn with replacement.

    `values` are float64 [rows, U].
    """
    users = values.shape[1]
    random = np.random.default_rng(0)
    step = max(1, _DRAWN_AT_ONCE // users)
    means = []
    for start in range(0, _RESAMPLES, step):
        count = min(step, _RESAMPLES - start)
        times = random.multinomial(users, np.full(users, 1 / users), size=count)
        means.append((values * weights) @ times.T / (weights @ times.T))
    return np.concatenate(means, axis=1)
