"""Every stage on one data set: text to vectors to towers to ranker to metrics."""

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
from typing import Any

from tqdm import tqdm

from learn_torchrec import config
from learn_torchrec.artifact import CONFIG, MANIFEST
from learn_torchrec.errors import Stopped, UserError, refuse_special
from learn_torchrec.evaluation.report.files import EXAMPLE, METRICS, RANKING, RETRIEVAL
from learn_torchrec.evaluation.report.render import report_files
from learn_torchrec.locks import locked
from learn_torchrec.outputs import UnwritableError
from learn_torchrec.presets import Run
from learn_torchrec.progress import move_to, progress_bar
from learn_torchrec.text import parse_json
from learn_torchrec.training.distributed import ranks_on_this_host
from learn_torchrec.training.run_log import live_log_path

from . import evaluate_auc, evaluate_retrieval
from .common import options, program
from .evaluating import summary
from .planning import preflight
from .planning.estimates import estimate
from .planning.preflight import Plan
from .planning.preflight_tables import choices_table, estimates_table
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
    options.add_data(parser, default="movielens:auto")
    parser.add_argument(
        "--out",
        type=program.output_path,
        required=True,
        metavar="DIR",
        help="where everything goes",
    )
    parser.add_argument(
        "--ranks",
        type=int,
        default=ranks_on_this_host(2),
        metavar="N",
        help="ranks of each distributed stage",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print the plan, and stop",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Plan every stage, run those that are not done yet, then evaluate."""
    given = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(given)
    run, planned = _plan(args, given)
    if args.dry_run:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    with locked(args.out):
        _run(args, run, planned)


def _plan(args: argparse.Namespace, given: Sequence[str]) -> tuple[Run, Plan]:
    """Print what will be done, and why.

    Raises:
        UserError: what would stop a stage, all of it.
    """
    _refuse_taken(args)
    problems = preflight.check_tables(options.dataset(args))
    if problems:
        raise UserError(*preflight.describe_problems(problems, given))
    if options.is_derived(args):
        derived = options.derive(args)
        run = derived.run
        print(choices_table(derived), flush=True)
    else:
        run = options.resolve(args)
    planned = preflight.check(options.dataset(args), run, args.ranks)
    estimates = estimate(run, planned.counts, args.ranks)
    preflight.check_machine(planned, args.out, estimates)
    if planned.problems:
        raise UserError(*preflight.describe_problems(planned.problems, given))
    print(f"\n{estimates_table(estimates)}\n")
    for name, reason in planned.left_out.items():
        print(f"left out: {name}: {reason}")
    return run, planned


def _refuse_taken(args: argparse.Namespace) -> None:
    """Refuse an --out whose files are not a run's, or are inputs.

    Raises:
        UserError: names the first.
    """
    page = report_files(args.out / summary.REPORT)
    files = (CONFIG, METRICS, RANKING, RETRIEVAL, EXAMPLE, *(one.name for one in page))
    names = [*(step.name for step in STEPS), *files]
    is_run = program.json_with("towers")
    program.check_output_folder(
        args.out, names, options.paths_read(args), lambda: is_run(args.out / CONFIG)
    )


def _run(args: argparse.Namespace, run: Run, planned: Plan) -> None:
    options.write_json(args.out / CONFIG, config.to_dict(run))
    left_out = dict(planned.left_out)
    steps = [
        step for step in STEPS if not preflight.is_left_out(step.command, left_out)
    ]
    seconds = _Seconds(args.out / "logs" / "seconds.json")
    for number, step in enumerate(steps, start=1):
        title = f"[{number}/{len(steps) + 1}] {step.name}"
        command = _command(step, args)
        app = importlib.import_module(step.stage.module)
        if app.plan(app.build_parser().parse_args(command)).is_done():
            print(f"{title}: done before", flush=True)
            continue
        print(f"{title}: running", flush=True)
        with seconds.measure(step.name):
            if step.command in _IN_THIS_PROCESS:
                app.main(command)
            else:
                _launch(step, command, args)
    print(f"[{len(steps) + 1}/{len(steps) + 1}] evaluation", flush=True)
    log = args.out / "logs" / "evaluation.log"
    with seconds.measure("evaluation"), summary.logged(log):
        metrics = _evaluate(args, run, left_out)
    metrics |= {"left_out": left_out, "seconds": seconds.values}
    options.write_json(args.out / "metrics.json", metrics)
    summary.conclude(args.out, args.data, options.dataset(args))


def _command(step: Step, args: argparse.Namespace) -> list[str]:
    """Return the options of a step's app."""
    result = ["--data", args.data, "--out", str(args.out / step.name), "--overwrite"]
    result += ["--config", str(args.out / CONFIG)]
    result += ["--strict"] if args.strict else []
    return result + input_options(step, STEPS, args.out)


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
    progress, began = live_log_path(args.out / step.name), time.time()
    programs = Path(sys.executable).parent  # torchx finds torchrun through PATH
    torchx = [str(programs / "torchx"), "run"]
    torchx += ["--scheduler", "local_cwd", "--wait", "--log", f"{_COMPONENTS}:stage"]
    # torchx and torchrun each put values in place of names such as ${app_id}.
    command = [part.replace("$", "$$$$") for part in command]
    with (
        output.open("w", encoding="utf-8") as stream,
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
                _show(progress, began, bar)
        finally:
            process.terminate()
    if process.returncode:
        raise UserError(*_failure(step.name, output))
    if not (args.out / step.name / MANIFEST).exists():
        raise Stopped(f"stage {step.name} was stopped; run it again to resume")


def _show(progress: Path, began: float, bar: "tqdm[None]") -> None:
    """Move the bar to the last step that the stage logged since it began."""
    try:
        if progress.stat().st_mtime < began:
            return  # an earlier run's
        lines = progress.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError):  # the last may be incomplete
            last = parse_json(line)
            move_to(bar, last["step"], last["total"])
            return


def _failure(name: str, output: Path) -> list[str]:
    lines = output.read_text(encoding="utf-8").splitlines()
    for line in lines:
        before, marker, message = line.partition("error: ")
        if marker and "Error" not in before:
            return [f"stage {name}: {message}"]
    tail = [f"  {line}" for line in lines[-_LAST_LINES:]]
    return [f"stage {name} failed; the end of {output}:", *tail]


def _evaluate(
    args: argparse.Namespace, run: Run, left_out: dict[str, str]
) -> dict[str, Any]:
    """Evaluate what there is; return the metrics, and add the rest to `left_out`."""
    out = args.out
    cohorts = dataclasses.asdict(run.cohorts)
    ranking = [
        *("--predictions", f"baseline={out / 'predictions_baseline'}"),
        f"learn={out / 'predictions_learn'}",
        *(f"--set=cohorts.{name}={value}" for name, value in cohorts.items()),
    ]
    retrieval = ["--data", args.data, "--config", str(out / CONFIG)]
    retrieval += ["--content", str(out / "content"), "--towers", str(out / "towers")]
    metrics: dict[str, Any] = {}
    for name, app, command, file in (
        (preflight.RANKING, evaluate_auc, ranking, "ranking.json"),
        (preflight.RETRIEVAL, evaluate_retrieval, retrieval, "retrieval.json"),
    ):
        if preflight.is_left_out(name, left_out):
            (out / file).unlink(missing_ok=True)  # of an earlier run
            continue
        print()
        try:
            app.main([*command, "--out", str(out / file)])
            metrics |= _read(out / file)
        except UnwritableError:
            raise  # nothing about the data
        except UserError as error:
            left_out[name] = str(error)
    return metrics


class _Seconds:
    """Seconds that each stage took in its last run, kept between runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, float] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # a log, no input
            self.values |= _read(path)

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Record how long the block takes, unless it raises."""
        start = time.monotonic()
        yield
        self.values[name] = round(time.monotonic() - start, 1)
        options.write_json(self._path, self.values)


def _read(path: Path) -> dict[str, float]:
    refuse_special(path)
    body: dict[str, float] = parse_json(path.read_text(encoding="utf-8"))
    return body


if __name__ == "__main__":
    options.run(main)
