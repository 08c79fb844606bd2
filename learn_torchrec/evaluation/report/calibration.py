"""The section on calibration, from a run's predictions."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from learn_torchrec.artifact import MANIFEST
from learn_torchrec.evaluation.predictions import (
    Predictions,
    open_predictions,
    read_predictions,
)
from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.parts import Section, Table
from learn_torchrec.evaluation.rows import population_weights
from learn_torchrec.evaluation.tasks import KIND_PREDICTIONS, Task, tasks_of_facts
from learn_torchrec.schema import PREDICTIONS_FILE

_BINS = 10


def calibration(
    directory: Path, manifests: Mapping[str, dict[str, Any]]
) -> Iterator[Section]:
    """Yield the section, if the run has predictions that are probabilities."""
    series = {}
    rows: list[list[Any]] = []
    for stage, tasks in prediction_stages(directory, manifests):
        for task in tasks:
            name = f"{stage}, {task.name}" if len(tasks) > 1 else stage
            predictions = read_predictions(
                directory / stage, task=task, needs_clicks=False
            )
            bins = calibration_bins(predictions)
            if bins:
                series[name] = ([b[0] for b in bins], [b[1] for b in bins])
                rows += [[name, number, *b] for number, b in enumerate(bins, start=1)]
    if not rows:
        return
    gaps = {
        name: max(abs(a - b) for a, b in zip(*xy, strict=True))
        for name, xy in series.items()
    }
    words = "; ".join(f"{name} at most {gap:.4f} off" for name, gap in gaps.items())
    table = Table(
        name="calibration-bins",
        title="Score calibration",
        columns=["predictions", "bin", "mean score", "observed rate", "rows"],
        formats=["", "d", ".4f", ".4f", ",d"],
        rows=rows,
        note=f"{_BINS} bins of equally many rows, by score.",
    )
    figure = figures.calibration(
        "calibration-curve",
        "Observed rate over mean score",
        series,
        f"Observed rate of the label over the mean score in {_BINS} bins: {words}.",
    )
    yield Section(
        name="calibration", title="Calibration", tables=[table], figures=[figure]
    )


def prediction_stages(
    directory: Path, manifests: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[str, list[Task]]]:
    """Yield each stage that holds predictions, with its tasks that have labels."""
    for stage, manifest in manifests.items():
        place = directory / stage
        file = place / PREDICTIONS_FILE
        if manifest.get("kind") == KIND_PREDICTIONS and file.exists():
            tasks = tasks_of_facts(manifest.get("facts", {}), place / MANIFEST)
            labelled = [task for task in tasks if _has_labels(place, task.label)]
            if labelled:
                yield stage, labelled


def _has_labels(place: Path, name: str) -> bool:
    parts = open_predictions(place)
    return name in parts.names and not parts.count(name, ds.field(name).is_null())


def calibration_bins(predictions: Predictions) -> list[tuple[float, float, int]]:
    """Return (mean score, observed rate, rows) of bins of equally many rows.

    Equal scores share a bin; rows of weight 0 are in none. Empty if any score lies
    outside [0, 1].
    """
    scores, labels, weights = (
        predictions.scores,
        predictions.labels,
        predictions.weights,
    )
    if weights is None:
        weights = np.ones(len(scores))
    if predictions.sampling_rates is not None:
        sampled = (labels == 1, weights, predictions.sampling_rates)
        weights = population_weights(*sampled)
    # Padding may hold anything.
    scores, labels, weights = (x[weights > 0] for x in (scores, labels, weights))
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return []
    edges = np.unique(np.quantile(scores, np.arange(1, _BINS) / _BINS))
    bins = np.searchsorted(edges, scores, side="right")
    totals = np.bincount(bins, weights)
    means, rates = (np.bincount(bins, weights * x) for x in (scores, labels))
    counts = np.bincount(bins)
    return [
        (float(means[b] / totals[b]), float(rates[b] / totals[b]), int(counts[b]))
        for b in np.flatnonzero(counts)
    ]
