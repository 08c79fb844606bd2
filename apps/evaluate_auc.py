"""Evaluate prediction files: AUC, UAUC, WUAUC, NE and calibration by cohort."""

import argparse
import contextlib
import io
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from learn_torchrec.artifact import artifact_of, verify
from learn_torchrec.config import apply_overrides, configuration
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import ranking
from learn_torchrec.evaluation.auc import (
    DEFAULT_METRICS,
    METRICS,
    RankingMetrics,
    named_metrics,
)
from learn_torchrec.evaluation.cohorts import CohortConfig
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
from learn_torchrec.text import printable

from .common import program
from .evaluating import stream as evaluate_stream
from .evaluating.tables import (
    Differences,
    all_differences_table,
    conventions_table,
    differences_table,
    gates_table,
    metrics_table,
)

logger = logging.getLogger(__name__)


@configuration
class EvaluationConfig:
    """What `--set` may change."""

    cohorts: CohortConfig = field(default_factory=CohortConfig)
    convention: Convention = PAPER


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    result = program.parser(
        "evaluate-auc",
        __doc__,
        epilog="With two or more files, each is compared with the first, row by row. "
        "Exit code 1: a gate did not hold.",
    )
    result.add_argument(
        "--predictions",
        nargs="+",
        required=True,
        metavar="NAME=FILE_OR_DIR",
        help="a Parquet or CSV file, a folder of parts, or the artefact of predict",
    )
    result.add_argument(
        "--label", metavar="COLUMN", help=f"column of 0 and 1 (default: {LABEL})"
    )
    result.add_argument(
        "--score",
        metavar="COLUMN",
        help=f"column of scores (default: {SCORE}; without --label and --score, the "
        "tasks that an artefact lists are evaluated)",
    )
    result.add_argument(
        "--metrics",
        nargs="+",
        default=[one.name for one in DEFAULT_METRICS],
        metavar="NAME",
        help=f"some of {', '.join(METRICS)} (default: all but the last)",
    )
    program.add_output_file(result, "metrics JSON to write")
    program.add_overrides(
        result,
        "change a bound of the cohorts (cohorts.user_others_from=100) or the "
        "convention (convention.user_weight=clicks)",
    )
    result.add_argument(
        "--cohort-column",
        metavar="COLUMN",
        help="a column of the predictions; each of its values is a cohort",
    )
    result.add_argument(
        "--stream",
        action="store_true",
        help="read in batches, in 13 to 50 bytes of memory per row, under torchrun on "
        "many ranks; files are compared with --intervals influence",
    )
    result.add_argument(
        "--all",
        action="store_true",
        dest="is_full",
        help="print every metric's difference, with p-values (the JSON has them)",
    )
    result.add_argument(
        "--compare-conventions",
        action="store_true",
        help="print the AUCs of TorchRec, TorchEasyRec, RecBole, FuxiCTR and RecIS",
    )
    result.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="CONDITION",
        help="condition on every comparison, e.g. 'uauc>=+0.002', 'auc.low>0', "
        "'uauc.p@user_cold<0.05', on one task 'ctr.uauc>=0'; may be repeated",
    )
    result.add_argument(
        "--intervals",
        choices=("bootstrap", "influence"),
        help="how intervals and p-values are found: by a bootstrap over users, or by "
        "the users' influence, which takes a thousandth of the time and is as good "
        "for more than some fifty users (default: bootstrap; with --stream influence)",
    )
    for option, default, help_text in (
        ("--resamples", 1000, "bootstrap resamples"),
        ("--seed", 0, "of the bootstrap"),
    ):
        result.add_argument(
            option,
            type=int,
            default=default,
            metavar="N",
            help=help_text,
        )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Read the files, print the tables, write the JSON and check the gates."""
    args = build_parser().parse_args(argv)
    _check_options(args)
    paths = parse_names(args.predictions)
    _check_output(args, paths)
    config = apply_overrides(EvaluationConfig(), args.overrides)
    metrics = named_metrics(",".join(args.metrics).replace(",", " ").split())
    gates = [parse_gate(text) for text in args.gate]
    for path in paths.values():
        artefact = artifact_of(path)
        if artefact is not None and program.is_first_rank():
            verify(artefact, KIND_PREDICTIONS)
        if note := lone_part_note(path):
            logger.info(note)
    tasks = tasks_by_name({name: _tasks(path, args) for name, path in paths.items()})
    for gate in gates:
        if gate.task and gate.task not in tasks:
            known = ", ".join(name for name in tasks if name) or "none with a name"
            raise UserError(
                f"--gate {gate.text}: no task {gate.task}; there are {known}"
            )
    tables = io.StringIO()
    with contextlib.redirect_stdout(tables):
        if args.stream:
            by_task = stream(paths, tasks, config, metrics, gates, args)
        else:
            by_task = {}
            for task, columns in tasks.items():
                files = read(paths, columns, config, args.cohort_column)
                gates_of_task = [gate for gate in gates if gate.task in ("", task)]
                _print_heading(task, tasks)
                by_task[task] = evaluate(files, config, metrics, gates_of_task, args)
    if program.is_first_rank():
        program.write_json(args.out, ranking.to_json(_body(by_task, config)))
        print(tables.getvalue(), end="")  # last: a pipe may break
    bodies = by_task.values()
    if not all(one["passed"] for body in bodies for one in body.get("gates", [])):
        sys.exit(1)


def _body(
    by_task: Mapping[str, Mapping[str, Any]], config: EvaluationConfig
) -> dict[str, Any]:
    """Return the JSON: a body per task, or the body itself of one task."""
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


def _print_heading(task: str, tasks: Mapping[str, object]) -> None:
    if len(tasks) > 1:
        print(f"\ntask {printable(task)}")


def _check_options(args: argparse.Namespace) -> None:
    for option, value, least in (
        ("--resamples", args.resamples, 1),
        ("--seed", args.seed, 0),
    ):
        if value < least:
            raise UserError(f"{option} {value}: use {least} or more")
    if args.gate and len(args.predictions) < 2:
        raise UserError("--gate: compares files; name two or more --predictions")
    for option, is_given in (
        ("--intervals bootstrap", args.intervals == "bootstrap"),
        ("--compare-conventions", args.compare_conventions),
        ("--cohort-column", args.cohort_column),
    ):
        if args.stream and is_given:
            raise UserError(f"{option}: needs all rows in memory; leave out --stream")
    args.intervals = args.intervals or ("influence" if args.stream else "bootstrap")


def _check_output(args: argparse.Namespace, paths: Mapping[str, Path]) -> None:
    if not args.stream:
        program.refuse_ranks("only with --stream ranks share the work")
    inputs = [("--predictions", path) for path in paths.values()]
    is_ours = program.json_with("ranking", TASKS)
    program.check_output_file(args.out, inputs=inputs, is_ours=is_ours)


def stream(
    paths: Mapping[str, Path],
    tasks: Mapping[str, Mapping[str, Task]],
    config: EvaluationConfig,
    metrics: Sequence[Metric],
    gates: Sequence[Gate],
    args: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """Evaluate files in batches, on all ranks that torchrun started.

    Returns:
        What `evaluate` returns for each task.
    """
    by_task: dict[str, dict[str, Any]] = {}
    with evaluate_stream.ranks(vars(args), paths) as communicator:
        for task, columns in tasks.items():
            files = {name: (paths[name], one) for name, one in columns.items()}
            mine = [gate for gate in gates if gate.task in ("", task)]
            if mine:
                cohorts = evaluate_stream.cohort_names(files, config.cohorts)
                _check_gates(mine, cohorts, metrics)
            found, differences = evaluate_stream.evaluate(
                files, config.cohorts, config.convention, metrics, communicator
            )
            _print_heading(task, tasks)
            by_task[task] = _tables(found, differences, metrics, mine, args)
    return by_task


def read(
    paths: Mapping[str, Path],
    columns: Mapping[str, Task],
    config: EvaluationConfig,
    cohort_column: str | None,
) -> dict[str, Predictions]:
    """Return the predictions of one task from the files that have it."""
    return {
        name: read_predictions(
            paths[name], cohort_column, task, config.convention.needs_clicks
        )
        for name, task in columns.items()
    }


def _compare_conventions(
    files: Mapping[str, Predictions],
) -> dict[str, list[PeerNumbers]]:
    """Print and return the numbers of other libraries."""
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
) -> dict[str, Any]:
    """Print the tables of one task's named predictions and return the numbers.

    Raises:
        UserError: files to compare hold different rows, or a gate names an unknown
            cohort or metric.
    """
    baseline_name, *others = files
    for name in others:  # before anything slow
        refuse_different_rows(files[baseline_name], files[name])
    files = dict(zip(files, with_shared_columns(list(files.values())), strict=True))
    baseline = files[baseline_name]
    _check_gates(gates, ranking.cohort_masks(baseline, config.cohorts), metrics)
    found = {
        name: ranking.metrics_by_cohort(
            each, config.cohorts, config.convention, metrics
        )
        for name, each in files.items()
    }
    differences = {
        f"{name}-{baseline_name}": ranking.differences_by_cohort(
            baseline,
            files[name],
            config.cohorts,
            config.convention,
            num_resamples=args.resamples,
            seed=args.seed,
            metrics=metrics,
            intervals=args.intervals,
        )
        for name in others
    }
    body = _tables(found, differences, metrics, gates, args)
    if args.compare_conventions:
        body["conventions"] = _compare_conventions(files)
    return body


def _check_gates(
    gates: Sequence[Gate], cohorts: Iterable[str], metrics: Sequence[Metric]
) -> None:
    known = list(cohorts)
    for gate in gates:
        check_names(gate, known, [one.name for one in metrics])


def _tables(
    found: Mapping[str, Mapping[str, RankingMetrics]],
    differences: Mapping[str, Differences],
    metrics: Sequence[Metric],
    gates: Sequence[Gate],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Print the tables of one task and return its part of the JSON."""
    print(metrics_table(found, [x.name for x in metrics], is_full=args.is_full))
    body: dict[str, Any] = {"ranking": found}
    if differences:
        print()
        if args.is_full:
            resamples = args.resamples if args.intervals == "bootstrap" else None
            print(all_differences_table(differences, list(found), resamples))
        else:
            print(differences_table(differences, list(found)))
        body["ranking_difference"] = differences
    return body | _gate_results(differences, gates, list(found))


def _gate_results(
    differences: Mapping[str, Differences], gates: Sequence[Gate], names: Sequence[str]
) -> dict[str, Any]:
    """Print and return the result of every gate for every comparison."""
    results = [
        (pair, check_gate(gate, found))
        for pair, found in differences.items()
        for gate in gates
    ]
    if not results:
        return {}
    print("\n" + gates_table(results, names))
    return {"gates": [{"difference": pair, **one._asdict()} for pair, one in results]}


if __name__ == "__main__":
    program.run(main)
