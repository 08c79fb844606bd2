"""The section on item vectors before and after the towers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import BoolArray, Float64Array
from learn_torchrec.artifact import MANIFEST
from learn_torchrec.config import from_dict
from learn_torchrec.content.store import ContentStore
from learn_torchrec.evaluation.cohorts import CohortConfig, assign_cohorts, cohort_title
from learn_torchrec.evaluation.predictions import read_predictions
from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.parts import Section
from learn_torchrec.evaluation.tasks import KIND_PREDICTIONS, tasks_of_facts
from learn_torchrec.schema import PREDICTIONS_FILE
from learn_torchrec.vector_table import ITEMS, VectorTable

_NEIGHBOURS = 10
_MAP_ITEMS = 3000


def vectors(
    directory: Path, manifests: Mapping[str, dict[str, Any]]
) -> Iterator[Section]:
    """Yield the section, if the run has both kinds of vectors."""
    if not all((directory / name).exists() for name in ("content", "vectors")):
        return
    store = ContentStore.open(directory / "content")
    items = VectorTable.open(directory / "vectors" / ITEMS)
    rows = items.index.rows_of(store.item_ids)
    shared = np.flatnonzero(rows >= 0)
    if len(shared) < 3:
        return
    shown = shared[:: len(shared) // _MAP_ITEMS + 1]
    before = store.gather(shown).astype(np.float64)
    after = items.gather(rows[shown]).astype(np.float64)
    names = store.item_ids.take(pa.array(shown)).to_pylist()
    groups = item_groups(directory, manifests, names)
    kept = neighbours_kept(before, after, _NEIGHBOURS)
    cosines = {"before": mean_cosine(before), "after": mean_cosine(after)}
    drawn = [
        figures.scatter(
            f"map-{name}",
            f"Item vectors {name} the towers",
            two_dimensions(vectors),
            groups,
            f"{len(names):,} items in the two directions in which their "
            f"{vectors.shape[1]}-dim vectors {name} the towers vary most, by "
            "activity cohort. The cosine of two random items is "
            f"{cosines[name]:.3f} on average.",
        )
        for name, vectors in (("before", before), ("after", after))
    ]
    yield Section(
        name="vectors",
        title="Content vectors before and after the towers",
        text=[
            f"Of an item's {_NEIGHBOURS} nearest items by content, {kept:.1%} are "
            "among its nearest after the towers: what behaviour moved."
        ],
        figures=drawn,
    )


def item_groups(
    directory: Path, manifests: Mapping[str, dict[str, Any]], items: list[Any]
) -> dict[str, BoolArray]:
    """Return the items of each activity cohort at the end of the predictions."""
    everyone = {"items": np.ones(len(items), dtype=bool)}
    for stage, manifest in manifests.items():
        path = directory / stage / PREDICTIONS_FILE
        if manifest.get("kind") != KIND_PREDICTIONS or not path.exists():
            continue
        # Activity is of the row, whichever task scores it.
        task = tasks_of_facts(manifest.get("facts", {}), path.with_name(MANIFEST))[0]
        predictions = read_predictions(path.parent, task=task, needs_clicks=False)
        if predictions.item_ids is None or predictions.item_activity is None:
            continue
        # The run's own bounds, which its metrics go by too.
        config = manifest.get("config", {}).get("cohorts", {})
        bounds = from_dict(CohortConfig, config, path.with_name(MANIFEST))
        known: dict[Any, int] = {}
        seen = zip(
            predictions.item_ids.to_pylist(),
            predictions.item_activity.tolist(),
            strict=True,
        )
        for item, activity in seen:
            known[item] = max(activity, known.get(item, 0))
        counts = np.array([known.get(item, -1) for item in items])
        cohorts = assign_cohorts("item", np.maximum(counts, 0), bounds)
        groups = {
            cohort_title(name): mask & (counts >= 0) for name, mask in cohorts.items()
        }
        return groups | {"not in the test": counts < 0}
    return everyone


def two_dimensions(vectors: Float64Array) -> Float64Array:
    """Return [N, 2]: the vectors along their two directions of largest variance."""
    centred = vectors - vectors.mean(axis=0)
    std = centred.std(axis=0)
    centred = centred / np.where(std > 1e-12, std, 1.0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return centred @ directions[:, :-3:-1]


def mean_cosine(vectors: Float64Array) -> float:
    """Return the mean cosine of two different rows."""
    units = _units(vectors)
    count = len(units)
    return float((np.square(units.sum(axis=0)).sum() - count) / (count * (count - 1)))


def neighbours_kept(before: Float64Array, after: Float64Array, k: int) -> float:
    """Return the share of the rows' k nearest rows that are nearest in both."""
    k = min(k, len(before) - 1)
    nearest = []
    for vectors in (before, after):
        units = _units(vectors - vectors.mean(axis=0))
        cosines = units @ units.T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argpartition(-cosines, k - 1, axis=1)[:, :k])
    same = [len(np.intersect1d(*pair)) for pair in zip(*nearest, strict=True)]
    return float(np.mean(same)) / k


def _units(vectors: Float64Array) -> Float64Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30))
