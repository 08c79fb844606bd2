"""A small finished run and its report."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_run import (
    EVENTS,
    NUM_ITEMS,
    make_predictions,
    manifest,
    retrieval_rows,
    write_shop_vectors,
)
from vectors_artefact import write_side

from learn_torchrec.apps import evaluate_ab, evaluate_auc, report
from learn_torchrec.content.store import KIND, write_content_store
from learn_torchrec.publish import write_artifact


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory as quickstart lays it, with a hostile name in it."""
    out = tmp_path_factory.mktemp("report") / "my <b>run"
    out.mkdir()
    for name, gain in (("baseline", 0.1), ("learn", 0.5)):
        make_predictions(out / f"predictions_{name}", gain)
    files = [f"{name}={out / f'predictions_{name}'}" for name in ("baseline", "learn")]
    evaluate_auc.main(
        ["--predictions", *files, "--out", str(out / "ranking.json"), "--resamples=50"]
    )
    retrieval = {
        "retrieval": retrieval_rows(targets=9),
        "new_targets": retrieval_rows(targets=4, learn=0.125),
        "repeated_targets": retrieval_rows(targets=5),
        "tail_targets": retrieval_rows(targets=0, learn=None),
    }
    (out / "retrieval.json").write_text(json.dumps(retrieval))
    random = np.random.default_rng(1)
    with write_artifact(
        out / "content", kind=KIND, config={}, inputs={}, facts={"items": NUM_ITEMS}
    ) as working:
        content = random.normal(size=(NUM_ITEMS, 6))
        write_content_store(working, pa.array(np.arange(NUM_ITEMS)), content)
    vectors = random.normal(size=(NUM_ITEMS, 4))
    with write_artifact(
        out / "vectors", kind="vectors", config={}, inputs={}, facts={"dim": 4}
    ) as working:
        write_side(working / "items", np.arange(NUM_ITEMS)[::-1], vectors)
    lines = [{"step": n, "loss": 5 / n, "r@50": n / 10} for n in range(1, 9)]
    log = "\n".join(map(json.dumps, lines)) + '\n{"step": 9, "lo'  # cut off
    (out / "towers").mkdir()
    (out / "towers" / "log.jsonl").write_text(log)
    manifest(out / "towers", "towers", {"parameters": 10})
    return out


@pytest.fixture(scope="session")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    files = ["--outcomes", str(folder / "ab.parquet"), "--out", str(folder / "ab.json")]
    settings = ["--set", "replay.users=1000", "ab.resamples=20"]
    evaluate_ab.main(["--simulate", *files, *settings])
    out = folder / "report.html"
    command = ["--run", str(finished_run), "--out", str(out)]
    report.main([*command, "--ab", str(folder / "ab.json")])
    return out


@pytest.fixture
def shop(tmp_path: Path) -> list[str]:
    data = tmp_path / "data"
    data.mkdir()
    items = {
        "item_id": [14, 13, 12, 11],
        "title": ["lamp", "jug", None, "cup"],
    }
    pq.write_table(pa.table(items), data / "items.parquet")
    names = ("user_id", "item_id", "timestamp", "action")
    columns = zip(*EVENTS, strict=True)
    log = dict(zip(names, map(list, columns), strict=True))
    pq.write_table(pa.table(log), data / "interactions.parquet")
    write_shop_vectors(tmp_path / "vectors")
    return ["--data", f"parquet:{data}", "--vectors", str(tmp_path / "vectors")]
