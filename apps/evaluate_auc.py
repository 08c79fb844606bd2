"""Score prediction files: AUC, UAUC, WUAUC, NE and calibration by cohort."""

import argparse
import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from apps import program
from apps.tables import align
from learn_torchrec.artifact import MANIFEST, verify
from learn_torchrec.config import apply_overrides, configuration
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import ranking
from learn_torchrec.evaluation.auc import RankingMetrics
from learn_torchrec.evaluation.cohorts import CohortConfig
from learn_torchrec.evaluation.communicator import (
    Communicator,
    LocalCommunicator,
    TorchCommunicator,
)
from learn_torchrec.evaluation.conventions import PAPER, Convention
from learn_torchrec.evaluation.gate import (
    Gate,
    GateResult,
    check_gate,
    check_names,
    parse_gate,
)
from learn_torchrec.evaluation.peers import PeerNumbers, compare_conventions
from learn_torchrec.evaluation.predictions import (
    KIND_PREDICTIONS,
    Predictions,
    column_names,
    read_predictions,
    refuse_different_rows,
    stream_predictions,
    with_shared_columns,
)
from learn_torchrec.evaluation.rows import prepare_rows
from learn_torchrec.evaluation.significance import PairedDifference
from learn_torchrec.evaluation.stream import MetricsStream

_SIGNIFICANT = 0.05
_METRICS = ("auc", "uauc", "wuauc", "ne", "log_loss", "calibration")


@configuration
class EvaluationConfig:
    """What `--set` may change here."""

    cohorts: CohortConfig = field(default_factory=CohortConfig)
    convention: Convention = PAPER


Differences = dict[str, dict[str, PairedDifference]]


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
        help="prediction Parquet file, or the artefact directory that holds it",
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
        "'uauc.p@user_cold<0.05'; may be repeated",
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
    for path in paths.values():
        if (path / MANIFEST).is_file() and program.is_first_rank():
            verify(path, KIND_PREDICTIONS)
    config = apply_overrides(EvaluationConfig(), args.overrides)
    gates = [parse_gate(text) for text in args.gate]
    if args.stream:
        stream(paths, config, args.out)
        return
    files = {
        name: read_predictions(path, args.cohort_column) for name, path in paths.items()
    }
    body = evaluate(files, config, gates, args.resamples, args.seed)
    if args.compare_conventions:
        body["conventions"] = _conventions(files)
    results = [
        (pair, check_gate(gate, differences))
        for pair, differences in body.get("ranking_difference", {}).items()
        for gate in gates
    ]
    if results:
        print("\n" + gates_table(results))
        body["gates"] = [{"difference": pair, **one._asdict()} for pair, one in results]
    program.write_json(args.out, ranking.to_json(body))
    if not all(one.passed for _, one in results):
        sys.exit(1)


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


def stream(paths: Mapping[str, Path], config: EvaluationConfig, out: Path) -> None:
    """Evaluate files in batches, on all ranks of the job that torchrun describes."""
    import torch.distributed as dist  # takes seconds to load: only where it is used

    from learn_torchrec.training.distributed import process_group

    with contextlib.ExitStack() as job:
        ranks: Communicator = LocalCommunicator()
        if dist.is_torchelastic_launched():
            ranks = TorchCommunicator(job.enter_context(process_group()))
        metrics: dict[str, dict[str, RankingMetrics]] = {}
        for name, path in paths.items():
            filters = ranking.cohort_filters(column_names(path), config.cohorts)
            metrics[name] = {}
            for cohort, chosen in filters.items():
                rows = MetricsStream(config.convention, communicator=ranks)
                stream_predictions(path, rows, ranks, chosen)
                metrics[name][cohort] = rows.finish()
        if ranks.rank == 0:
            print(metrics_table(metrics))
            body = {"ranking": metrics, "settings": config}
            program.write_json(out, ranking.to_json(body))


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
    gates: Sequence[Gate],
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Print the tables of named predictions and return the numbers.

    Raises:
        UserError: files to compare hold different rows, or a gate names no cohort or
            metric that there is.
    """
    baseline_name, *others = files
    for name in others:  # before anything slow
        refuse_different_rows(files[baseline_name], files[name])
    files = dict(zip(files, with_shared_columns(list(files.values())), strict=True))
    baseline = files[baseline_name]
    for gate in gates:
        check_names(gate, ranking.cohort_masks(baseline, config.cohorts), _METRICS)
    metrics = {
        name: ranking.metrics_by_cohort(each, config.cohorts, config.convention)
        for name, each in files.items()
    }
    print(metrics_table(metrics))
    body: dict[str, Any] = {"ranking": metrics, "settings": config}
    if others:
        differences = {
            f"{name}-{baseline_name}": ranking.differences_by_cohort(
                baseline,
                files[name],
                config.cohorts,
                config.convention,
                num_resamples=num_resamples,
                seed=seed,
            )
            for name in others
        }
        print()
        print(differences_table(differences, num_resamples))
        body["ranking_difference"] = differences
    return body


def metrics_table(metrics: Mapping[str, Mapping[str, RankingMetrics]]) -> str:
    """Return one line per name and cohort."""
    lines = [["predictions", "cohort", "rows", "users_kept", *_METRICS]]
    for name, cohorts in metrics.items():
        for cohort, values in cohorts.items():
            numbers = [f"{values[metric]:.4f}" for metric in _METRICS]
            counts = [str(values["rows"]), f"{values['users_kept']}/{values['users']}"]
            lines.append([name, cohort, *counts, *numbers])
    return align(lines)


def differences_table(
    differences: Mapping[str, Differences], num_resamples: int
) -> str:
    """Return one line per pair, cohort and metric, in percentage points."""
    lines = [["difference", "cohort", "metric", "points", "low", "high", "p", "p_holm"]]
    for pair, cohorts in differences.items():
        for cohort, metrics in cohorts.items():
            for metric, value in metrics.items():
                points = [
                    f"{100 * part:+.2f}"
                    for part in (value.difference, value.low, value.high)
                ]
                p_values = [f"{p:.3f}" for p in (value.p_value, value.p_adjusted)]
                lines.append([pair, cohort, metric, *points, *p_values])
    count = sum(len(metrics) for metrics in next(iter(differences.values())).values())
    note = (
        f"{count} comparisons a pair: one in twenty falls below p = 0.05 by chance; "
        "p_holm corrects for their number"
    )
    if 2 * count / (num_resamples + 1) > _SIGNIFICANT:
        needed = math.ceil(2 * count / _SIGNIFICANT)
        note += f" (and needs --resamples {needed} to fall below {_SIGNIFICANT})"
    return f"{align(lines)}\n{note}"


def conventions_table(conventions: Mapping[str, Sequence[PeerNumbers]]) -> str:
    """Return one line per file and library."""
    lines = [["predictions", "as", "auc", "grouped"]]
    rules = [""]
    for name, table in conventions.items():
        for one in table:
            numbers = [f"{one.auc:.4f}", f"{one.grouped_auc:.4f}"]
            lines.append([name, one.library, *numbers])
            rules.append(one.rule)
    table_lines = align(lines).splitlines()
    return "\n".join(
        f"{line}  {rule}".rstrip()
        for line, rule in zip(table_lines, rules, strict=True)
    )


def gates_table(results: Sequence[tuple[str, GateResult]]) -> str:
    """Return one line per pair and gate."""
    lines = [["difference", "gate", "measured", ""]]
    for pair, one in results:
        word = "holds" if one.passed else "FAILS"
        lines.append([pair, one.gate, f"{one.value:+.5f}", word])
    return align(lines)


if __name__ == "__main__":
    program.run(main)
