"""Two arms of a study, each trained with several seeds, compared user by user.

A user's gain is averaged over the seeds; its interval comes from resampling users, that
of the AUC from the users' influence on it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import BoolArray, Float64Array
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.evaluation.conventions import PAPER
from learn_torchrec.evaluation.influence import mean_difference
from learn_torchrec.evaluation.metric import PreparedRows
from learn_torchrec.evaluation.pooled_auc import PooledAuc
from learn_torchrec.evaluation.rows import prepare_rows
from learn_torchrec.evaluation.significance import PairedDifference
from learn_torchrec.evaluation.user_auc import count_users, users_that_count

METRICS = ("auc", "uauc", "wuauc", "ne")
_RESAMPLES = 2000


def compare_cohorts(
    users: pa.Array,
    labels: pa.Array,
    cohorts: Mapping[str, BoolArray],
    arm: Sequence[Float64Array],
    other: Sequence[Float64Array],
) -> dict[str, Any]:
    """Return, by cohort, both arms' metrics and what the first gains on the other.

    Args:
        users: [N] ids.
        labels: [N] of 0 and 1.
        cohorts: bool [N] by name.
        arm: scores [N] of each seed.
        other: likewise, of the same seeds.
    """
    return {
        name: _compare(
            users.filter(pa.array(mask)),
            labels.filter(pa.array(mask)),
            [scores[mask] for scores in arm],
            [scores[mask] for scores in other],
        )
        for name, mask in cohorts.items()
    }


def _compare(
    users: pa.Array,
    labels: pa.Array,
    arm: Sequence[Float64Array],
    other: Sequence[Float64Array],
) -> dict[str, Any]:
    if not len(users):
        return {"rows": 0}
    ours, theirs = (
        [evaluate_auc(users, labels, scores) for scores in seeds]
        for seeds in (arm, other)
    )
    result: dict[str, Any] = {
        "rows": len(users),
        **{k: theirs[0][k] for k in ("users", "users_kept", "positives")},
    }
    for name in METRICS:
        gains = np.subtract([m[name] for m in ours], [m[name] for m in theirs])
        result[name] = {
            "other": float(np.mean([metrics[name] for metrics in theirs])),
            "arm": float(np.mean([metrics[name] for metrics in ours])),
            "points": 100 * float(gains.mean()),
            "points_by_seed": [100 * float(gain) for gain in gains],
            "seed_std": 100 * float(gains.std(ddof=1)) if len(gains) > 1 else None,
        }
    for name, interval in bootstrap(*_gains(users, labels, arm, other)).items():
        result[name]["interval"] = interval
    gain = auc_difference(users, labels, arm, other)
    interval = None if math.isnan(gain.low) else [100 * gain.low, 100 * gain.high]
    result["auc"]["interval"] = interval
    return result


def auc_difference(
    users: pa.Array,
    labels: pa.Array,
    arm: Sequence[Float64Array],
    other: Sequence[Float64Array],
) -> PairedDifference:
    """Return what an arm gains in AUC, averaged over seeds, with a 95 % interval."""
    sides = [
        [PreparedRows(prepare_rows(users, labels, one), PAPER) for one in seeds]
        for seeds in (other, arm)
    ]
    return mean_difference(list(zip(*sides, strict=True)), PooledAuc())


def _gains(
    users: pa.Array,
    labels: pa.Array,
    arm: Sequence[Float64Array],
    other: Sequence[Float64Array],
) -> tuple[Float64Array, Float64Array]:
    """Return each kept user's AUC gain, averaged over seeds, and impressions."""
    kept = [
        [
            users_that_count(count_users(prepare_rows(users, labels, scores)), PAPER)
            for scores in seeds
        ]
        for seeds in (arm, other)
    ]
    ours, theirs = (np.mean([seed.values for seed in part], axis=0) for part in kept)
    return ours - theirs, kept[0][0].weights


def bootstrap(
    gains: Float64Array, impressions: Float64Array
) -> dict[str, list[float] | None]:
    """Return the 95 % interval of the mean gain, unweighted and weighted, in points.

    Args:
        gains: of each user, [U].
        impressions: of each user, [U], the weights.
    """
    if not len(gains):
        return {"uauc": None, "wuauc": None}
    random = np.random.default_rng(0)
    drawn = random.integers(len(gains), size=(_RESAMPLES, len(gains)))
    weights = impressions[drawn]
    means = {
        "uauc": gains[drawn].mean(1),
        "wuauc": (gains[drawn] * weights).sum(1) / weights.sum(1),
    }
    return {
        name: [100 * float(x) for x in np.percentile(values, (2.5, 97.5))]
        for name, values in means.items()
    }
