"""An hour of the ranker on a generated market at two ranks: is memory flat?

The real job with LEARN's vectors, streamed from Parquet with checkpoints, started by
torchrun and ended by SIGTERM, as by a scheduler. Memory is the ranks' resident size
together: its median in the fifth of the time after the warm-up against the last fifth.
Throughput is compared between the same spans, in steps per second and in steps per
second of CPU time. Run it alone: other load on the machine disturbs both.
"""

import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from learn_torchrec.datasets.generated.market import MarketConfig, write_market

from ..common.hardware import describe_machine
from ..common.program import run
from . import measure
from .stages import STEPS, FaultStep, complete, start

_MARKET = MarketConfig(users=4_000, items=1_000, days=12, impressions=600_000)
_TOWERS = ("towers.training.epochs=1", "towers.training.batch_size=256")
_RANKER = FaultStep(
    "soak",
    "train-ranker",
    ("vectors",),
    ranks=2,
    settings=(
        "ranker.training.batch_size=1024",
        "ranker.training.stream.enabled=true",
        "ranker.training.epochs=100000",
        "checkpoint.every_steps=500",
    ),
)
_SAMPLE_SECONDS = 5.0
_WARM_UP, _SPAN = 0.2, 0.2  # shares of the time


@dataclass(frozen=True)
class Sample:
    """One observation of the running job.

    Attributes:
        seconds: since the start.
        processor: CPU seconds that the ranks have used.
        megabytes: resident size of the ranks.
        step: of the newest checkpoint.
    """

    seconds: float
    processor: float
    megabytes: float
    step: int


def prepare(folder: Path) -> None:
    """Write the market, and the vectors that its ranker reads."""
    (folder / "market").mkdir()
    for _ in write_market(_MARKET, folder / "market"):
        pass
    for step in STEPS:
        if step.name in ("content", "towers", "vectors"):
            quick = replace(step, settings=(*step.settings, *_TOWERS))
            complete(quick, folder, folder / step.name)


def watch(minutes: float, folder: Path) -> tuple[list[Sample], int]:
    """Train for some minutes, then stop; return the samples and the exit code.

    Raises:
        RuntimeError: the job ended before it was told to.
    """
    log = folder / "soak.stderr"
    job = start(_RANKER.run_command(folder, folder / _RANKER.name), log)
    began, samples = time.monotonic(), []
    while (seconds := time.monotonic() - began) < 60 * minutes:
        if job.poll() is not None:
            raise RuntimeError(f"the job ended: {log.read_text()[-2000:]}")
        ranks = psutil.Process(job.pid).children(recursive=True)
        memory = sum(rank.memory_info().rss for rank in ranks) / 2**20
        processor = sum(sum(rank.cpu_times()[:2]) for rank in ranks)
        steps = [
            int(path.name.removeprefix("step-"))
            for path in (folder / "checkpoints" / _RANKER.name).glob("step-*")
        ]
        samples.append(Sample(seconds, processor, memory, max(steps, default=0)))
        print(samples[-1], flush=True)
        time.sleep(_SAMPLE_SECONDS)
    for rank in psutil.Process(job.pid).children():
        rank.send_signal(signal.SIGTERM)
    return samples, job.wait(120)


def summary(samples: list[Sample], minutes: float) -> dict[str, Any]:
    """Return growth of memory and drift of throughput between two spans."""
    total = 60 * minutes
    early = [s for s in samples if _WARM_UP <= s.seconds / total < _WARM_UP + _SPAN]
    late = [s for s in samples if s.seconds / total >= 1 - _SPAN]
    memory = [statistics.median(s.megabytes for s in span) for span in (early, late)]
    rates = [_rates(span) for span in (early, late)]
    drift = [late / early - 1 for early, late in zip(*rates, strict=True)]
    return {
        "soak_minutes": minutes,
        "soak_steps": samples[-1].step,
        "soak_memory_mb": round(memory[1]),
        "soak_memory_growth": round(memory[1] / memory[0] - 1, 4),
        "soak_throughput_drift": round(drift[0], 4),
        "soak_processor_drift": round(drift[1], 4),
    }


def _rates(span: list[Sample]) -> tuple[float, float]:
    """Return steps per second, and steps per second of CPU time."""
    first, last = span[0], span[-1]
    steps = last.step - first.step
    return (
        steps / (last.seconds - first.seconds),
        steps / (last.processor - first.processor),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, and add the figures to those of the fault suite where asked."""
    parser = measure.parser("soak", __doc__, "faults.json")
    parser.add_argument(
        "--minutes", type=float, default=60.0, metavar="N", help="of training"
    )
    args = parser.parse_args(argv)
    measure.require_machine(2)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        prepare(Path(name))
        samples, status = watch(args.minutes, Path(name))
    result = summary(samples, args.minutes)
    result |= {"soak_exit_code": status, "soak_machine": describe_machine()}
    measure.publish(result, args.json, merge=True)


if __name__ == "__main__":
    run(main)
