"""The server under load from this process: latency, throughput, reloads, parity.

Needs a finished run of `quickstart`; its bundles and index are made if missing. The
plain eager ranker is served by the same server, with the same batches.
"""

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.publish import write_artifact
from learn_torchrec.ranker.learn.vectors import KIND as KIND_VECTORS
from learn_torchrec.schema import IMPRESSIONS_FILE, ITEM_ID, USER_ID
from learn_torchrec.serving.check import CERTIFICATE_FILE, TRAINED
from learn_torchrec.serving.fixed_rows import ROWS_FILE, requests_of
from learn_torchrec.serving.runner import Runner
from learn_torchrec.vector_table import ITEMS, USERS, write_index

from .. import build_index
from ..common import options
from ..refreshing import served_run
from . import measure
from .load import Answers, Client, drive

CANDIDATES = 500
_BODIES = 200
_USERS = 2_000
_DIM = 64
_K = 100
_EAGER = "--eager"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the figures."""
    args = build_parser().parse_args(argv)
    if args.eager:
        _serve_eager(args)
        return
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        measure.publish(_measured(args, Path(folder)), args.json)


def build_parser() -> argparse.ArgumentParser:
    """Return the options."""
    parser = measure.parser("serving", __doc__)
    options.add_input(parser, "--run", "a finished run of quickstart")
    parser.add_argument("--data", default="movielens:auto", metavar="ADAPTER:PATH")
    parser.add_argument(_EAGER, action="store_true", help=argparse.SUPPRESS)
    for option, default, text in (
        ("--seconds", 30, "seconds of each load"),
        ("--clients", 16, "at the same time, for throughput"),
        ("--reload-seconds", 600, "seconds of load during reloads"),
        ("--reloads", 20, "within them"),
        ("--items", 1_000_000, "of the large index"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=text)
    return parser


def _measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    args.compare = args.bundle = args.index = args.towers = args.content = None
    served_run.fill_in(args)
    certificate = json.loads((args.bundle / CERTIFICATE_FILE).read_text())
    tasks = certificate["uauc"].values()
    bodies = rank_bodies(args)
    results: dict[str, Any] = {
        "candidates": CANDIDATES,
        "quantised_size_ratio": certificate["size_ratio"]["int8"],
        "quantised_uauc_diff": max(abs(t["full"] - t["int8"]) for t in tasks),
    }
    results |= _rank(args, folder, bodies)
    results |= _eager(args, folder, bodies)
    eager = results["eager_requests_per_s"]
    results["requests_per_s_over_eager"] = round(
        results["rank_requests_per_s"] / eager, 2
    )
    results |= _reloads(args, folder, bodies, results["rank_requests_per_s"])
    results |= _retrieval(args, folder)
    return results


def rank_bodies(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return requests of users with 500 random candidates, with their context."""
    random = np.random.default_rng(0)
    runner = Runner.load(args.bundle)
    rows = open_dataset(args.data).columns(
        IMPRESSIONS_FILE, [USER_ID, ITEM_ID, *runner.required_context]
    )
    items = rows[ITEM_ID].unique().to_pylist()
    drawn = random.integers(0, rows.num_rows, _BODIES)
    return [
        {
            "user": row[USER_ID],
            "candidates": [
                items[n] for n in random.integers(0, len(items), CANDIDATES)
            ],
            "context": {name: row[name] for name in runner.required_context},
        }
        for row in (rows.slice(int(n), 1).to_pylist()[0] for n in drawn)
    ]


@contextlib.contextmanager
def served(folder: Path, command: Sequence[str]) -> Iterator[str]:
    """Start a server as a process of its own; yield its address."""
    log = folder / "serve.log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=stream, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            url = next((f for line in lines if (f := _url(line))), None)
            if url is None:
                raise RuntimeError(log.read_text())
            while Client(url).post("/rank", b"{}")[0] in (0, 503):
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def _url(line: str) -> str | None:
    found = re.search(r"http://\S+", line)
    return None if found is None else found.group()


def _command(folder: Path, *more: str) -> list[str]:
    events = folder / f"events-{time.monotonic_ns()}.sqlite"
    serve = ["-m", "apps.serve", "--port=0", "--timeout=30", "--clock=data"]
    return [*serve, "--events", str(events), *more]


def _rank(
    args: argparse.Namespace, folder: Path, bodies: list[dict[str, Any]]
) -> dict[str, Any]:
    """Measure the quantised bundle, and compare it with its certificate."""
    bundle = ["--bundle", str(args.bundle), "--data", args.data]
    with served(folder, _command(folder, *bundle)) as url:
        difference = _served_difference(url, args.bundle)
        drive(url, "/rank", bodies, min(5, args.seconds))  # warm
        alone = drive(url, "/rank", bodies, args.seconds)
        together = drive(url, "/rank", bodies, args.seconds, args.clients)
    return {
        **_latency(alone, "rank"),
        **together.figures("rank_loaded"),
        "rank_requests_per_s": _rate(together),
        "rank_failed": alone.failed + together.failed,
        "parity_max_difference": difference,
    }


def _latency(answers: Answers, name: str) -> dict[str, float]:
    figures = answers.figures(name)
    del figures[f"{name}_requests_per_s"]
    return figures


def _rate(answers: Answers) -> float:
    return round((len(answers.seconds) - answers.failed) / answers.elapsed, 1)


def _served_difference(url: str, bundle: Path) -> float:
    """Return the largest difference of served scores from those of training."""
    runner = Runner.load(bundle)
    rows = pq.read_table(bundle / ROWS_FILE)
    client, parts = Client(url), []
    for request in requests_of(rows, list(runner.required_context)):
        body = {
            "user": request.user_id,
            "candidates": list(request.item_ids),
            "time": int(request.timestamp),
            "context": dict(request.context),
        }
        status, text = client.post("/rank", json.dumps(body, default=_plain).encode())
        assert status == 200, text
        scores = json.loads(text)["scores"]
        parts.append(np.array([scores[task] for task in runner.tasks]).T)
    found = np.concatenate(parts)
    names = [f"{TRAINED}{name}" for name in runner.score_columns]
    expected = np.stack([rows[name].to_numpy() for name in names], axis=1)
    return float(np.abs(found - expected).max())


def _plain(value: Any) -> Any:
    return value.tolist()


def _eager(
    args: argparse.Namespace, folder: Path, bodies: list[dict[str, Any]]
) -> dict[str, Any]:
    """Measure the ranker of training behind the same server."""
    command = ["-m", "apps.benchmarks.serving", _EAGER, "--run", str(args.run)]
    with served(folder, [*command, "--data", args.data]) as url:
        drive(url, "/rank", bodies, min(5, args.seconds))
        alone = drive(url, "/rank", bodies, args.seconds)
        together = drive(url, "/rank", bodies, args.seconds, args.clients)
    return {**_latency(alone, "eager"), "eager_requests_per_s": _rate(together)}


def _serve_eager(args: argparse.Namespace) -> None:
    """Serve the ranker of training, until SIGTERM."""
    from learn_torchrec.serving.deployment import Deployment
    from learn_torchrec.serving.events import open_events
    from learn_torchrec.serving.http.app import Settings
    from learn_torchrec.serving.http.server import listen, serve
    from learn_torchrec.serving.seed import seed

    from .eager_ranker import EagerRanker

    run = args.run
    command = ["--data", args.data, "--ranker", str(run / "ranker_learn")]
    command += ["--vectors", str(run / "vectors")]
    with (
        tempfile.TemporaryDirectory() as folder,
        EagerRanker.open(command) as ranker,
        listen("127.0.0.1", 0) as listening,
    ):
        store = open_events(f"{folder}/events.sqlite")
        seed(store, open_dataset(args.data), None)
        first = Deployment(version="eager", rankers={"eager": ranker})
        settings = Settings(seconds=30, watch_seconds=0, now=lambda: ranker.as_of)
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        serve(lambda: first, lambda: "eager", store, settings, listening, first)


def _reloads(
    args: argparse.Namespace, folder: Path, bodies: list[dict[str, Any]], rate: float
) -> dict[str, Any]:
    """Switch between two copies of a bundle under four fifths of the load."""
    for name in "ab":
        shutil.copytree(args.bundle, folder / name)
    manifest = folder / "b" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")  # another version, the same scores
    current = folder / "current"
    current.symlink_to("a")
    bundle = ["--bundle", str(current), "--data", args.data, "--watch-seconds=0.5"]
    memory: list[float] = []

    def switch(url: str) -> None:
        client = Client(url)
        for turn in range(args.reloads):
            time.sleep(args.reload_seconds / (args.reloads + 1))
            memory.append(_memory(client))
            new = folder / "new"
            new.symlink_to("ba"[turn % 2])
            new.replace(current)

    with served(folder, _command(folder, *bundle)) as url:
        drive(url, "/rank", bodies, min(5, args.seconds))
        switching = threading.Thread(target=switch, args=(url,))
        switching.start()
        answers = drive(
            url, "/rank", bodies, args.reload_seconds, args.clients, 0.8 * rate
        )
        switching.join()
        memory.append(_memory(Client(url)))
        done = _value(Client(url).get("/metrics"), 'reloads_total{outcome="done"}')
    # The first reloads find the room that two versions take.
    settled = memory[min(3, len(memory) - 2)]
    return {
        "reload_requests": len(answers.seconds),
        "reload_failed_requests": answers.failed,
        "reload_p99_ms": answers.figures("x")["x_p99_ms"],
        "reloads": int(done),
        "reload_seconds": args.reload_seconds,
        "memory_mb": round(memory[-1] / 2**20),
        "memory_growth": round(memory[-1] / settled - 1, 4),
    }


def _memory(client: Client) -> float:
    return _value(client.get("/metrics"), "process_resident_memory_bytes")


def _value(text: str, name: str) -> float:
    line = next(line for line in text.splitlines() if name in line and line[0] != "#")
    return float(line.split()[-1])


def _retrieval(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure searches among many items, in clusters as items come."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(max(10, args.items // 500), _DIM))
    vectors = folder / "vectors"
    with write_artifact(vectors, kind=KIND_VECTORS, config={}, inputs={}) as working:
        for side, count in ((ITEMS, args.items), (USERS, _USERS)):
            (working / side).mkdir()
            near = centres[random.integers(0, len(centres), count)]
            near = near + 0.8 * random.normal(size=near.shape)
            near /= np.linalg.norm(near, axis=1, keepdims=True)
            np.save(working / side / "vectors-00000.npy", near.astype(np.float16))
            write_index(working / side, np.arange(count))
    index = folder / "index"
    start = time.perf_counter()
    build_index.main(["--vectors", str(vectors), "--out", str(index)])
    seconds = time.perf_counter() - start
    facts = json.loads((index / "manifest.json").read_text())["facts"]
    bodies = [{"user": user, "k": _K} for user in range(_USERS)]
    more = ["--index", str(index), "--vectors", str(vectors)]
    command = [each for each in _command(folder, *more) if each != "--clock=data"]
    with served(folder, command) as url:
        drive(url, "/retrieve", bodies, min(5, args.seconds))
        alone = drive(url, "/retrieve", bodies, args.seconds)
        together = drive(url, "/retrieve", bodies, args.seconds, args.clients)
    return {
        "retrieve_items": args.items,
        "retrieve_kind": facts["kind"],
        "index_seconds": round(seconds, 1),
        "index_memory_mb": facts["memory_mb"],
        "index_recall_at_100": facts["recall_at_100"],
        **_latency(alone, "retrieve"),
        "retrieve_requests_per_s": _rate(together),
        "retrieve_failed": alone.failed + together.failed,
    }


if __name__ == "__main__":
    options.run(main)
