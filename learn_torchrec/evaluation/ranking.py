"""Ranking metrics by activity cohort, for one prediction file or a pair of them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from learn_torchrec.evaluation.arrays import BoolArray
from learn_torchrec.evaluation.auc import RankingMetrics, evaluate_auc
from learn_torchrec.evaluation.cohorts import CohortConfig, assign_cohorts
from learn_torchrec.evaluation.predictions import Predictions, refuse_different_rows
from learn_torchrec.evaluation.significance import PairedDifference, paired_bootstrap

ALL = "all"


def cohort_masks(
    predictions: Predictions, cohorts: CohortConfig | None = None
) -> dict[str, BoolArray]:
    """Return the rows [N] of each cohort, by name.

    The names are "all", then "user_cold", "user_long_tail", "user_others" and the
    same for items; those of an absent activity column are left out.
    """
    cohorts = cohorts or CohortConfig()
    masks = {ALL: np.ones(len(predictions.labels), dtype=bool)}
    for side, activity in (
        ("user", predictions.user_activity),
        ("item", predictions.item_activity),
    ):
        if activity is not None:
            parts = assign_cohorts(
                activity,
                getattr(cohorts, f"{side}_long_tail_from"),
                getattr(cohorts, f"{side}_others_from"),
            )
            masks |= {f"{side}_{name}": mask for name, mask in parts.items()}
    return masks


def metrics_by_cohort(
    predictions: Predictions, cohorts: CohortConfig | None = None
) -> dict[str, RankingMetrics]:
    """Return the ranking metrics of each cohort; see `cohort_masks` for the names."""
    weights = predictions.weights
    return {
        name: evaluate_auc(
            predictions.user_ids.filter(mask),
            predictions.labels[mask],
            predictions.scores[mask],
            None if weights is None else weights[mask],
        )
        for name, mask in cohort_masks(predictions, cohorts).items()
    }


def differences_by_cohort(
    baseline: Predictions,
    candidate: Predictions,
    cohorts: CohortConfig | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, PairedDifference]]:
    """Return candidate minus baseline by cohort and metric ("auc", "uauc", "wuauc").

    Cohorts are the baseline's; the rows of both must be the same.

    Raises:
        UserError: different rows, see `refuse_different_rows`.
    """
    refuse_different_rows(baseline, candidate)
    weights = baseline.weights
    return {
        name: paired_bootstrap(
            baseline.user_ids.filter(mask),
            baseline.labels[mask],
            baseline.scores[mask],
            candidate.scores[mask],
            weights=None if weights is None else weights[mask],
            num_resamples=num_resamples,
            seed=seed,
        )
        for name, mask in cohort_masks(baseline, cohorts).items()
    }


def to_json(value: Any) -> Any:
    """Return metrics as JSON-ready values: dataclasses to objects, NaN to null."""
    if isinstance(value, RankingMetrics):
        value = vars(value)
    elif isinstance(value, PairedDifference):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
