"""The tables of `evaluate-auc` on a terminal."""

import math
from collections.abc import Mapping, Sequence

from learn_torchrec.evaluation.auc import RankingMetrics
from learn_torchrec.evaluation.gate import GateResult
from learn_torchrec.evaluation.peers import PeerNumbers
from learn_torchrec.evaluation.report.terminal import align
from learn_torchrec.evaluation.significance import PairedDifference
from learn_torchrec.evaluation.words import (
    INTERVAL,
    UNCLEAR,
    USERS,
    USERS_ARE,
    Gain,
    cohort_title,
    pair_title,
    predictions_title,
    signed,
)
from learn_torchrec.text import printable

SIGNIFICANT = 0.05
Differences = dict[str, dict[str, PairedDifference]]
# Without `--all`: one screen. Normalised entropy says what log loss says.
_MOST_COLUMNS, _SPARED = 5, "log_loss"
_COMPARED = ("auc", "uauc", "wuauc", "undcg")


def metrics_table(
    metrics: Mapping[str, Mapping[str, RankingMetrics]],
    names: Sequence[str],
    *,
    is_full: bool = False,
) -> str:
    """Return one line per file and cohort with some of the metrics.

    Empty cohorts are left out.
    """
    if not is_full and len(names) > _MOST_COLUMNS:
        names = [name for name in names if name != _SPARED]
    lines = [["predictions", "cohort", "rows", USERS, *names]]
    for name, cohorts in metrics.items():
        for cohort, values in cohorts.items():
            if values["rows"]:
                numbers = [f"{values[metric]:.4f}" for metric in names]
                counts = [f"{values['rows']:,}", f"{values['users_kept']:,}"]
                titles = [predictions_title(name), cohort_title(cohort)]
                lines.append([*titles, *counts, *numbers])
    return f"{align(lines)}\n{USERS_ARE}"


def differences_table(
    differences: Mapping[str, Differences], names: Sequence[str]
) -> str:
    """Return a table per pair: one line per cohort, points of the AUCs by column.

    Args:
        differences: by pair, cohort and metric.
        names: of the files.
    """
    known = next(iter(next(iter(differences.values())).values()))
    compared = [metric for metric in known if metric in _COMPARED] or list(known)
    tables = []
    for pair, cohorts in differences.items():
        lines = [["cohort", *map(str.upper, compared)]]
        for cohort, metrics in cohorts.items():
            cells = [_cell(metrics[metric]) for metric in compared]
            if any(cells):
                lines.append([cohort_title(cohort), *cells])
        title = printable(pair_title(pair, names))
        heading = f"{title}: points ({INTERVAL})"
        tables.append(f"{heading}\n{align(lines, left=(0,))}")
    note = (
        "* the interval excludes 0, as one in twenty does by chance; --all prints "
        "every metric, and p-values"
    )
    return "\n\n".join(tables) + f"\n{note}"


def _cell(value: PairedDifference) -> str:
    """Return the points and their interval, "" where undefined."""
    gain = Gain(*(100 * part for part in value[:3]))
    if math.isnan(value.difference):
        return ""
    mark = " " if gain.verdict == UNCLEAR else "*"
    return f"{signed(gain.points or 0.0)} {gain.interval}{mark}"


def all_differences_table(
    differences: Mapping[str, Differences],
    names: Sequence[str],
    num_resamples: int | None,
) -> str:
    """Return one line per pair, cohort and metric, in points, with p-values.

    `num_resamples` is the bootstrap's; None for intervals without one.
    """
    parts = ["points", "low", "high", "p", "p (Holm)"]
    lines = [["difference", "cohort", "metric", *parts]]
    for pair, cohorts in differences.items():
        for cohort, metrics in cohorts.items():
            for metric, value in metrics.items():
                if math.isnan(value.difference):
                    continue
                points = [signed(100 * part) for part in value[:3]]
                p_values = [f"{p:.3f}" for p in (value.p_value, value.p_adjusted)]
                titles = [pair_title(pair, names), cohort_title(cohort)]
                lines.append([*titles, metric, *points, *p_values])
    count = sum(len(metrics) for metrics in next(iter(differences.values())).values())
    note = (
        f"{count} comparisons a pair: one in twenty falls below p = 0.05 by chance; "
        "p (Holm) corrects for their number"
    )
    if num_resamples and 2 * count / (num_resamples + 1) > SIGNIFICANT:
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
            lines.append([predictions_title(name), one.library, *numbers])
            rules.append(one.rule)
    table_lines = align(lines).splitlines()
    return "\n".join(
        f"{line}  {rule}".rstrip()
        for line, rule in zip(table_lines, rules, strict=True)
    )


def gates_table(results: Sequence[tuple[str, GateResult]], names: Sequence[str]) -> str:
    """Return one line per pair and gate."""
    lines = [["difference", "gate", "measured", ""]]
    for pair, one in results:
        word = "holds" if one.passed else "FAILS"
        lines.append([pair_title(pair, names), one.gate, f"{one.value:+.5f}", word])
    return align(lines)
