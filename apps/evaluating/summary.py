"""The end of a run: its report, an example user, and one screen of what was found."""

import contextlib
import datetime
import shlex
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from learn_torchrec.artifact import CONFIG, MANIFEST
from learn_torchrec.credentials import without_credentials
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.evaluation.report.files import EXAMPLE, read_json, read_metrics
from learn_torchrec.evaluation.report.render import write_report
from learn_torchrec.evaluation.report.run import read_manifests, read_run
from learn_torchrec.evaluation.report.summary import summarise
from learn_torchrec.evaluation.report.terminal import to_text
from learn_torchrec.ranker.learn.vectors import MISSING, LearnVectors
from learn_torchrec.schema import ITEM_ID, TIMESTAMP, USER_ID

from .. import recommend
from ..common import program

REPORT = "report.html"
_ITEMS, _EVENTS = 10, 5  # of the example
_WIDTHS = (80, 100)  # columns of the screen


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Write what the block prints to a file: the summary says it shorter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        yield


def conclude(run: Path, data: str, dataset: Dataset) -> None:
    """Write an example and the report into a finished run, and print its summary.

    Args:
        run: directory of the stages' artefacts and metrics.
        data: the run's `--data`.
        dataset: what it names.

    Raises:
        UserError: a damaged artefact.
    """
    vectors = run / "vectors"
    if (vectors / MANIFEST).exists():
        program.write_json(run / EXAMPLE, example(vectors, dataset))
    try:
        made = read_run(run)
        write_report(made, run / REPORT)
        sections = made.summary
        where = f"Report: {run / REPORT} (and .md, .json)."
    except ModuleNotFoundError as error:  # drawings need an extra
        sections = summarise(run, read_metrics(run), read_manifests(run))
        where = f"No report: it needs {error.name}; pip install {error.name}."
    least, most = _WIDTHS
    width = max(least, min(most, shutil.get_terminal_size((most, 0)).columns))
    print("\n" + to_text(sections, width))
    print(f"\n{where} Next:")
    print("\n".join(next_commands(run, data)))


def example(vectors: Path, dataset: Dataset) -> dict[str, Any]:
    """Return one user's latest events and best items, as `recommend` finds them.

    The user is the one of the median number of events among those with a vector, the
    first of several. Items of the history are left out if retrieval leaves them out.
    """
    learn = LearnVectors.open(vectors)
    actions = learn.manifest.config.get("split", {}).get("actions")
    user = _typical_user(recommend.history_events(dataset.interactions, actions), learn)
    if not len(user):
        return {}
    found = recommend.read_vectors(vectors, dataset, user)
    events = recommend.events_of(dataset, actions, user)
    settings = read_json(vectors / CONFIG).get("retrieval", {})
    is_filtered = bool(settings.get("filter_history"))
    top = recommend.top_of(found, events, _ITEMS, is_filtered)
    titles = recommend.titles_of(dataset)
    items = [found.item_ids[int(row)].as_py() for row in top.items[0] if row != MISSING]
    latest = events.slice(max(0, events.num_rows - _EVENTS)).to_pylist()[::-1]
    return {
        "user": user[0].as_py(),
        "events": events.num_rows,
        "history_left_out": is_filtered,
        "history": [
            {
                "day": str(_day(event[TIMESTAMP])),
                "item": event[ITEM_ID],
                "title": titles.get(event[ITEM_ID], ""),
            }
            for event in latest
        ],
        "top": [
            {"rank": rank, "item": item, "title": titles.get(item, "")}
            for rank, item in enumerate(items, start=1)
        ],
    }


def _typical_user(log: pa.Table, learn: LearnVectors) -> pa.Array:
    """Return the id of the user with a vector and the median number of events: [1].

    Empty if no user of the log has a vector.
    """
    counted = log[USER_ID].value_counts()
    users, counts = counted.field("values"), counted.field("counts").to_numpy()
    rows, _ = learn.rows(users, log[ITEM_ID].slice(0, 0), None, "the data")
    has = np.flatnonzero(rows != MISSING)
    order = has[np.argsort(counts[has], kind="stable")]
    return users.take(pa.array(order[max(0, len(order) - 1) // 2 :][:1]))


def _day(seconds: int) -> datetime.date:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date()


def next_commands(run: Path, data: str) -> Iterator[str]:
    """Yield what can be done next with what the run holds, a line each."""
    vectors, ranker = run / "vectors", run / "ranker_learn"
    predictions = run / "predictions_learn"
    commands = []
    if vectors.exists():
        data = without_credentials(data)
        command = ["recommend", "--data", data, "--vectors", vectors, "--user", "ID"]
        commands.append(("another user's items", command))
    if vectors.exists() and ranker.exists():
        command = ["serve", "--run", run, "--data", data, "--clock", "data"]
        commands.append(("a page with any user's items, and why", command))
    if ranker.exists():
        command = ["predict", "--data", "ADAPTER:PATH", "--vectors", vectors]
        command += ["--ranker", ranker, "--out", "DIR"]
        commands.append(("score other impressions", command))
    if predictions.exists():
        command = ["evaluate-auc", "--predictions", "mine=FILE", f"learn={predictions}"]
        commands.append(("compare with your ranker", [*command, "--out", "FILE.json"]))
    for what, command in commands:
        yield f"  {_program()} {shlex.join(map(str, command))}  # {what}"
    configs = (path for path in (run / CONFIG, vectors / CONFIG) if path.exists())
    for config in islice(configs, 1):
        yield f"Settings: {config}, which --config repeats"


def _program() -> str:
    """Return how this installation's command line is called from here."""
    name = "learn-torchrec"
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) or not beside.exists():
        return name
    with contextlib.suppress(ValueError):
        beside = beside.relative_to(Path.cwd())
    return shlex.quote(str(beside))
