"""What a run found about ranking: two rankers compared by cohort, in plain words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from learn_torchrec.evaluation.cohorts import ALL
from learn_torchrec.evaluation.report.parts import Section, Table
from learn_torchrec.evaluation.tasks import TASKS
from learn_torchrec.evaluation.words import (
    BETTER,
    INTERVAL,
    UNCLEAR,
    USERS,
    USERS_ARE,
    WORSE,
    Gain,
    cohort_title,
    predictions_title,
    signed,
)

FEWEST_USERS = 10  # kept in a cohort; of fewer, a bootstrap's interval means little
_MOST_COHORTS = 10
_CHANCE = 0.5
# The first that is defined is the table's.
_HEADLINES = ("uauc", "wuauc", "auc")
# What a plan leaves out, so that there is no ranking.
_LEFT_OUT = ("ranker", "predictions", "ranking evaluation")
_Cohorts = Mapping[str, Mapping[str, Any]]


def ranking_summary(
    metrics: Mapping[str, Any], has_predictions: bool, left_out: Mapping[str, str]
) -> Iterator[Section]:
    """Yield a section for each task and each predictions beside the first.

    Args:
        metrics: JSON of `evaluate-auc`, empty if there is none.
        has_predictions: whether the run holds predictions.
        left_out: reasons, by what the run left out.
    """
    tasks = metrics.get(TASKS, {"": metrics})
    found = {task: body for task, body in tasks.items() if body.get("ranking")}
    for task, body in found.items():
        baseline, *candidates = body["ranking"]
        for name in candidates:
            # Several tasks on one screen: their cohorts are among the details.
            yield _comparison(body, baseline, name, task, is_short=len(found) > 1)
        if not candidates:
            title = predictions_title(baseline)
            yield _said(f"Only {title} was evaluated: there is nothing to compare.")
    if not found:
        reasons = [left_out[name] for name in _LEFT_OUT if name in left_out]
        reasons.append(
            "the run's predictions were not evaluated; evaluation needs labels"
            if has_predictions
            else "the run has no predictions; they need impressions"
        )
        yield _said(f"Not evaluated: {reasons[0].rstrip('.')}.")


def _said(text: str) -> Section:
    return Section(name="summary-ranking", title="Ranking", text=[text])


def _comparison(
    body: Mapping[str, Any], baseline: str, name: str, task: str, is_short: bool
) -> Section:
    """Compare two named predictions by cohort."""
    before, after = body["ranking"][baseline], body["ranking"][name]
    differences = body.get("ranking_difference", {}).get(f"{name}-{baseline}", {})
    metric = next((one for one in _HEADLINES if _is_defined(before, one)), "")
    suffix = f"-{name}-{task}" if task else f"-{name}"
    titles = predictions_title(baseline), predictions_title(name)
    heading = f"Ranking{f' ({task})' if task else ''}: {titles[0]} against {titles[1]}"
    cohorts = _shown(before, [ALL] if is_short else list(before))
    if not metric:
        text = [_undefined(before[ALL])]
        return Section(name=f"summary-ranking{suffix}", title=heading, text=text)
    gains = {
        cohort: _gain(before, after, differences, cohort, metric) for cohort in cohorts
    }
    text = [
        _order(gains[ALL], metric, *titles),
        *_below_chance(before, after, metric, titles),
        *_over_all_rows(before, after, differences, metric),
        *_by_cohort(gains),
    ]
    kept = before[ALL]["users_kept"]
    if kept < FEWEST_USERS:
        text.append(f"Only {kept} users have both labels: too few to judge by.")
    rows = [
        [
            cohort_title(cohort),
            *(before[cohort][count] for count in ("rows", "users_kept")),
            *(side[cohort][metric] for side in (before, after)),
            gain.points,
            gain.interval,
            gain.verdict,
        ]
        for cohort, gain in gains.items()
    ]
    table = Table(
        name=f"summary-ranking{suffix}-metrics",
        title=f"{metric.upper()} by cohort",
        columns=["cohort", "rows", USERS, *titles, "points", INTERVAL, "result"],
        formats=["", ",d", ",d", ".4f", ".4f", "+.2f", "", ""],
        rows=rows,
        note=_note(before, cohorts, has_intervals=bool(differences)),
    )
    return Section(
        name=f"summary-ranking{suffix}", title=heading, text=text, tables=[table]
    )


def _is_defined(cohorts: _Cohorts, metric: str) -> bool:
    return cohorts[ALL].get(metric) is not None


def _shown(cohorts: _Cohorts, names: Sequence[str]) -> list[str]:
    """Return the cohorts to show: all rows, and those with enough users."""
    enough = [
        name
        for name in names
        if name == ALL or cohorts[name]["users_kept"] >= FEWEST_USERS
    ]
    return enough[:_MOST_COHORTS]


def _gain(
    before: _Cohorts,
    after: _Cohorts,
    differences: Mapping[str, Mapping[str, Any]],
    cohort: str,
    metric: str,
) -> Gain:
    """Return the difference with its interval, or without where none was computed."""
    if metric in differences.get(cohort, {}):
        return Gain.of(differences[cohort][metric])
    old, new = (side[cohort].get(metric) for side in (before, after))
    if old is None or new is None:
        return Gain(None, None, None)
    return Gain(100 * (new - old), None, None)


def _undefined(counts: Mapping[str, Any]) -> str:
    rows, positives = counts["rows"], counts["positives"]
    if not rows:
        return "There are no rows to rank."
    label = "1" if positives else "0"
    return f"All {rows:,} rows have label {label}: there is no order to judge."


def _order(gain: Gain, metric: str, baseline: str, name: str) -> str:
    """Say what the headline metric of all rows means."""
    baseline = f"the {baseline}" if baseline == "baseline" else baseline
    what = "the impressions" if metric == "auc" else "each user's impressions"
    if gain.points is None:
        return f"{metric.upper()} is undefined."
    points = f"{signed(gain.points)} points of {metric.upper()}"
    if not gain.verdict:
        return f"{name} against {baseline}: {points}, without an interval."
    if gain.verdict == UNCLEAR:
        return (
            f"{name} and {baseline} do not clearly differ in how they order {what}: "
            f"{points}, with 0 in the interval {gain.interval}."
        )
    return (
        f"{name} orders {what} {gain.verdict} than {baseline}: {points} "
        f"{gain.interval}."
    )


def _below_chance(
    before: _Cohorts, after: _Cohorts, metric: str, titles: Sequence[str]
) -> Iterator[str]:
    """Say which side orders worse than chance: a gain on it may be worth nothing."""
    for side, title in zip((before, after), titles, strict=True):
        value = side[ALL].get(metric)
        if value is not None and value < _CHANCE:
            yield f"The {metric.upper()} of {title} is {value:.4f}: below chance, 0.5."


def _over_all_rows(
    before: _Cohorts,
    after: _Cohorts,
    differences: Mapping[str, Mapping[str, Any]],
    headline: str,
) -> Iterator[str]:
    """Say what happens to AUC, if it is not the headline."""
    gain = _gain(before, after, differences, ALL, "auc")
    if headline == "auc" or gain.points is None:
        return
    moves = {BETTER: "rises", WORSE: "falls", UNCLEAR: "does not clearly change"}
    yield (
        "AUC, which also compares rows of different users, "
        f"{moves.get(gain.verdict, 'changes')}: {signed(gain.points)} points "
        f"{gain.interval}".rstrip()
        + "."
    )


def _by_cohort(gains: Mapping[str, Gain]) -> Iterator[str]:
    """Name the cohorts that are clearly better or worse."""
    cohorts = {name: gain for name, gain in gains.items() if name != ALL}
    if not any(gain.verdict for gain in cohorts.values()):
        return
    words = []
    for verdict in (BETTER, WORSE):
        those = [
            f"{cohort_title(name)} ({signed(gain.points or 0.0)})"
            for name, gain in cohorts.items()
            if gain.verdict == verdict
        ]
        if those:
            words.append(f"{verdict} for {_listed(those)}")
    yield f"By cohort: {'; '.join(words) or 'none is clearly better or worse'}."


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _note(cohorts: _Cohorts, shown: Sequence[str], has_intervals: bool) -> str:
    words = [USERS_ARE]
    if has_intervals:
        words.append(
            f"{BETTER}, {WORSE}: the interval (over users) excludes 0, as one in "
            "twenty does by chance"
        )
    few = [
        f"{cohort_title(name)} ({one['users_kept']})"
        for name, one in cohorts.items()
        if name not in shown and one["rows"] and one["users_kept"] < FEWEST_USERS
    ]
    if few and len(shown) > 1:
        words.append(f"left out with fewer than {FEWEST_USERS} {USERS}: {_listed(few)}")
    return "; ".join(words) + "."
