"""What every benchmark shares: options, side-by-side timing, peak memory, tests."""

import argparse
import gc
import importlib.util
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from learn_torchrec.errors import UserError

from ..checkup import machine as machine_checks
from ..checkup.installation import PIP
from ..common.program import HelpFormatter, write_json

RESULTS = Path(__file__).with_name("results")


def parser(
    name: str, description: str | None, figures: str | None = None
) -> argparse.ArgumentParser:
    """Return the parser of a benchmark, a module of this package, with `--json`.

    `figures` is the file in `RESULTS` for `--json` without a value, else `NAME.json`.
    """
    result = argparse.ArgumentParser(
        prog=f"python -m apps.benchmarks.{name}",
        description=description,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    result.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=RESULTS / (figures or f"{name}.json"),
        metavar="FILE",
        help="write the figures (default file: %(const)s)",
    )
    return result


def publish(results: Mapping[str, Any], path: Path | None, merge: bool = False) -> None:
    """Write figures where asked, then print them.

    With `merge` the file keeps the figures of other benchmarks.
    """
    if path:
        known = json.loads(path.read_text()) if merge and path.exists() else {}
        write_json(path, {**known, **results})
    print(json.dumps(results, indent=2))


def require(**wheels: str) -> None:
    """Check that modules are installed; `wheels` are their names for pip.

    Raises:
        UserError: a package is missing; names the pip command.
    """
    missing = [
        wheel
        for module, wheel in wheels.items()
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise UserError(
            f"this benchmark needs {' and '.join(missing)}; run {PIP} install "
            f"{' '.join(missing)}"
        )


def require_machine(
    processors: int = 1, disk_bytes: float = 0, folder: Path | None = None
) -> None:
    """Check that this machine has processors, and room in `folder` (default: TMPDIR).

    Raises:
        UserError: it has fewer or less.
    """
    present = machine_checks.processors()
    if present < processors:
        raise UserError(
            f"this benchmark needs {processors} processors, one for each rank; this "
            f"process may use {present}; run it on a larger machine"
        )
    folder = folder or Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if free < disk_bytes:
        raise UserError(
            f"this benchmark needs {disk_bytes / 1e9:.1f} GB of disk; {folder} has "
            f"{free / 1e9:.1f} free; ask for fewer --rows or set TMPDIR"
        )


def interleaved_medians(
    contenders: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Return the median seconds of each contender, run in turns.

    On a shared machine, whatever slows one round slows all contenders alike. Each runs
    once before the first timed round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(repeats):
        for name, run in contenders.items():
            gc.collect()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def bare_products(
    shapes: list[tuple[int, int, int, int]], dtype: torch.dtype
) -> Callable[[], None]:
    """Return a function that does matrix products and nothing else.

    Timed in turns with real work, it tells which share of the work's time the matrix
    products alone take on this machine. A shape (m, k, n, count) stands for `count`
    products [m, k] x [k, n].
    """
    operands = [
        (torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), count)
        for m, k, n, count in shapes
    ]

    def run() -> None:
        for left, right, count in operands:
            for _ in range(count):
                torch.mm(left, right)

    return run


def in_fresh_process(module: str, function: str, *arguments: Any) -> Any:
    """Return the result of a call in a process of its own.

    `module` is one of this package; arguments and result are JSON.
    """
    code = (
        f"import json, sys; from {__package__}.{module} import {function}; "
        f"print(json.dumps({function}(*json.loads(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory_mb() -> float:
    """Return the peak memory of this process so far, interpreter and libraries too."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_increase_mb(run: Callable[[], object]) -> float:
    """Return by how much a call raises the peak over the memory in use before."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident_mb = pages * resource.getpagesize() / 2**20
    run()
    return peak_memory_mb() - resident_mb


def run_tests(*paths: str) -> dict[str, int]:
    """Run tests that need no GPU, slow ones too; return how many passed and failed."""
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest, "-m", "not gpu", *paths],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    counts = {
        word: int(count)
        for count, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)
    }
    failed = counts.get("failed", 0) + counts.get("error", 0)
    if failed:
        print(done.stdout[-5000:], file=sys.stderr)
    return {"passed": counts.get("passed", 0), "failed": failed}
