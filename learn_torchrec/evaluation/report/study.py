"""The page of a study: arms over the baseline, by cohort."""

from collections.abc import Mapping, Sequence
from typing import Any

from learn_torchrec.evaluation.cohorts import ALL
from learn_torchrec.evaluation.report.parts import Report, Section, Table
from learn_torchrec.evaluation.words import cohort_title

_INTERVAL = "95 % interval"
_COLUMNS = ["UAUC", "points", _INTERVAL, "WUAUC, points", "AUC, points", _INTERVAL]


def study_report(result: Mapping[str, Any]) -> Report:
    """Return the page of what `learn-torchrec study` found (its JSON)."""
    arms = {name: arm for name, arm in result["arms"].items() if name != "baseline"}
    rows = ", ".join(f"{count:,} to {name}" for name, count in result["rows"].items())
    overall = Table(
        name="arms",
        title="All test impressions, over the baseline",
        columns=["arm", *_COLUMNS],
        rows=[[name, *_cells(arm["cohorts"][ALL])] for name, arm in arms.items()],
        formats=["", ".4f", "+.2f", "", "+.2f", "+.2f", ""],
    )
    learn = arms["learn"]["cohorts"]
    return Report(
        title="Study of a ranker",
        subtitle=f"{result['data']}: {rows}; {result['trials']} draws of settings for "
        f"each tuned arm, {result['seeds']} seeds",
        notices=[],
        summary=[
            Section(
                name="found",
                title="What LEARN adds to the baseline",
                text=[_sentence(learn[ALL])],
                tables=[_by_cohort("learn", learn)],
            ),
            Section(name="arms", title="All arms", tables=[overall]),
        ],
        sections=[
            *(
                Section(
                    name=f"arm-{name}",
                    title=f"Arm {name}",
                    text=[_described(arm["settings"])],
                    tables=[_by_cohort(name, arm["cohorts"])],
                )
                for name, arm in arms.items()
                if name != "learn"
            ),
            Section(
                name="tuning",
                title="Tuning, by UAUC on the validation rows",
                tables=[_tuning(result["tuned"])],
            ),
        ],
    )


def _sentence(found: Mapping[str, Any]) -> str:
    uauc = found["uauc"]
    low, high = uauc["interval"] or (float("nan"), float("nan"))
    verdict = "and the baseline do not clearly differ"
    if low > 0:
        verdict = "orders each user's impressions better than the baseline"
    elif high < 0:
        verdict = "orders each user's impressions worse than the baseline"
    return (
        f"LEARN {verdict}: {uauc['points']:+.2f} points of UAUC ({low:+.2f}, "
        f"{high:+.2f}), on {found['rows']:,} rows of {found['users']:,} users."
    )


def _by_cohort(name: str, cohorts: Mapping[str, Any]) -> Table:
    known = {cohort: found for cohort, found in cohorts.items() if found["rows"]}
    return Table(
        name=f"{name}-by-cohort",
        title="By cohort",
        columns=["cohort", "rows", "baseline UAUC", *_COLUMNS],
        rows=[
            [
                cohort_title(cohort),
                found["rows"],
                found["uauc"]["other"],
                *_cells(found),
            ]
            for cohort, found in known.items()
        ],
        formats=["", ",d", ".4f", ".4f", "+.2f", "", "+.2f", "+.2f", ""],
        note="Gains are averaged over seeds; intervals are over users, and one in "
        "twenty excludes 0 by chance.",
    )


def _cells(found: Mapping[str, Any]) -> Sequence[Any]:
    uauc, wuauc, auc = (found[name] for name in ("uauc", "wuauc", "auc"))
    return [
        *(uauc["arm"], uauc["points"], _interval(uauc)),
        *(wuauc["points"], auc["points"], _interval(auc)),
    ]


def _interval(gain: Mapping[str, Any]) -> str:
    interval = gain["interval"]
    return "({:+.2f}, {:+.2f})".format(*interval) if interval else ""


def _described(settings: Mapping[str, Any]) -> str:
    changed = "; ".join(f"{name}={value}" for name, value in settings.items())
    return f"The configuration with {changed}." if changed else "The configuration."


def _tuning(tuned: Mapping[str, Any]) -> Table:
    return Table(
        name="tuning",
        title="The best draw of each arm",
        columns=["arm", "validation UAUC", "worst draw", "settings"],
        rows=[
            [
                name,
                best["validation_uauc"],
                min(best["validation_uauc_of_all"]),
                ", ".join(f"{k}={v}" for k, v in best["settings"].items())
                or "as configured",
            ]
            for name, best in tuned.items()
        ],
        formats=["", ".4f", ".4f", ""],
    )
