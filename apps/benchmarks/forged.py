"""Forged artefacts: whoever writes a manifest can also write its checksum.

Each artefact that a stage reads is changed in every way of `FORGERIES`, and its reader
run on it: exit code 2, one line that names the artefact, and no output. A reader runs
in a fork of this process, which has loaded its modules, and may not hang.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from learn_torchrec.artifact import MANIFEST, Manifest, describe_file
from learn_torchrec.content import store as content
from learn_torchrec.datasets.generated.market import MarketConfig, write_market
from learn_torchrec.publish import write_artifact
from learn_torchrec.schema import ITEM_ID, ITEMS_FILE

from .. import main as command_line
from ..common.program import run
from . import measure
from .stages import STEPS, FaultStep

_MARKET = MarketConfig(users=80, items=40, days=12, impressions=3_000)
_FEW_STEPS = ("towers.training.epochs=1", "ranker.training.epochs=1")
_UNREAD = ("optimizer", "user_vectors", "item_vectors")  # by the readers used here
_LIMIT = 120.0  # seconds of one reader
_PREDICTIONS = "predictions"
_RECORD = {"bytes": 1, "sha256": "0" * 64}


def forge(directory: Path, **changes: Any) -> None:
    """Change entries of a manifest, and write the checksum of the result."""
    path = directory / MANIFEST
    body = json.loads(path.read_text()) | changes
    try:
        body["checksum"] = Manifest(**(body | {"checksum": ""})).digest()
    except (AttributeError, TypeError):  # what it holds has no checksum
        body["checksum"] = ""
    path.write_text(json.dumps(body))


def _list_also(directory: Path, name: str) -> None:
    files = json.loads((directory / MANIFEST).read_text())["files"]
    forge(directory, files={**files, name: _RECORD})


def _largest(directory: Path) -> Path:
    files = (
        path
        for path in directory.rglob("*")
        if path.is_file() and not str(path.relative_to(directory)).startswith(_UNREAD)
    )
    return max(files, key=lambda path: path.stat().st_size)


def _replace(directory: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the largest file, and list it as it then is."""
    path = _largest(directory)
    path.write_bytes(change(path.read_bytes()))
    files = json.loads((directory / MANIFEST).read_text())["files"]
    files[str(path.relative_to(directory))] = describe_file(path)
    forge(directory, files=files)


def _pipe(directory: Path) -> None:
    path = _largest(directory)
    path.unlink()
    os.mkfifo(path)


def _link(directory: Path) -> None:
    """Move the largest file away, and link to it."""
    path = _largest(directory)
    path.rename(directory.parent / "elsewhere")
    path.symlink_to(directory.parent / "elsewhere")


def _extra(directory: Path) -> None:
    path = _largest(directory)
    shutil.copy(path, path.with_name(f"z-{path.name}"))


def _deep(directory: Path) -> None:
    (directory / MANIFEST).write_text('{"facts": ' + "[" * 100_000)


FORGERIES: dict[str, Callable[[Path], None]] = {
    "lists no files": lambda d: forge(d, files={}),
    "a NUL in a name": lambda d: _list_also(d, "a\0b"),
    "a name outside": lambda d: _list_also(d, "../market"),
    "a file that is not listed": _extra,
    "a pipe": _pipe,
    "a link that leads out": _link,
    "a deep manifest": _deep,
    "a cut-off of 400 digits": lambda d: forge(d, cutoff=10**400),
    "a cut-off as text": lambda d: forge(d, cutoff="now"),
    "facts as text": lambda d: forge(d, facts="none"),
    "other bytes, listed": lambda d: _replace(
        d, lambda b: random.Random(0).randbytes(len(b))
    ),
    "half a file, listed": lambda d: _replace(d, lambda b: b[: len(b) // 2]),
}


def forgeries(folder: Path, jobs: int) -> dict[str, Any]:
    """Forge every kind of artefact in a folder of `make`; count how it was refused."""
    readers = {name: step for step in STEPS if step.ranks == 1 for name in step.inputs}
    _preload()
    with ThreadPoolExecutor(jobs) as pool:
        runs = [
            pool.submit(_refused, folder, artefact, how, readers.get(artefact))
            for artefact in (*readers, _PREDICTIONS)
            for how in FORGERIES
        ]
        outcomes = [outcome.result() for outcome in runs]
    missed = [outcome for outcome in outcomes if outcome]
    return {
        "forged": len(outcomes),
        "forged_one_line": len(outcomes) - len(missed),
        "forged_missed": missed,
    }


def make(folder: Path) -> None:
    """Write a small market and an artefact of each kind.

    Raises:
        RuntimeError: a stage failed.
    """
    _preload()
    (folder / "market").mkdir()
    for _ in write_market(_MARKET, folder / "market"):
        pass
    ids = pq.read_table(folder / "market" / ITEMS_FILE)[ITEM_ID].combine_chunks()
    vectors = np.random.default_rng(0).normal(size=(len(ids), 64))
    made: dict[str, Any] = {"kind": content.KIND, "config": {}, "inputs": {}}
    with write_artifact(folder / "content", **made) as working:
        content.write_content_store(working, ids, vectors)
    for step in STEPS:
        if step.ranks > 1 or step.name == "content":
            continue
        log = folder / f"{step.name}.log"
        argv = [step.command, *step.run_command(folder, folder / step.name)[3:]]
        if code := _in_a_fork([*argv, "--set", *_FEW_STEPS], log):
            raise RuntimeError(f"{step.name}: exit code {code}: {log.read_text()}")
        print(f"made {step.name}", flush=True)


def _preload() -> None:
    """Import what the forks then need not import."""
    for app in ("evaluate_auc", *(step.stage.app for step in STEPS)):
        importlib.import_module(f"..{app}", __package__)


def _in_a_fork(argv: Sequence[str], errors: Path) -> int | None:
    """Run a command; return its exit code, None if it hangs."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_read, args=(argv, errors))
    child.start()
    child.join(_LIMIT)
    if child.exitcode is None:
        child.kill()
    return child.exitcode


def _refused(folder: Path, artefact: str, how: str, step: FaultStep | None) -> str:
    """Forge an artefact for its reader; return what was wrong, "" for nothing."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="forged-") as name:
        place = Path(name)
        for path in folder.iterdir():
            if path.is_dir() and not path.name.startswith("forged-"):
                (place / path.name).symlink_to(path)
        (place / artefact).unlink()
        shutil.copytree(folder / artefact, place / artefact)
        FORGERIES[how](place / artefact)
        out, errors = place / "refused", place / "errors"
        if step is None:
            given = ["--predictions", f"p={place / artefact}", "--out", str(out)]
            argv = ["evaluate-auc", *given]
        else:
            argv = [step.command, *step.run_command(place, out)[3:]]
        code = _in_a_fork(argv, errors)
        text = errors.read_text()
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        clean = code == 2 and len(lines) == 1 and "Traceback" not in text
        clean &= not out.exists() and str(place / artefact) in "".join(lines)
        last = (text.splitlines() or ["no output"])[-1]
        return "" if clean else f"{artefact}, {how}: exit {code}, {last}"


def _read(argv: Sequence[str], errors: Path) -> None:
    """Run a command with its standard error in a file."""
    with errors.open("w", buffering=1) as stream:
        os.dup2(stream.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code: object = 1
        with contextlib.redirect_stderr(stream):
            try:
                command_line.main(argv)
                code = 0
            except SystemExit as ended:
                code = ended.code
            except BaseException:
                traceback.print_exc()
    os._exit(code if isinstance(code, int) else 1)  # the parent's threads are not here


def main(argv: Sequence[str] | None = None) -> None:
    """Forge, print the counts, and write them where asked."""
    parser = measure.parser("forged", __doc__, "faults.json")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time")
    args = parser.parse_args(argv)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="forged-artefacts-") as name:
        make(Path(name))
        results = forgeries(Path(name), args.jobs)
    print(f"{time.monotonic() - start:.0f} s")
    measure.publish(results, args.json, merge=True)


if __name__ == "__main__":
    run(main)
