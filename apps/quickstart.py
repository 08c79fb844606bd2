"""Every stage on MovieLens-100K: text to vectors to towers to ranker to metrics."""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from learn_torchrec.artifact import MANIFEST
from learn_torchrec.errors import Stopped, UserError
from learn_torchrec.progress import move_to, progress_bar
from learn_torchrec.training.distributed import ranks_on_this_host
from learn_torchrec.training.run_log import live_log_path

from . import evaluate_auc, evaluate_retrieval, options, program
from .stages import Step, input_options

_POLL_SECONDS = 0.5
_LAST_LINES = 15


STEPS = (
    Step("content", "encode-content"),
    Step("towers", "train-towers", ("content",)),
    Step("vectors", "export-vectors", ("content", "towers")),
    Step("ranker_baseline", "train-ranker"),
    Step("ranker_learn", "train-ranker", ("vectors",)),
    Step("predictions_baseline", "predict", ("ranker_baseline",)),
    Step("predictions_learn", "predict", ("ranker_learn", "vectors")),
)
# A language model uses all cores from one process.
_IN_THIS_PROCESS = ("encode-content",)
# Beside this package, in a checkout as well as installed.
_COMPONENTS = Path(__file__).parents[1] / "torchx_components" / "learn.py"


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    parser = options.parser("quickstart", __doc__)
    parser.add_argument(
        "--data",
        default="movielens:auto",
        metavar="ADAPTER:PATH",
        help=options.DATA_HELP,
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where everything goes"
    )
    parser.add_argument(
        "--ranks",
        type=int,
        default=ranks_on_this_host(2),
        metavar="N",
        help="ranks of each distributed stage",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run every stage that is not done yet, then evaluate."""
    args = build_parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    seconds = _Seconds(args.out / "logs" / "seconds.json")
    for number, step in enumerate(STEPS, start=1):
        title = f"[{number}/{len(STEPS) + 1}] {step.name}"
        command = _command(step, args)
        app = importlib.import_module(f"{__package__}.{step.stage.app}")
        if app.plan(app.build_parser().parse_args(command)).is_done():
            print(f"{title}: done before", flush=True)
            continue
        print(f"{title}: running", flush=True)
        with seconds.measure(step.name):
            if step.command in _IN_THIS_PROCESS:
                app.main(command)
            else:
                _launch(step, command, args)
    print(f"[{len(STEPS) + 1}/{len(STEPS) + 1}] evaluation", flush=True)
    with seconds.measure("evaluation"):
        _evaluate(args)
    metrics = {
        **_read(args.out / "ranking.json"),
        **_read(args.out / "retrieval.json"),
        "seconds": seconds.values,
    }
    options.write_json(args.out / "metrics.json", metrics)
    print(f"\nwritten to {args.out / 'metrics.json'}")


def _command(step: Step, args: argparse.Namespace) -> list[str]:
    """Return the options of a step's app."""
    result = ["--data", args.data, "--out", str(args.out / step.name), "--overwrite"]
    return result + input_options(step, STEPS, args.out) + _configuration(args)


def _configuration(args: argparse.Namespace) -> list[str]:
    if args.config is not None:
        result = ["--config", str(args.config)]
    else:
        result = ["--preset", args.preset]
    return result + [f"--set={override}" for override in args.overrides]


def _launch(step: Step, command: list[str], args: argparse.Namespace) -> None:
    """Run a stage on several ranks through torchx and show its progress.

    Raises:
        UserError: the stage failed; holds the stage's error line if it printed one.
        Stopped: the stage was stopped.
    """
    logs = args.out / "logs"
    logs.mkdir(exist_ok=True)
    output = logs / f"{step.name}.log"
    print(f"  its log: {output}", flush=True)
    progress = live_log_path(args.out / step.name)
    if not (args.out / "checkpoints" / step.name).exists():
        progress.unlink(missing_ok=True)  # of an earlier run, not to be resumed
    programs = Path(sys.executable).parent  # torchx finds torchrun through PATH
    torchx = [str(programs / "torchx"), "run"]
    torchx += ["--scheduler", "local_cwd", "--wait", "--log", f"{_COMPONENTS}:stage"]
    with (
        output.open("w") as stream,
        progress_bar(step.name) as bar,
    ):
        process = subprocess.Popen(
            [*torchx, "-j", f"1x{args.ranks}", "--", step.command, *command],
            env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            preexec_fn=program.end_with_parent,
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                _show(progress, bar)
        finally:
            process.terminate()
    if process.returncode:
        raise UserError(_failure(step.name, output))
    if not (args.out / step.name / MANIFEST).exists():
        raise Stopped(f"stage {step.name} was stopped; run it again to resume")


def _show(progress: Path, bar: "tqdm[None]") -> None:
    """Move the bar to the last step that the stage logged."""
    try:
        lines = progress.read_text().splitlines()
    except FileNotFoundError:
        return
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError):  # the last may be incomplete
            last = json.loads(line)
            move_to(bar, last["step"], last["total"])
            return


def _failure(name: str, output: Path) -> str:
    lines = output.read_text().splitlines()
    for line in lines:
        before, marker, message = line.partition("error: ")
        if marker and "Error" not in before:
            return f"stage {name}: {message}"
    tail = "\n  ".join(lines[-_LAST_LINES:])
    return f"stage {name} failed; the end of {output}:\n  {tail}"


def _evaluate(args: argparse.Namespace) -> None:
    out = args.out
    cohorts = dataclasses.asdict(options.resolve(args).cohorts)
    print()
    evaluate_auc.main(
        [
            "--predictions",
            f"baseline={out / 'predictions_baseline'}",
            f"learn={out / 'predictions_learn'}",
            "--out",
            str(out / "ranking.json"),
            *(f"--set=cohorts.{name}={value}" for name, value in cohorts.items()),
        ]
    )
    print()
    evaluate_retrieval.main(
        [
            *("--data", args.data, "--content", str(out / "content")),
            *("--towers", str(out / "towers"), "--out", str(out / "retrieval.json")),
            *_configuration(args),
        ]
    )


class _Seconds:
    """Seconds that each stage took in its last run, kept between runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, float] = _read(path) if path.exists() else {}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Record how long the block takes, unless it raises."""
        start = time.monotonic()
        yield
        self.values[name] = round(time.monotonic() - start, 1)
        options.write_json(self._path, self.values)


def _read(path: Path) -> dict[str, float]:
    body: dict[str, float] = json.loads(path.read_text())
    return body


if __name__ == "__main__":
    options.run(main)
