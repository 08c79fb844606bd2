"""Damages every file of every artefact and checkpoint: changed, truncated, missing.

The stage that reads a damaged artefact must refuse it in one line that names it; a
training run must resume from an earlier checkpoint to the same result.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .stages import LIMIT, STEPS, FaultStep, complete, content_of, start

_DAMAGED_RUNS = 6  # of each training stage
_UNREAD = ("config.json", "log.jsonl")  # by any stage


def damaged_copies(
    directory: Path, generator: random.Random
) -> Sequence[tuple[str, bytes | None]]:
    """Return every file of an artefact: with a bit flipped, truncated, and as None."""
    copies: list[tuple[str, bytes | None]] = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name, whole = str(path.relative_to(directory)), path.read_bytes()
        if name in _UNREAD or not whole:
            continue
        place = generator.randrange(len(whole))
        changed = bytes([whole[place] ^ (1 << generator.randrange(8))])
        copies.append((name, whole[:place] + changed + whole[place + 1 :]))
        copies.append((name, whole[: generator.randrange(len(whole))]))
        copies.append((name, None))
    return copies


def corruptions(folder: Path, generator: random.Random, jobs: int) -> dict[str, Any]:
    """Damage every artefact that a stage reads; count how often it was refused."""
    readers = {artefact: step for step in STEPS for artefact in step.inputs}
    with ThreadPoolExecutor(jobs) as pool:
        runs = [
            pool.submit(_damage_one, folder, artefact, step, generator.random())
            for artefact, step in readers.items()
        ]
        trials = [trial for run in runs for trial in run.result()]
    return {
        "corruptions": len(trials),
        "refused_cleanly": sum(clean for clean, _ in trials),
        "not_refused": [outcome for clean, outcome in trials if not clean],
    }


def _damage_one(
    folder: Path, artefact: str, step: FaultStep, seed: float
) -> list[tuple[bool, str]]:
    """Damage one artefact in a copy of everything that its reader needs."""
    place = folder / "damaged" / artefact
    for name in ("market", *step.inputs):
        shutil.copytree(folder / name, place / name)
    trials = []
    for name, damaged in damaged_copies(place / artefact, random.Random(seed)):
        path = place / artefact / name
        whole = path.read_bytes()
        put(path, damaged)
        clean, outcome = _refused(step, place, place / artefact)
        path.write_bytes(whole)
        trials.append((clean, f"{artefact}/{name}: {outcome}"))
    print(
        f"{artefact}: {sum(c for c, _ in trials)} of {len(trials)} refused", flush=True
    )
    return trials


def put(path: Path, damaged: bytes | None) -> None:
    """Write a damaged file, or remove it."""
    if damaged is None:
        path.unlink()
    else:
        path.write_bytes(damaged)


def _refused(step: FaultStep, folder: Path, artefact: Path) -> tuple[bool, str]:
    """Run a stage on a damaged input; return whether one line said so, and what."""
    out, log = folder / "refused", folder / "refused.stderr"
    log.unlink(missing_ok=True)
    status = start(step.run_command(folder, out), log).wait(LIMIT)
    text = log.read_text()
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    clean = status == 2 and len(errors) == 1 and "Traceback" not in text
    clean &= not out.exists() and str(artefact) in "".join(errors)
    shutil.rmtree(out, ignore_errors=True)
    return clean, f"exit code {status}, {errors[-1] if errors else 'no error line'}"


def damaged_checkpoints(
    folder: Path, generator: random.Random, jobs: int
) -> dict[str, int]:
    """Damage the newest checkpoint of killed runs; count how many end identical.

    Raises:
        RuntimeError: a run did not resume.
    """
    with ThreadPoolExecutor(jobs) as pool:
        runs = [
            pool.submit(_damage_checkpoint, step, folder, generator.random(), number)
            for step in STEPS
            if step.name in ("towers", "ranker")
            for number in range(_DAMAGED_RUNS)
        ]
        same = [run.result() for run in runs]
    return {"checkpoints": len(same), "checkpoints_identical": sum(same)}


def _damage_checkpoint(step: FaultStep, folder: Path, seed: float, number: int) -> bool:
    out = folder / "killed" / f"{step.name}-damaged-{number}"
    newest = _killed_with_two_checkpoints(step, folder, out)
    copies = damaged_copies(newest, random.Random(seed))
    kinds = copies[number % 3 :: 3]
    name, damaged = kinds[random.Random(seed).randrange(len(kinds))]
    put(newest / name, damaged)
    complete(step, folder, out)
    same = content_of(out) == content_of(folder / step.name)
    print(f"{step.name}: checkpoint damaged in {name}, identical: {same}", flush=True)
    shutil.rmtree(out)
    return same


def _killed_with_two_checkpoints(step: FaultStep, folder: Path, out: Path) -> Path:
    process = start(step.run_command(folder, out), out.with_suffix(".stderr"))
    places = out.parent / "checkpoints" / out.name
    while len(list(places.glob("step-*"))) < 2:
        if process.poll() is not None:
            raise RuntimeError(f"{step.name} ended before its second checkpoint")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return max(places.glob("step-*"))
