"""Score prediction files: AUC, UAUC, WUAUC, NE and calibration by cohort."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apps import program
from learn_torchrec.config import apply_overrides
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation import ranking
from learn_torchrec.evaluation.auc import RankingMetrics
from learn_torchrec.evaluation.cohorts import CohortConfig
from learn_torchrec.evaluation.predictions import (
    Predictions,
    read_predictions,
    refuse_different_rows,
)
from learn_torchrec.evaluation.significance import PairedDifference

_METRICS = ("auc", "uauc", "wuauc", "ne", "log_loss", "calibration")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What `--set` may change here."""

    cohorts: CohortConfig = field(default_factory=CohortConfig)


Differences = dict[str, dict[str, PairedDifference]]


def parser() -> argparse.ArgumentParser:
    """Return the options of this app."""
    result = argparse.ArgumentParser(
        prog="learn-torchrec evaluate-auc",
        description=__doc__,
        epilog="With two or more files, each later one is compared with the first "
        "by a paired bootstrap over users.",
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
        metavar="cohorts.FIELD=VALUE",
        help="change a bound of the cohorts, e.g. cohorts.user_others_from=100",
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
    """Read the files, print the tables and write the JSON."""
    args = parser().parse_args(argv)
    if args.resamples < 1:
        raise UserError(f"--resamples {args.resamples}: use 1 or more")
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: is a directory; name a JSON file")
    files = {
        name: read_predictions(path)
        for name, path in parse_names(args.predictions).items()
    }
    cohorts = apply_overrides(EvaluationConfig(), args.overrides).cohorts
    body = evaluate(files, cohorts, args.resamples, args.seed)
    program.write_json(args.out, body)


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
    files: dict[str, Predictions],
    cohorts: CohortConfig,
    num_resamples: int,
    seed: int,
) -> object:
    """Print the tables of named predictions and return the JSON body.

    Raises:
        UserError: files to compare hold different rows.
    """
    (baseline_name, baseline), *candidates = files.items()
    for _, candidate in candidates:  # before anything slow
        refuse_different_rows(baseline, candidate)
    metrics = {
        name: ranking.metrics_by_cohort(each, cohorts) for name, each in files.items()
    }
    print(metrics_table(metrics))
    body: dict[str, object] = {"ranking": ranking.to_json(metrics)}
    if candidates:
        differences = {
            f"{name}-{baseline_name}": ranking.differences_by_cohort(
                baseline, candidate, cohorts, num_resamples=num_resamples, seed=seed
            )
            for name, candidate in candidates
        }
        print()
        print(differences_table(differences))
        body["ranking_difference"] = ranking.to_json(differences)
    return body


def metrics_table(metrics: dict[str, dict[str, RankingMetrics]]) -> str:
    """Return one line per name and cohort."""
    lines = [["predictions", "cohort", "rows", "users_kept", *_METRICS]]
    for name, cohorts in metrics.items():
        for cohort, values in cohorts.items():
            numbers = [f"{getattr(values, metric):.4f}" for metric in _METRICS]
            counts = [str(values.rows), f"{values.users_kept}/{values.users}"]
            lines.append([name, cohort, *counts, *numbers])
    return _align(lines)


def differences_table(differences: dict[str, Differences]) -> str:
    """Return one line per pair, cohort and metric, in percentage points."""
    lines = [["difference", "cohort", "metric", "points", "low", "high", "p"]]
    for pair, cohorts in differences.items():
        for cohort, metrics in cohorts.items():
            for metric, value in metrics.items():
                points = [
                    f"{100 * part:+.2f}"
                    for part in (value.difference, value.low, value.high)
                ]
                lines.append([pair, cohort, metric, *points, f"{value.p_value:.3f}"])
    return _align(lines)


def _align(lines: list[list[str]]) -> str:
    """Pad columns: the first two to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def pad(column: int, cell: str) -> str:
        width = widths[column]
        return cell.ljust(width) if column < 2 else cell.rjust(width)

    return "\n".join(
        "  ".join(pad(column, cell) for column, cell in enumerate(line))
        for line in lines
    )


if __name__ == "__main__":
    program.run(main)
