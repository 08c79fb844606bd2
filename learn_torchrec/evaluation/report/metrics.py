"""The sections on ranking and retrieval, from a run's metrics."""

from collections.abc import Iterator, Mapping
from typing import Any

from learn_torchrec.config import from_dict
from learn_torchrec.evaluation.cohorts import cohort_title
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.parts import Section, Table, scaled
from learn_torchrec.evaluation.tasks import TASKS

_COUNTS = ("rows", "users", "users_kept", "positives")
# Not in the drawings, where a step to the right must be a gain; only in the tables.
_NOT_DRAWN = ("ne", "log_loss", "calibration")
_TIES = {
    "half": "count one half",
    "positive": "go to the positive row",
    "negative": "go to the negative row",
    "first": "go to the row that comes first",
}
_SINGLE_CLASS = {"exclude": "are left out", "half": "count as one half"}
_USER_WEIGHT = {
    "impressions": "weights it by impressions",
    "clicks": "weights it by clicks",
    "positives": "weights it by positives",
    "none": "weights all users alike",
}
# Groups of targets by their key in the metrics, as `evaluate-retrieval` writes them.
_TARGETS = {
    "retrieval": "All targets",
    "new_targets": "New targets: not in the user's history, which is filtered",
    "repeated_targets": "Repeated targets: in the user's history",
    "tail_targets": "Tail targets: items with few training events",
}
_RETRIEVAL_TITLES = {
    "learn": "LEARN",
    "popularity": "popularity",
    "content_mean": "averaged content vectors (Baseline-v1)",
    "already_bought": "already bought, then popularity",
}


def ranking(metrics: Mapping[str, Any]) -> Iterator[Section]:
    """Yield a section on ranking for each task, if the run has one."""
    settings = metrics.get("settings", {})
    for task, body in metrics.get(TASKS, {"": metrics}).items():
        if not body.get("ranking"):
            continue
        suffix = f"-{task}" if task else ""
        differences = body.get("ranking_difference", {})
        yield Section(
            name=f"ranking{suffix}",
            title=f"Ranking: {task}" if task else "Ranking",
            text=[_convention_text(settings.get("convention", {}))],
            tables=[
                _ranking_table(body["ranking"], suffix),
                *_difference_tables(differences, suffix),
            ],
            figures=[
                figure
                for pair, cohorts in differences.items()
                for metric in _metric_names(cohorts["all"])
                if metric not in _NOT_DRAWN
                for figure in figures.percentages(
                    f"lift-{pair}-{metric}{suffix}",
                    f"{metric.upper()} difference by cohort, {pair}",
                    [
                        (cohort_title(name), one[metric])
                        for name, one in cohorts.items()
                    ],
                    "difference",
                    f"{metric.upper()}, percentage points",
                )
            ],
        )


def _metric_names(values: Mapping[str, Any]) -> list[str]:
    return [name for name in values if name not in _COUNTS]


def _convention_text(convention: Mapping[str, Any]) -> str:
    """Describe the convention of the metrics, the paper's by default."""
    chosen = from_dict(Convention, convention, "settings.convention of the metrics")
    return (
        "AUC is pooled over all rows; UAUC is the mean of the users' AUCs, WUAUC "
        f"{_USER_WEIGHT[chosen.user_weight]}. Ties {_TIES[chosen.ties]}, users of one "
        f"class {_SINGLE_CLASS[chosen.single_class]}."
    )


def _ranking_table(ranking: Mapping[str, Any], suffix: str) -> Table:
    names = _metric_names(next(iter(ranking.values()))["all"])
    rows = [
        [
            name,
            cohort_title(cohort),
            values["rows"],
            100 * values["rows"] / total if (total := cohorts["all"]["rows"]) else None,
            values["users_kept"],
            *(values[metric] for metric in names),
        ]
        for name, cohorts in ranking.items()
        for cohort, values in cohorts.items()
    ]
    return Table(
        name=f"ranking-metrics{suffix}",
        title="Metrics by cohort",
        columns=["predictions", "cohort", "rows", "share, %", "users kept", *names],
        formats=["", "", ",d", ".2f", ",d", *[".4f"] * len(names)],
        rows=rows,
    )


def _difference_tables(differences: Mapping[str, Any], suffix: str) -> Iterator[Table]:
    for pair, cohorts in differences.items():
        rows = [
            [
                cohort_title(cohort),
                metric,
                *(scaled(one[part], 100) for part in ("difference", "low", "high")),
                one["p_value"],
                one.get("p_adjusted"),
            ]
            for cohort, metrics in cohorts.items()
            for metric, one in metrics.items()
        ]
        yield Table(
            name=f"difference-{pair}{suffix}",
            title=f"Difference {pair}, percentage points",
            columns=["cohort", "metric", "points", "low", "high", "p", "p (Holm)"],
            formats=["", "", "+.2f", "+.2f", "+.2f", ".3f", ".3f"],
            rows=rows,
            note="95 % interval of a paired bootstrap over users. "
            f"{len(rows)} comparisons: one in twenty has p below 0.05 by chance; "
            "Holm's p corrects for their number.",
        )


def retrieval(metrics: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the section on retrieval, if the run has one."""
    tables = [
        _retrieval_table(name, title, metrics[name])
        for name, title in _TARGETS.items()
        if any(values["targets"] for values in metrics.get(name, {}).values())
    ]
    if tables:
        yield Section(
            name="retrieval",
            title="Retrieval",
            text=[
                "h: hits over (user, target) pairs; r: mean recall of the users; "
                "hit_any: users with a hit; n: NDCG; mrr: over the full ranking."
            ],
            tables=tables,
        )


def _retrieval_table(
    name: str, title: str, by_name: Mapping[str, Mapping[str, Any]]
) -> Table:
    columns = list(next(iter(by_name.values())))
    is_count = ["@" not in column and column != "mrr" for column in columns]
    return Table(
        name=f"{name}-metrics",
        title=title,
        columns=["vectors", *columns],
        formats=["", *(",.0f" if count else ".4f" for count in is_count)],
        rows=[
            [_RETRIEVAL_TITLES.get(vectors, vectors), *map(values.get, columns)]
            for vectors, values in by_name.items()
        ],
    )
