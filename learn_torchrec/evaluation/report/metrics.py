"""The sections on ranking and retrieval, from a run's metrics."""

from collections.abc import Iterator, Mapping
from typing import Any

from learn_torchrec.config import from_dict
from learn_torchrec.evaluation.conventions import Convention
from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.parts import Section, Table, scaled
from learn_torchrec.evaluation.report.retrieval_summary import distinct_targets
from learn_torchrec.evaluation.tasks import TASKS
from learn_torchrec.evaluation.words import (
    INTERVAL,
    TARGETS,
    TARGETS_MEAN,
    USERS,
    USERS_ARE,
    cohort_title,
    pair_title,
    predictions_title,
    ranked_by,
)

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
            title=f"Ranking in detail: {task}" if task else "Ranking in detail",
            text=[_convention_text(settings.get("convention", {}))],
            tables=[
                _ranking_table(body["ranking"], suffix),
                *_difference_tables(body, suffix),
            ],
            figures=[
                figure
                for pair, cohorts in differences.items()
                for metric in _metric_names(cohorts["all"])
                if metric not in _NOT_DRAWN
                for figure in figures.percentages(
                    f"lift-{pair}-{metric}{suffix}",
                    f"{metric.upper()} by cohort, {pair_title(pair, body['ranking'])}",
                    [
                        (cohort_title(name), one[metric])
                        for name, one in cohorts.items()
                    ],
                    "difference",
                    f"{metric.upper()}, points",
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
            predictions_title(name),
            cohort_title(cohort),
            values["rows"],
            100 * values["rows"] / total if (total := cohorts["all"]["rows"]) else None,
            values["users_kept"],
            *(values[metric] for metric in names),
        ]
        for name, cohorts in ranking.items()
        for cohort, values in cohorts.items()
        if values["rows"]
    ]
    return Table(
        name=f"ranking-metrics{suffix}",
        title="Metrics by cohort",
        columns=["predictions", "cohort", "rows", "share, %", USERS, *names],
        formats=["", "", ",d", ".2f", ",d", *[".4f"] * len(names)],
        rows=rows,
        note=f"{USERS_ARE}.",
    )


def _difference_tables(body: Mapping[str, Any], suffix: str) -> Iterator[Table]:
    counts = next(iter(body["ranking"].values()))
    for pair, cohorts in body.get("ranking_difference", {}).items():
        rows = [
            [
                cohort_title(cohort),
                metric,
                *(scaled(one[part], 100) for part in ("difference", "low", "high")),
                one["p_value"],
                one.get("p_adjusted"),
            ]
            for cohort, metrics in cohorts.items()
            if counts.get(cohort, {}).get("rows", 1)
            for metric, one in metrics.items()
        ]
        yield Table(
            name=f"difference-{pair}{suffix}",
            title=f"{pair_title(pair, body['ranking'])}, points",
            columns=["cohort", "metric", "points", "low", "high", "p", "p (Holm)"],
            formats=["", "", "+.2f", "+.2f", "+.2f", ".3f", ".3f"],
            rows=rows,
            note=f"low, high: {INTERVAL} of a paired bootstrap over users. "
            f"{len(rows)} comparisons: one in twenty has p below 0.05 by chance; "
            "Holm's p corrects for their number.",
        )


def retrieval(metrics: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the section on retrieval, if the run has one."""
    groups, notes = distinct_targets(metrics)
    if groups:
        yield Section(
            name="retrieval",
            title="Retrieval in detail",
            text=[
                "h: hits over (user, target) pairs; r: mean recall of the users; "
                "hit_any: users with a hit; n: NDCG; mrr: over the full ranking.",
                *notes,
            ],
            tables=[_retrieval_table(name, rows) for name, rows in groups.items()],
        )


def _retrieval_table(name: str, by_name: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = list(next(iter(by_name.values())))
    is_count = ["@" not in column and column != "mrr" for column in columns]
    return Table(
        name=f"{name}-metrics",
        title=f"{TARGETS[name].capitalize()}{TARGETS_MEAN[name]}",
        columns=["ranked by", *columns],
        formats=["", *(",.0f" if count else ".4f" for count in is_count)],
        rows=[
            [ranked_by(ranker), *map(values.get, columns)]
            for ranker, values in by_name.items()
        ],
    )
