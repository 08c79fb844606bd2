"""Ranking metrics by activity cohort, for one prediction file or a pair of them."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.dataset as ds

from learn_torchrec.arrays import BoolArray
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import DEFAULT_METRICS, RankingMetrics, evaluate_auc
from learn_torchrec.evaluation.cohorts import (
    ALL,
    COLD,
    LONG_TAIL,
    MOST_COHORTS,
    OTHERS,
    SIDES,
    CohortConfig,
    assign_cohorts,
)
from learn_torchrec.evaluation.communicator import Communicator
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.influence import paired_influence
from learn_torchrec.evaluation.metric import Metric
from learn_torchrec.evaluation.predictions import (
    Predictions,
    open_predictions,
    refuse_different_rows,
    stream_predictions,
)
from learn_torchrec.evaluation.significance import (
    PairedDifference,
    adjust_p_values,
    paired_bootstrap,
)
from learn_torchrec.evaluation.stream import MetricsStream
from learn_torchrec.evaluation.tasks import ONLY_TASK, Task
from learn_torchrec.schema import ITEM_ACTIVITY, USER_ACTIVITY

Intervals = Literal["bootstrap", "influence"]


def cohort_masks(
    predictions: Predictions, cohorts: CohortConfig | None = None
) -> dict[str, BoolArray]:
    """Return the rows [N] of each cohort, by name.

    The names are "all", then "user_cold", "user_long_tail", "user_others" and the same
    for items, if there are columns of activity, then the values of the predictions'
    cohort column, sorted.

    Raises:
        UserError: the cohort column has too many values, or the name of a cohort.
    """
    cohorts = cohorts or CohortConfig()
    masks = {ALL: np.ones(len(predictions.labels), dtype=bool)}
    for side in SIDES:
        activity = getattr(predictions, f"{side}_activity")
        if activity is not None:
            masks |= assign_cohorts(side, activity, cohorts)
    return masks | _own_cohorts(predictions, masks)


def cohort_filters(
    columns: Collection[str], cohorts: CohortConfig | None = None
) -> dict[str, ds.Expression | None]:
    """Return the filter of each cohort's rows in a file, None for all rows.

    The names are those of `cohort_masks` for a file with these columns.
    """
    cohorts = cohorts or CohortConfig()
    filters: dict[str, ds.Expression | None] = {ALL: None}
    for side, column in zip(SIDES, (USER_ACTIVITY, ITEM_ACTIVITY), strict=True):
        if column in columns:
            long_tail_from, others_from = cohorts.bounds(side)
            is_warm = ds.field(column) >= long_tail_from
            is_other = ds.field(column) >= others_from
            filters[f"{side}_{COLD}"] = ~is_warm
            filters[f"{side}_{LONG_TAIL}"] = is_warm & ~is_other
            filters[f"{side}_{OTHERS}"] = is_other
    return filters


def _own_cohorts(
    predictions: Predictions, taken: Mapping[str, BoolArray]
) -> dict[str, BoolArray]:
    if predictions.cohorts is None:
        return {}
    encoded = predictions.cohorts.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    names = encoded.dictionary.to_pylist()
    if len(names) > MOST_COHORTS:
        raise UserError(
            f"{predictions.source}: {len(names)} cohorts in the cohort column, "
            f"{MOST_COHORTS} at most; group its values first"
        )
    clash = sorted(set(names) & set(taken))
    if clash:
        raise UserError(
            f"{predictions.source}: {clash[0]!r} in the cohort column is the name of "
            "another cohort; rename it"
        )
    return {name: codes == names.index(name) for name in sorted(names)}


def metrics_by_cohort(
    predictions: Predictions,
    cohorts: CohortConfig | None = None,
    convention: Convention = PAPER,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
) -> dict[str, RankingMetrics]:
    """Return the ranking metrics of each cohort; see `cohort_masks` for the names."""
    return {
        name: evaluate_auc(
            **_rows(predictions, mask),
            scores=predictions.scores[mask],
            convention=convention,
            metrics=metrics,
        )
        for name, mask in cohort_masks(predictions, cohorts).items()
    }


def _rows(predictions: Predictions, mask: BoolArray) -> dict[str, Any]:
    """Return the columns of some rows, without scores, as keyword arguments."""
    weights, clicks = predictions.weights, predictions.clicks
    rates = predictions.sampling_rates
    return {
        "user_ids": predictions.user_ids.filter(mask),
        "labels": predictions.labels[mask],
        "weights": None if weights is None else weights[mask],
        "clicks": None if clicks is None else clicks[mask],
        "sampling_rates": None if rates is None else rates[mask],
    }


def stream_by_cohort(
    path: Path,
    cohorts: CohortConfig | None = None,
    convention: Convention = PAPER,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
    *,
    task: Task = ONLY_TASK,
    communicator: Communicator | None = None,
) -> dict[str, RankingMetrics]:
    """As `metrics_by_cohort`, from a file read in batches, once per cohort.

    Raises:
        UserError: see `stream_predictions`.
    """
    result = {}
    names = (task.label, task.score)
    for name, rows in cohort_filters(open_predictions(path).names, cohorts).items():
        stream = MetricsStream(
            convention, communicator=communicator, metrics=metrics, names=names
        )
        stream_predictions(
            path, stream, communicator, rows, task, convention.needs_clicks
        )
        result[name] = stream.finish()
    return result


def differences_by_cohort(
    baseline: Predictions,
    candidate: Predictions,
    cohorts: CohortConfig | None = None,
    convention: Convention = PAPER,
    num_resamples: int = 1000,
    seed: int = 0,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
    intervals: Intervals = "bootstrap",
) -> dict[str, dict[str, PairedDifference]]:
    """Return candidate minus baseline by cohort and metric.

    Both must hold the same rows; cohorts are the baseline's. Intervals are those of
    `paired_bootstrap`, or of `paired_influence`, which draws nothing. Adjusted p-values
    treat all cohorts and metrics as one family.

    Raises:
        UserError: different rows, see `refuse_different_rows`.
    """
    refuse_different_rows(baseline, candidate)
    compare: Callable[..., dict[str, PairedDifference]] = paired_influence
    if intervals == "bootstrap":
        compare = partial(paired_bootstrap, num_resamples=num_resamples, seed=seed)
    return adjusted_by_cohort(
        {
            name: compare(
                **_rows(baseline, mask),
                baseline_scores=baseline.scores[mask],
                candidate_scores=candidate.scores[mask],
                convention=convention,
                metrics=metrics,
            )
            for name, mask in cohort_masks(baseline, cohorts).items()
        }
    )


def adjusted_by_cohort(
    differences: Mapping[str, Mapping[str, PairedDifference]],
) -> dict[str, dict[str, PairedDifference]]:
    """Adjust p-values in one family of all cohorts and metrics."""
    family = [one for found in differences.values() for one in found.values()]
    adjusted = iter(adjust_p_values(family))
    return {
        cohort: {metric: next(adjusted) for metric in by_metric}
        for cohort, by_metric in differences.items()
    }


def to_json(value: Any) -> Any:
    """Return metrics as JSON-ready values: objects for records, null for NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
