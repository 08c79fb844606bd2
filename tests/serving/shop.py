"""A small served shop: vectors, an index with titles, and a ranker by a plain rule."""

from pathlib import Path

import clustered
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.apps import build_index
from learn_torchrec.errors import UserError
from learn_torchrec.serving.deployment import Places, load

NUM_ITEMS, NUM_USERS = 300, 20
ITEMS = clustered.unit_vectors(NUM_ITEMS, 0)
USERS = clustered.unit_vectors(NUM_USERS, 1)
FIRST = 1000  # the first item's id
AS_OF = 10_000
TOKEN = "0123456789abcdef"
EVENTS = [  # user, item, time
    *((user, FIRST + 7 * user + n, 100 + n) for user in range(10) for n in range(5)),
]


class RuleRanker:
    """Scores by a rule that tests can repeat; it needs no training.

    Attributes:
        sign: -1 ranks the other way around.
        seconds: of a forward pass.
    """

    tasks = ("cvr", "ctr")
    as_of = AS_OF
    id_types = (pa.int64(), pa.int64())

    def __init__(self, sign: float = 1.0) -> None:
        self.required_context = {"hour": "float"}
        self.sign, self.batches, self.requests = sign, [], []

    def reads_of_new(self, space):
        return frozenset({"vector"})

    def rank(self, requests):
        self.batches.append(len(requests))
        self.requests.extend(requests)
        return [self._scores(request) for request in requests]

    def _scores(self, request):
        unknown = set(request.context) - {"hour", "bug"}
        if unknown:
            raise UserError(f"context: this ranker reads no column {unknown.pop()!r}")
        if "bug" in request.context:
            raise KeyError("/secret/path")
        items = np.array(request.item_ids, float).reshape(-1)
        cvr = rule(items, len(request.events), request.context.get("hour", 0.0))
        return np.stack([self.sign * cvr, 1 - cvr], axis=1).astype(np.float32)


def rule(items, events: int = 0, hour: float = 0.0):
    """Return a score of items that grows with their ids."""
    return (np.asarray(items, float) - FIRST) / 1000 + events / 100 + hour / 10_000


def write_data(folder: Path) -> Path:
    """Write the shop's tables."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = list(range(FIRST, FIRST + NUM_ITEMS))
    titles = [f"thing <b>{item}</b>" for item in ids]
    pq.write_table(
        pa.table({"item_id": ids, "title": titles}), folder / "items.parquet"
    )
    names = ("user_id", "item_id", "timestamp")
    log = dict(zip(names, map(list, zip(*EVENTS, strict=True)), strict=True))
    log["action"] = ["buy"] * len(EVENTS)
    pq.write_table(pa.table(log), folder / "interactions.parquet")
    return folder


def write_shop(folder: Path) -> Places:
    """Write vectors and an index; the bundles' folders hold a name alone."""
    data = write_data(folder / "data")
    ids = list(range(FIRST, FIRST + NUM_ITEMS))
    vectors = clustered.write_vectors(folder / "vectors", ids, ITEMS, USERS)
    command = ["--vectors", str(vectors), "--data", f"parquet:{data}"]
    build_index.main([*command, "--out", str(folder / "index")])
    for name in ("up", "down"):
        write_bundle(folder / name, name)
    return Places(
        bundles={"up": folder / "up", "down": folder / "down"},
        index=folder / "index",
        vectors=vectors,
    )


def write_bundle(folder: Path, text: str) -> None:
    """Write what stands for a bundle."""
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(text)


def load_rule(path: Path) -> RuleRanker:
    """Load what stands for a bundle."""
    text = (path / "manifest.json").read_text()
    if text not in ("up", "down"):
        raise UserError(f"{path}: damaged; export the bundle again")
    return RuleRanker(1.0 if text == "up" else -1.0)


def load_shop(places: Places):
    """Load a deployment with rankers by rule."""
    return load(places, load_rule)
