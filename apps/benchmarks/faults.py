"""Fault injection: `make test-faults`.

- Every stage is killed with SIGKILL at random moments, all its ranks at once, and run
  again: the artefact must equal that of an undisturbed run, byte for byte.
- Every file of every artefact and checkpoint is damaged: see `damage`.
- Every call by which a stage writes fails once: see `errno_faults`.
- Artefacts are forged, with right checksums: see `forged`.
- A full disk, hung and slow ranks, clock jumps, NaNs, two runs with one output and the
  like: the tests of training and artefacts, the slow ones too.
- The cost of an asynchronous checkpoint beside a synchronous one: see `save_cost`.
"""

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

from ..common.hardware import describe_machine
from ..common.program import run
from . import errno_faults, measure, save_cost
from .damage import corruptions, damaged_checkpoints
from .forged import forgeries
from .stages import STEPS, FaultStep, complete, content_of, make_all, start

_TESTS = (
    "tests/training",
    "tests/test_artifact.py",
    "tests/test_publish.py",
    "tests/test_locks.py",
)


def kill(step: FaultStep, folder: Path, out: Path, after: float) -> bool:
    """Kill a stage and all its ranks; return whether it was still running."""
    process = start(step.run_command(folder, out), out.with_suffix(".stderr"))
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def random_kills(
    step: FaultStep, folder: Path, seconds: float, kills: int, seed: int
) -> dict[str, int]:
    """Kill a stage again and again; count how often it then made the same artefact.

    Two of three kills hit a fresh run, the third a run that was killed before.
    """
    generator = random.Random(f"{seed} {step.name}")
    wanted = content_of(folder / step.name)
    done = identical = 0
    while done < kills:
        out = folder / "killed" / f"{step.name}-{done}"
        hits = 0
        for _ in range(2 if done % 3 == 2 else 1):
            # The first part of a run is imports: nothing is at stake there.
            hits += kill(step, folder, out, seconds * generator.uniform(0.45, 1.0))
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
    parser = measure.parser("faults", __doc__)
    parser.add_argument(
        "--kills", type=int, default=50, metavar="N", help="of all stages"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the faults (default: the time)"
    )
    args = parser.parse_args(argv)
    measure.require(pytest="pytest")
    measure.require_machine(2)
    seed = int(time.time()) if args.seed is None else args.seed
    generator = random.Random(seed)
    results: dict[str, Any] = {"machine": describe_machine(), "seed": seed}
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
        results |= corruptions(folder, generator, args.jobs)
        results |= forgeries(folder, args.jobs)
        results |= damaged_checkpoints(folder, generator, args.jobs)
    results |= errno_faults.inject(errno_faults.MOST, seed, args.jobs)
    for count in ("kills", "identical"):
        results[count] = sum(stage[count] for stage in results["stages"].values())
    results["fault_tests"] = measure.run_tests(*_TESTS)
    results |= save_cost.measure_saves()
    # `soak` adds its figures to the same file.
    measure.publish(results, args.json, merge=True)
    ok = results["kills"] == results["identical"]
    ok &= results["corruptions"] == results["refused_cleanly"]
    ok &= results["forged"] == results["forged_one_line"]
    ok &= results["checkpoints"] == results["checkpoints_identical"]
    ok &= errno_faults.is_right(results)
    ok &= not results["fault_tests"]["failed"]
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    run(main)
