"""Parts of a small run's directory, as the stages lay it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.artifact import Manifest, file_digest

NUM_ITEMS = 40


def make_predictions(directory: Path, gain: float) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(2, size=400)
    directory.mkdir()
    table = {
        "user_id": random.integers(20, size=400),
        "item_id": random.integers(NUM_ITEMS, size=400),
        "label": labels,
        "score": (random.random(400) + gain * labels) / (1 + gain),
        "user_activity": random.integers(60, size=400),
        "item_activity": random.integers(60, size=400),
    }
    pq.write_table(pa.table(table), directory / "predictions.parquet")
    (directory / "config.json").write_text(json.dumps({"split": {"test_from": "80%"}}))
    manifest(
        directory, "predictions", {"rows": 400, "coverage": {"item_vectors": 0.75}}
    )


def manifest(directory: Path, kind: str, facts: dict) -> None:
    """Make an artefact of the files that are there."""
    directory.mkdir(exist_ok=True)
    files = {
        str(path.relative_to(directory)): {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in directory.rglob("*")
        if path.is_file()
    }
    body = Manifest(
        kind=kind,
        recipe="",
        config={},
        inputs={},
        facts=facts,
        files=files,
        cutoff=86_400,
        created="2024-01-01T00:00:00+00:00",
        versions={"torch": "2"},
    )
    body.write(directory)


def retrieval_rows(targets: int, learn: float | None = 0.25) -> dict:
    """Metrics of one group of targets, by name, as evaluate-retrieval writes them."""
    counts = {"users": 7, "users_skipped": 1, "targets": targets}
    return {
        name: {"h@50": value, "r@50": value, "mrr": value, **counts}
        for name, value in (("learn", learn), ("popularity", 0.0625))
    }
