"""Damage: every file of every artefact and checkpoint, changed, cut off and gone.

The stage that reads an artefact must refuse it in one line that names it; a training
must resume from an earlier checkpoint to the same result.
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

from .stages import LIMIT, STEPS, TriedStep, complete, content_of, start

_FOR_PEOPLE = ("config.json", "log.jsonl")  # no stage reads them


def damaged_copies(
    directory: Path, dice: random.Random
) -> Sequence[tuple[str, bytes | None]]:
    """Return every file of an artefact with a bit changed, cut off, and gone (None)."""
    copies: list[tuple[str, bytes | None]] = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name, whole = str(path.relative_to(directory)), path.read_bytes()
        if name in _FOR_PEOPLE or not whole:
            continue
        place = dice.randrange(len(whole))
        changed = bytes([whole[place] ^ (1 << dice.randrange(8))])
        copies.append((name, whole[:place] + changed + whole[place + 1 :]))
        copies.append((name, whole[: dice.randrange(len(whole))]))
        copies.append((name, None))
    return copies


def corruptions(folder: Path, dice: random.Random, jobs: int) -> dict[str, Any]:
    """Damage every artefact that a stage reads; return how often it was refused."""
    readers = {artefact: step for step in STEPS for artefact in step.inputs}
    with ThreadPoolExecutor(jobs) as pool:
        runs = [
            pool.submit(_damage_one, folder, artefact, step, dice.random())
            for artefact, step in readers.items()
        ]
        trials = [trial for run in runs for trial in run.result()]
    return {
        "corruptions": len(trials),
        "refused_cleanly": sum(clean for clean, _ in trials),
        "not_refused": [said for clean, said in trials if not clean],
    }


def _damage_one(
    folder: Path, artefact: str, step: TriedStep, seed: float
) -> list[tuple[bool, str]]:
    """Damage one artefact in a copy of all that its reader needs."""
    place = folder / "damaged" / artefact
    for name in ("shop", *step.inputs):
        shutil.copytree(folder / name, place / name)
    trials = []
    for name, damaged in damaged_copies(place / artefact, random.Random(seed)):
        path = place / artefact / name
        whole = path.read_bytes()
        put(path, damaged)
        clean, said = _refused(step, place, place / artefact)
        path.write_bytes(whole)
        trials.append((clean, f"{artefact}/{name}: {said}"))
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


def _refused(step: TriedStep, folder: Path, artefact: Path) -> tuple[bool, str]:
    """Run a stage on a damaged input; return whether it said so in one line."""
    out, log = folder / "refused", folder / "refused.stderr"
    log.unlink(missing_ok=True)
    status = start(step.run_command(folder, out), log).wait(LIMIT)
    text = log.read_text()
    said = [line for line in text.splitlines() if line.startswith("error: ")]
    clean = status == 2 and len(said) == 1 and "Traceback" not in text
    clean &= not out.exists() and str(artefact) in "".join(said)
    shutil.rmtree(out, ignore_errors=True)
    return clean, f"exit code {status}, {said[-1] if said else 'nothing said'}"


def damaged_checkpoints(
    folder: Path, dice: random.Random, jobs: int, each: int = 6
) -> dict[str, int]:
    """Damage the newest checkpoint of a killed run; it must end as if it had not been.

    Raises:
        RuntimeError: a run did not resume.
    """
    with ThreadPoolExecutor(jobs) as pool:
        runs = [
            pool.submit(_damage_checkpoint, step, folder, dice.random(), number)
            for step in STEPS
            if step.name in ("towers", "ranker")
            for number in range(each)
        ]
        same = [run.result() for run in runs]
    return {"checkpoints": len(same), "checkpoints_identical": sum(same)}


def _damage_checkpoint(step: TriedStep, folder: Path, seed: float, number: int) -> bool:
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


def _killed_with_two_checkpoints(step: TriedStep, folder: Path, out: Path) -> Path:
    process = start(step.run_command(folder, out), out.with_suffix(".stderr"))
    places = out.parent / "checkpoints" / out.name
    while len(list(places.glob("step-*"))) < 2:
        if process.poll() is not None:
            raise RuntimeError(f"{step.name} ended before its second checkpoint")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return max(places.glob("step-*"))
