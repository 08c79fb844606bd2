"""What ranks a catalogue, compared user by user: several seeds, intervals over users.

A user's metric is averaged over the seeds; intervals come from resampling users, the
same for all rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from learn_torchrec.arrays import Float64Array

_RESAMPLES = 2000
_DRAWN_AT_ONCE = 1 << 24  # 128 MiB
_ENDS = (2.5, 97.5)


def compare_rows(
    rows: Mapping[str, Sequence[Float64Array]], name: str
) -> dict[str, Any]:
    """Return each row's mean with a 95 % interval, and how far one is above the others.

    Args:
        rows: a metric of each user, float64 [U], by row and seed; a row that does not
            depend on the seed has one.
        name: of the row to compare with the best of the others.

    Returns:
        `rows`, by name: `mean`, `low`, `high`, and the means of the `seeds`. `over`:
        the `row` with the greatest mean of the others, `difference`, `low` and `high`;
        None without another row.
    """
    values = np.stack([np.mean(seeds, axis=0) for seeds in rows.values()])
    resampled = dict(zip(rows, _resampled_means(values), strict=True))
    means = dict(zip(rows, values.mean(axis=1).tolist(), strict=True))
    others = [row for row in rows if row != name]
    over = None
    if others:
        best = max(others, key=means.__getitem__)
        low, high = np.percentile(resampled[name] - resampled[best], _ENDS)
        over = {
            "row": best,
            "difference": means[name] - means[best],
            "low": float(low),
            "high": float(high),
        }
    return {"rows": {row: _summary(rows[row], resampled[row]) for row in rows}} | {
        "over": over
    }


def _summary(seeds: Sequence[Float64Array], resampled: Float64Array) -> dict[str, Any]:
    low, high = np.percentile(resampled, _ENDS)
    means = [float(each.mean()) for each in seeds]
    mean = float(np.mean(means))
    return {"mean": mean, "low": float(low), "high": float(high), "seeds": means}


def _resampled_means(values: Float64Array) -> Float64Array:
    """Return the means [rows, resamples] of users drawn with replacement.

    `values` are float64 [rows, U].
    """
    users = values.shape[1]
    random = np.random.default_rng(0)
    step = max(1, _DRAWN_AT_ONCE // users)
    means = []
    for start in range(0, _RESAMPLES, step):
        count = min(step, _RESAMPLES - start)
        times = random.multinomial(users, np.full(users, 1 / users), size=count)
        means.append(values @ times.T / users)
    return np.concatenate(means, axis=1)
