"""Paired bootstrap over users: is one score column better than another?

Impressions of one user are not independent, so users are resampled, not rows. Both
columns use the same resamples, which removes most of the variance of the draw of users.
Among many cohorts and metrics, some p-value is small by chance: `adjust_p_values`
corrects a family of them.

U users, N rows, R resamples in a block.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from learn_torchrec.arrays import Column, Float64Array
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import DEFAULT_METRICS
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.metric import Metric, PreparedRows
from learn_torchrec.evaluation.rows import prepare_rows

_BLOCK_ELEMENTS = 1 << 22  # float64 values of one [R, N] working array: 32 MiB
_INTERVAL = (2.5, 97.5)


class PairedDifference(NamedTuple):
    """Candidate minus baseline; NaN where the metric is undefined.

    Attributes:
        difference: on the original rows.
        low: lower end of the 95 % percentile interval.
        high: upper end.
        p_value: two-sided, for "no difference"; at least 2 / (resamples + 1).
        p_adjusted: Holm's p-value among all comparisons of a family; NaN before
            `adjust_p_values`.
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float = math.nan


def paired_bootstrap(  # noqa: PLR0913  the arguments of `evaluate_auc` and two more
    user_ids: Column,
    labels: Column,
    baseline_scores: Column,
    candidate_scores: Column,
    weights: Column | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    *,
    clicks: Column | None = None,
    sampling_rates: Column | None = None,
    convention: Convention = PAPER,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
) -> dict[str, PairedDifference]:
    """Compare two score columns of the same rows, resampling users.

    U users are drawn `num_resamples` times with replacement, from `seed`. The other
    arguments are those of `evaluate_auc`.

    Returns:
        The difference of each metric that has one, by name. Resamples in which a
        metric is undefined (no pair drawn) do not count in its interval.

    Raises:
        UserError: see `evaluate_auc`; fewer than one resample.
    """
    if num_resamples < 1:
        raise UserError(f"num_resamples {num_resamples}: use 1 or more")
    baseline, candidate = (
        PreparedRows(
            prepare_rows(user_ids, labels, scores, weights, clicks, sampling_rates),
            convention,
        )
        for scores in (baseline_scores, candidate_scores)
    )
    resampled = {
        one.name: difference
        for one in metrics
        if (difference := one.difference(baseline, candidate)) is not None
    }
    num_users, num_rows = baseline.rows.num_users, len(baseline.rows.users)
    block = max(1, _BLOCK_ELEMENTS // max(num_rows, 1))
    drawn: dict[str, list[Float64Array]] = {name: [] for name in resampled}
    for counts in _resamples(num_users, num_resamples, block, seed):
        for name, difference in resampled.items():
            drawn[name].append(difference(counts))
    once = np.ones((1, num_users))
    return {
        name: _summarise(float(difference(once)[0]), np.concatenate(drawn[name]))
        for name, difference in resampled.items()
    }


def adjust_p_values(family: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Return the same differences with Holm's adjusted p-values.

    The smallest of m p-values is multiplied by m, the next by m - 1 and so on, and none
    falls below the one before: this bounds the probability of any false positive among
    the m. Undefined differences do not count.
    """
    defined = [i for i, one in enumerate(family) if not math.isnan(one.p_value)]
    defined.sort(key=lambda i: family[i].p_value)
    adjusted = list(family)
    largest = 0.0
    for place, i in enumerate(defined):
        scaled = family[i].p_value * (len(defined) - place)
        largest = min(1.0, max(largest, scaled))
        adjusted[i] = family[i]._replace(p_adjusted=largest)
    return adjusted


def _resamples(
    num_users: int, num_resamples: int, block: int, seed: int
) -> Iterator[Float64Array]:
    """Yield [R, U] blocks of how often each user was drawn (multinomial counts)."""
    generator = np.random.default_rng(seed)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        if not num_users:
            yield np.zeros((size, 0))
            continue
        drawn = generator.integers(num_users, size=(size, num_users))
        drawn += np.arange(size)[:, None] * num_users
        counts = np.bincount(drawn.ravel(), minlength=size * num_users)
        yield counts.reshape(size, num_users).astype(np.float64)


def _summarise(observed: float, drawn: Float64Array) -> PairedDifference:
    drawn = drawn[np.isfinite(drawn)]
    if math.isnan(observed) or not len(drawn):
        return PairedDifference(math.nan, math.nan, math.nan, math.nan)
    low, high = np.percentile(drawn, _INTERVAL)
    # The data count as one more resample: no finite number of them proves p = 0.
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p_value = min(1.0, 2 * (tail + 1) / (len(drawn) + 1))
    return PairedDifference(observed, float(low), float(high), float(p_value))
