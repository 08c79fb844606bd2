"""The tables of `evaluate-auc` on a terminal."""

import math
from collections.abc import Mapping, Sequence

from learn_torchrec.evaluation.auc import RankingMetrics
from learn_torchrec.evaluation.cohorts import cohort_title
from learn_torchrec.evaluation.gate import GateResult
from learn_torchrec.evaluation.peers import PeerNumbers
from learn_torchrec.evaluation.significance import PairedDifference

from .tables import align

SIGNIFICANT = 0.05
Differences = dict[str, dict[str, PairedDifference]]


def metrics_table(
    metrics: Mapping[str, Mapping[str, RankingMetrics]], names: Sequence[str]
) -> str:
    """Return one line per file and cohort with some of the metrics."""
    lines = [["predictions", "cohort", "rows", "users_kept", *names]]
    for name, cohorts in metrics.items():
        for cohort, values in cohorts.items():
            numbers = [f"{values[metric]:.4f}" for metric in names]
            counts = [str(values["rows"]), f"{values['users_kept']}/{values['users']}"]
            lines.append([name, cohort_title(cohort), *counts, *numbers])
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
                lines.append([pair, cohort_title(cohort), metric, *points, *p_values])
    count = sum(len(metrics) for metrics in next(iter(differences.values())).values())
    note = (
        f"{count} comparisons a pair: one in twenty falls below p = 0.05 by chance; "
        "p_holm corrects for their number"
    )
    if 2 * count / (num_resamples + 1) > SIGNIFICANT:
        needed = math.ceil(2 * count / SIGNIFICANT)
        note += f" (and needs --resamples {needed} to fall below {SIGNIFICANT})"
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
