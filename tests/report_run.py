"""Parts of a small run's directory, as the stages lay it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from vectors_artefact import write_side

from learn_torchrec.artifact import Manifest, file_digest
from learn_torchrec.publish import write_artifact
from learn_torchrec.ranker.learn.vectors import KIND

# Names that would be markup if they were not escaped.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</text></svg><script>alert(2)</script>",
    '$a_b$ {{ 7 * 7 }} url(#x) id="y" \x07&amp;',
)
NUM_ITEMS = 40
# Items on a line: user 1 looks up it, user 2 down it, user 3 has no vector. Item 14
# has none either.
ITEMS = {11: 1.0, 12: 2.0, 13: 3.0}
USERS = {1: 1.0, 2: -1.0}
EVENTS = [
    (1, 13, 86_400, "like"),
    (1, 11, 90_000, "like"),
    (1, 14, 80_000, "skip"),
    (2, 11, 86_400, "like"),
    (3, 12, 86_400, "like"),
]


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


def write_shop_vectors(directory: Path) -> None:
    split = {"split": {"actions": ["like"]}}
    with write_artifact(directory, kind=KIND, config=split, inputs={}) as working:
        # User 1 has an earlier vector, which points the other way.
        users = [[-1.0, 0.0], *([x, 0.0] for x in USERS.values())]
        moments = {"offsets": np.array([0, 2, 3]), "times": np.array([100, 200, 200])}
        write_side(working / "users", list(USERS), users, **moments)
        items = [[x, 0.0] for x in ITEMS.values()]
        write_side(working / "items", list(ITEMS), items)
