"""What every benchmark shares: side-by-side timing, the machine's rate, memory."""

import argparse
import gc
import importlib.util
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from learn_torchrec.errors import UserError

from ..checkup.installation import PIP
from ..program import write_json

RESULTS = Path(__file__).with_name("results")


def add_json(parser: argparse.ArgumentParser, name: str) -> None:
    """Add `--json`: a file for the figures, without a value the committed one."""
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=RESULTS / name,
        metavar="FILE",
        help="write the figures (default file: %(const)s)",
    )


def publish(results: Mapping[str, Any], path: Path | None, merge: bool = False) -> None:
    """Write the figures where asked, then print them.

    Args:
        results: the figures.
        path: of the file; None for none.
        merge: keep what the file holds of other benchmarks.
    """
    if path:
        known = json.loads(path.read_text()) if merge and path.exists() else {}
        write_json(path, {**known, **results})
    print(json.dumps(results, indent=2))


def require(**wheels: str) -> None:
    """Check that what a benchmark compares with is installed, before it starts.

    Args:
        wheels: the module, and the name by which pip knows it.

    Raises:
        UserError: names the pip command.
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


def interleaved_medians(
    contenders: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Return the median seconds of each contender, run in turns.

    Turns matter on a shared machine: what slows one round slows all contenders of
    it alike. Each is run once before the first timed round.
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

    Timed in turns with real work, it tells which share of the work's time the
    machine needs for the products alone.

    Args:
        shapes: (m, k, n, count): `count` products [m, k] x [k, n] each.
        dtype: of the matrices.
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


def peak_memory_mb(module: str, function: str, *arguments: Any) -> float:
    """Return how much a call raises the peak memory of a fresh process, in MB.

    The function is called as `function(*arguments)`; it must print nothing and
    return another function without arguments, the part that is measured.
    """
    code = (
        f"import json, sys\nfrom {__package__}.measure import _measured\n"
        f"from {module} import {function} as prepare\n"
        f"print(_measured(prepare(*json.loads(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def _measured(run: Callable[[], object]) -> float:
    before = _resident_mb()
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def machine() -> dict[str, Any]:
    """Describe the machine a figure was measured on."""
    name = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() as lines:
        for line in lines:
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return {
        "processor": name,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def run_tests(*paths: str) -> dict[str, int]:
    """Run tests that need no GPU, slow ones too; return how many passed and failed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "not gpu",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "-m", "not gpu", *paths],
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
