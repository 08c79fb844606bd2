"""The section on item vectors before and after the towers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import BoolArray, Float64Array
from learn_torchrec.artifact import MANIFEST, listed_files, read_manifest
from learn_torchrec.config import from_dict
from learn_torchrec.content.store import ContentStore
from learn_torchrec.evaluation.cohorts import CohortConfig, assign_cohorts
from learn_torchrec.evaluation.predictions import read_predictions
from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.calibration import prediction_stages
from learn_torchrec.evaluation.report.parts import Section
from learn_torchrec.evaluation.words import cohort_title
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
    place = directory / "vectors"
    files = listed_files(place, read_manifest(place, "vectors"))
    items = VectorTable.open(place / ITEMS, files)
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
            f"{len(names):,} items by activity cohort, along the first two principal "
            f"components of their {vectors.shape[1]}-dim vectors {name} the towers. "
            f"The mean cosine of two items is {cosines[name]:.3f}.",
        )
        for name, vectors in (("before", before), ("after", after))
    ]
    yield Section(
        name="vectors",
        title="Content vectors before and after the towers",
        text=[
            f"Of an item's {_NEIGHBOURS} nearest neighbours by content, "
            f"{100 * kept:.1f} % are still among them after the towers, which learn "
            "from behaviour."
        ],
        figures=drawn,
    )


def item_groups(
    directory: Path, manifests: Mapping[str, dict[str, Any]], items: list[Any]
) -> dict[str, BoolArray]:
    """Return masks of the items in each activity cohort, as of the last prediction."""
    for stage, tasks in prediction_stages(directory, manifests):
        path = directory / stage
        predictions = read_predictions(path, task=tasks[0], needs_clicks=False)
        ids, activity = predictions.item_ids, predictions.item_activity
        if ids is None or activity is None:
            continue
        config = manifests[stage].get("config", {}).get("cohorts", {})
        bounds = from_dict(CohortConfig, config, path / MANIFEST)
        known: dict[Any, int] = {}
        for item, count in zip(ids.to_pylist(), activity.tolist(), strict=True):
            known[item] = max(count, known.get(item, 0))
        counts = np.array([known.get(item, -1) for item in items])
        cohorts = assign_cohorts("item", np.maximum(counts, 0), bounds)
        groups = {
            cohort_title(name): mask & (counts >= 0) for name, mask in cohorts.items()
        }
        return groups | {"not in the test": counts < 0}
    return {"items": np.ones(len(items), dtype=bool)}


def two_dimensions(vectors: Float64Array) -> Float64Array:
    """Return the first two principal components of standardised vectors, [N, 2]."""
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
    """Return the share of the rows' k nearest neighbours that are the same in both."""
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
