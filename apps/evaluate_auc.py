"""Score prediction files: AUC, UAUC, WUAUC, NE and calibration by cohort."""

import argparse
import contextlib
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from learn_torchrec.artifact import MANIFEST, verify
from learn_torchrec.config import apply_overrides, configuration
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import ranking
from learn_torchrec.evaluation.auc import (
    DEFAULT_METRICS,
    METRICS,
    named_metrics,
)
from learn_torchrec.evaluation.cohorts import CohortConfig
from learn_torchrec.evaluation.communicator import (
    Communicator,
    LocalCommunicator,
    TorchCommunicator,
)
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.gate import Gate, check_gate, check_names, parse_gate
from learn_torchrec.evaluation.metric import Metric
from learn_torchrec.evaluation.parquet import lone_part_note
from learn_torchrec.evaluation.peers import PeerNumbers, compare_conventions
from learn_torchrec.evaluation.predictions import (
    Predictions,
    read_predictions,
    refuse_different_rows,
    with_shared_columns,
)
from learn_torchrec.evaluation.rows import prepare_rows
from learn_torchrec.evaluation.tasks import (
    KIND_PREDICTIONS,
    TASKS,
    Task,
    tasks_by_name,
    tasks_of,
)
from learn_torchrec.schema import LABEL, SCORE

from . import program
from .ranking_tables import (
    Differences,
    conventions_table,
    differences_table,
    gates_table,
    metrics_table,
)

logger = logging.getLogger(__name__)


@configuration
class EvaluationConfig:
    """What `--set` may change here."""

    cohorts: CohortConfig = field(default_factory=CohortConfig)
    convention: Convention = PAPER


def parser() -> argparse.ArgumentParser:
    """Return the options of this app."""
    result = argparse.ArgumentParser(
        prog="learn-torchrec evaluate-auc",
        description=__doc__,
        epilog="With two or more files, each later one is compared with the first "
        "by a paired bootstrap over users. Exit code 1: a gate did not hold.",
        allow_abbrev=False,
    )
    result.add_argument(
        "--predictions",
        nargs="+",
        required=True,
        metavar="NAME=FILE_OR_DIR",
        help="prediction Parquet file, folder of parts, or artefact of predict",
    )
    result.add_argument(
        "--label", metavar="COLUMN", help=f"column of 0 and 1 (default: {LABEL})"
    )
    result.add_argument(
        "--score",
        metavar="COLUMN",
        help=f"column of scores (default: {SCORE}; by default the tasks that an "
        "artefact lists)",
    )
    result.add_argument(
        "--metrics",
        nargs="+",
        choices=tuple(METRICS),
        default=[one.name for one in DEFAULT_METRICS],
        metavar="NAME",
        help=f"of {', '.join(METRICS)} (default: all but the last)",
    )
    result.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="metrics JSON to write"
    )
    result.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        dest="overrides",
        metavar="SECTION.FIELD=VALUE",
        help="change a bound of the cohorts (cohorts.user_others_from=100) or the "
        "convention (convention.user_weight=clicks)",
    )
    result.add_argument(
        "--cohort-column",
        metavar="COLUMN",
        help="a column of the predictions whose values are cohorts of their own",
    )
    result.add_argument(
        "--stream",
        action="store_true",
        help="read in batches, once a cohort, and keep 13 to 33 bytes of a row, under "
        "torchrun on many ranks; files are not compared",
    )
    result.add_argument(
        "--compare-conventions",
        action="store_true",
        help="print what TorchRec, TorchEasyRec, RecBole, FuxiCTR and RecIS would",
    )
    result.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="CONDITION",
        help="of every comparison, e.g. 'uauc>=+0.002', 'auc.low>0', "
        "'uauc.p@user_cold<0.05', of one task 'ctr.uauc>=0'; may be repeated",
    )
    result.add_argument(
        "--resamples",
        type=int,
        default=1000,
        metavar="N",
        help="bootstrap resamples (default: %(default)s)",
    )
    result.add_argument(
        "--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)"
    )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Read the files, print the tables, write the JSON and check the gates."""
    args = parser().parse_args(argv)
    _refuse_unfit(args)
    paths = parse_names(args.predictions)
    config = apply_overrides(EvaluationConfig(), args.overrides)
    metrics = named_metrics(args.metrics)
    gates = [parse_gate(text) for text in args.gate]
    for path in paths.values():
        if (path / MANIFEST).is_file() and program.is_first_rank():
            verify(path, KIND_PREDICTIONS)
        if note := lone_part_note(path):
            logger.info(note)
    tasks = tasks_by_name({name: _tasks(path, args) for name, path in paths.items()})
    _refuse_unknown_tasks(gates, tasks)
    tables = io.StringIO()
    with contextlib.redirect_stdout(tables):
        if args.stream:
            by_task = stream(paths, tasks, config, metrics)
        else:
            by_task = {
                task: evaluate(
                    read(paths, columns, config, args.cohort_column),
                    config,
                    metrics,
                    [gate for gate in gates if gate.task in ("", task)],
                    args,
                    heading=_heading(task, tasks),
                )
                for task, columns in tasks.items()
            }
    if program.is_first_rank():  # printed last: a pipe may break
        program.write_json(args.out, ranking.to_json(_body(by_task, config)))
    print(tables.getvalue(), end="")
    bodies = by_task.values()
    if not all(one["passed"] for body in bodies for one in body.get("gates", [])):
        sys.exit(1)


def _body(
    by_task: Mapping[str, Mapping[str, Any]], config: EvaluationConfig
) -> dict[str, Any]:
    """Return the JSON: a body by task, of one task the body itself."""
    if len(by_task) > 1:
        return {TASKS: by_task, "settings": config}
    (body,) = by_task.values()
    first, *others = body.items()
    return dict([first, ("settings", config), *others])


def _tasks(path: Path, args: argparse.Namespace) -> list[Task]:
    """Return the tasks of a file: the options' columns, or what its manifest lists."""
    if args.label is None and args.score is None:
        return tasks_of(path)
    return [Task("", args.label or LABEL, args.score or SCORE)]


def _heading(task: str, tasks: Mapping[str, object]) -> str:
    return f"task {task}" if len(tasks) > 1 else ""


def _refuse_unknown_tasks(gates: Sequence[Gate], tasks: Mapping[str, object]) -> None:
    for gate in gates:
        if gate.task and gate.task not in tasks:
            known = ", ".join(name for name in tasks if name) or "none with a name"
            raise UserError(
                f"--gate {gate.text}: no task {gate.task}; there are {known}"
            )


def _refuse_unfit(args: argparse.Namespace) -> None:
    for option, value, least in (
        ("--resamples", args.resamples, 1),
        ("--seed", args.seed, 0),
    ):
        if value < least:
            raise UserError(f"{option} {value}: use {least} or more")
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: is a directory; name a JSON file")
    if args.gate and len(args.predictions) < 2:
        raise UserError("--gate: compares files; name two or more --predictions")
    for option, is_given in (
        ("--gate", args.gate),
        ("--compare-conventions", args.compare_conventions),
        ("--cohort-column", args.cohort_column),
    ):
        if args.stream and is_given:
            raise UserError(f"{option}: needs all rows in memory; leave out --stream")


def stream(
    paths: Mapping[str, Path],
    tasks: Mapping[str, Mapping[str, Task]],
    config: EvaluationConfig,
    metrics: Sequence[Metric],
) -> dict[str, dict[str, Any]]:
    """Evaluate files in batches, on all ranks of the job that torchrun describes.

    Returns:
        By task what `evaluate` returns, without comparisons.
    """
    import torch.distributed as dist  # takes seconds to load: only where it is used

    from learn_torchrec.training.distributed import process_group

    bodies: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as job:
        communicator: Communicator = LocalCommunicator()
        if dist.is_torchelastic_launched():
            communicator = TorchCommunicator(job.enter_context(process_group()))
        for task, columns in tasks.items():
            found = {
                name: ranking.stream_by_cohort(
                    paths[name],
                    config.cohorts,
                    config.convention,
                    metrics,
                    task=one,
                    communicator=communicator,
                )
                for name, one in columns.items()
            }
            bodies[task] = {"ranking": found}
            if communicator.rank == 0:
                _print_under(_heading(task, tasks))
                print(metrics_table(found, [one.name for one in metrics]))
    return bodies


def read(
    paths: Mapping[str, Path],
    columns: Mapping[str, Task],
    config: EvaluationConfig,
    cohort_column: str | None,
) -> dict[str, Predictions]:
    """Return one task's predictions of the files that have it."""
    return {
        name: read_predictions(
            paths[name], cohort_column, task, config.convention.needs_clicks
        )
        for name, task in columns.items()
    }


def _conventions(files: Mapping[str, Predictions]) -> dict[str, list[PeerNumbers]]:
    """Print and return what other libraries would print."""
    result = {
        name: compare_conventions(
            prepare_rows(each.user_ids, each.labels, each.scores, each.weights)
        )
        for name, each in files.items()
    }
    print("\n" + conventions_table(result))
    return result


def parse_names(arguments: Sequence[str]) -> dict[str, Path]:
    """Return the path of each name.

    Raises:
        UserError: not NAME=PATH, or a name given twice.
    """
    paths: dict[str, Path] = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not (separator and name and path):
            raise UserError(f"--predictions {argument}: write it as NAME=FILE_OR_DIR")
        if name in paths:
            raise UserError(f"--predictions {argument}: {name} is given twice")
        paths[name] = Path(path)
    return paths


def evaluate(
    files: Mapping[str, Predictions],
    config: EvaluationConfig,
    metrics: Sequence[Metric],
    gates: Sequence[Gate],
    args: argparse.Namespace,
    heading: str = "",
) -> dict[str, Any]:
    """Print the tables of one task's named predictions and return the numbers.

    Raises:
        UserError: files to compare hold different rows, or a gate names no cohort or
            metric that there is.
    """
    baseline_name, *others = files
    for name in others:  # before anything slow
        refuse_different_rows(files[baseline_name], files[name])
    files = dict(zip(files, with_shared_columns(list(files.values())), strict=True))
    baseline = files[baseline_name]
    names = [one.name for one in metrics]
    for gate in gates:
        check_names(gate, ranking.cohort_masks(baseline, config.cohorts), names)
    found = {
        name: ranking.metrics_by_cohort(
            each, config.cohorts, config.convention, metrics
        )
        for name, each in files.items()
    }
    _print_under(heading)
    print(metrics_table(found, names))
    body: dict[str, Any] = {"ranking": found}
    if others:
        differences = {
            f"{name}-{baseline_name}": ranking.differences_by_cohort(
                baseline,
                files[name],
                config.cohorts,
                config.convention,
                num_resamples=args.resamples,
                seed=args.seed,
                metrics=metrics,
            )
            for name in others
        }
        print("\n" + differences_table(differences, args.resamples))
        body["ranking_difference"] = differences
    if args.compare_conventions:
        body["conventions"] = _conventions(files)
    return body | _gate_results(body.get("ranking_difference", {}), gates)


def _gate_results(
    differences: Mapping[str, Differences], gates: Sequence[Gate]
) -> dict[str, Any]:
    """Print and return how every gate came out for every comparison."""
    results = [
        (pair, check_gate(gate, found))
        for pair, found in differences.items()
        for gate in gates
    ]
    if not results:
        return {}
    print("\n" + gates_table(results))
    return {"gates": [{"difference": pair, **one._asdict()} for pair, one in results]}


def _print_under(heading: str) -> None:
    if heading:
        print(f"\n{heading}")


if __name__ == "__main__":
    program.run(main)
