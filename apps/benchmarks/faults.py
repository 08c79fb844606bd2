"""Faults on purpose: `make test-faults`.

- Every stage is killed with SIGKILL at random moments of its work, all its ranks at
  once, and run again: the artefact must equal that of a run nobody killed, byte for
  byte.
- Every file of every artefact and checkpoint is damaged: see `damage`.
- Full disk, hung and slow rank, a clock that jumps, numbers that are none, two runs in
  one place and the like: the tests of training and artefacts, the slow ones too.
- What an asynchronous checkpoint costs, beside a synchronous one: `save_cost`.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..program import run
from . import save_cost
from .damage import corruptions, damaged_checkpoints
from .measure import add_json, machine, publish, require, run_tests
from .stages import STEPS, TriedStep, complete, content_of, make_all, start

_TESTS = ("tests/training", "tests/test_artifact.py")


def kill(step: TriedStep, folder: Path, out: Path, after: float) -> bool:
    """Kill a stage and all its ranks; return whether it was still at work."""
    process = start(step.run_command(folder, out), out.with_suffix(".stderr"))
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def random_kills(
    step: TriedStep, folder: Path, seconds: float, kills: int, seed: int
) -> dict[str, int]:
    """Kill a stage again and again; return how often it then gave the same artefact.

    Two of three kills hit a fresh run, the third one that was killed before.
    """
    dice = random.Random(f"{seed} {step.name}")
    wanted = content_of(folder / step.name)
    done = identical = 0
    while done < kills:
        out = folder / "killed" / f"{step.name}-{done}"
        hits = 0
        for _ in range(2 if done % 3 == 2 else 1):
            # Imports take the first part of a run, in which nothing is at stake.
            hits += kill(step, folder, out, seconds * dice.uniform(0.45, 1.0))
        if not hits:
            shutil.rmtree(out)
            continue
        complete(step, folder, out)
        done += 1
        identical += content_of(out) == wanted
        shutil.rmtree(out)
        print(f"{step.name}: {identical} of {done} kills, identical", flush=True)
    return {"kills": done, "identical": identical}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the suite, print the counts, and write them where asked."""
    parser = argparse.ArgumentParser(prog="apps.benchmarks.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="stages side by side")
    parser.add_argument("--seed", type=int, help="of the moments (default: the time)")
    add_json(parser, "faults.json")
    args = parser.parse_args(argv)
    require(pytest="pytest")
    seed = int(time.time()) if args.seed is None else args.seed
    dice = random.Random(seed)
    results: dict[str, Any] = {"machine": machine(), "seed": seed}
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        seconds = make_all(folder)
        (folder / "killed").mkdir()
        with ThreadPoolExecutor(args.jobs) as pool:
            counts = {
                step.name: pool.submit(
                    random_kills,
                    *(step, folder, seconds[step.name]),
                    *(max(1, round(step.share * args.kills)), seed),
                )
                for step in STEPS
            }
        results["stages"] = {name: count.result() for name, count in counts.items()}
        results |= corruptions(folder, dice, args.jobs)
        results |= damaged_checkpoints(folder, dice, args.jobs)
    for count in ("kills", "identical"):
        results[count] = sum(stage[count] for stage in results["stages"].values())
    results["fault_tests"] = run_tests(*_TESTS)
    results |= save_cost.measure()
    # The hour of `soak` adds its figures to the same file.
    publish(results, args.json, merge=True)
    ok = results["kills"] == results["identical"]
    ok &= results["corruptions"] == results["refused_cleanly"]
    ok &= results["checkpoints"] == results["checkpoints_identical"]
    ok &= not results["fault_tests"]["failed"]
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    run(main)
