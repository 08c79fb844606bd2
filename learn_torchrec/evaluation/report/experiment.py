"""The page of one of the paper's tables, as measured on somebody's data."""

import itertools
from collections.abc import Mapping
from typing import Any

from learn_torchrec.evaluation.report import figures
from learn_torchrec.evaluation.report.parts import Report, Section, Table
from learn_torchrec.evaluation.report.retrieval_study import how, tables_by_group
from learn_torchrec.evaluation.words import TARGETS, Gain, ranked_by, signed

_GROUPS = {name.removesuffix("_targets"): title for name, title in TARGETS.items()}


def experiment_report(result: Mapping[str, Any]) -> Report:
    """Return the page of what `learn-torchrec experiment` found (its JSON)."""
    titles = row_titles(result)
    cohorts = result["reference"] is None
    sections: list[Section] = []
    if "groups" in result:
        sections = [*tables_by_group(result, titles), how(result, titles)]
    if "histograms" in result:
        sections.append(_histograms(result, titles))
    return Report(
        title=f"{result['name']}: {result['title']}",
        subtitle=_subtitle(result),
        notices=[],
        summary=[
            Section(
                name="found",
                title=result["title"],
                text=[goal_sentence(goal, result, titles) for goal in result["goals"]],
                tables=[
                    cohort_table(result) if cohorts else rows_table(result, titles)
                ],
            )
        ],
        sections=sections,
    )


def row_titles(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the title of every row by its name."""
    return {
        name: row.get("title") or ranked_by(name)
        for name, row in result["rows"].items()
    }


def rows_table(result: Mapping[str, Any], titles: Mapping[str, str]) -> Table:
    """Return the table itself, the best row first, the reference marked."""
    first, *others = result["metrics"]
    rows = result["rows"]
    names = sorted(rows, key=lambda name: -rows[name][first]["mean"])
    has_published = any(row.get("published") for row in rows.values())
    columns = ["row", first.upper(), "points to the reference"]
    formats = ["", ".4f", ""]
    columns += [metric.upper() for metric in others]
    formats += [".4f"] * len(others)
    if has_published:
        columns.append(f"paper's {result['published_metric'].upper()}")
        formats.append(".4f")
    cells = []
    for name in names:
        row = rows[name]
        mark = " (reference)" if name == result["reference"] else ""
        line = [titles[name] + mark, row[first]["mean"]]
        line.append(_points(row[first].get("below")))
        line += [row[metric]["mean"] for metric in others]
        cells.append(line + [row.get("published")] * has_published)
    note = "Averaged over seeds; points with a 95 % interval over users, paired."
    if has_published:
        note += " The paper's values are of its own data."
    return Table(
        name="rows",
        title="All rows",
        columns=columns,
        rows=cells,
        formats=formats,
        note=" ".join([note, *result["notes"]]),
    )


def cohort_table(result: Mapping[str, Any]) -> Table:
    """Return the table of a result whose rows are cohorts of impressions."""
    columns, formats = ["cohort", "share"], ["", ".1%"]
    for metric in result["metrics"]:
        name = metric if metric == "revenue" else metric.upper()
        columns += [name, "points"]
        formats += ["", ""]
    cells = []
    for row in result["rows"].values():
        line = [row["title"], row["share"]]
        for metric in result["metrics"]:
            one = row.get(metric)
            line += ["", ""] if one is None else [_change(one), _points(one["below"])]
        cells.append(line)
    return Table(
        name="rows",
        title="Baseline → LEARN, by cohort",
        columns=columns,
        rows=cells,
        formats=formats,
        note=" ".join(["Averaged over seeds; intervals over users.", *result["notes"]]),
    )


def goal_sentence(
    goal: Mapping[str, Any], result: Mapping[str, Any], titles: Mapping[str, str]
) -> str:
    """Return what the paper finds beside what was found here."""
    row, than = titles[goal["row"]], titles[goal["than"]]
    wanted = f"{goal['wanted']:g} x " if goal["wanted"] != 1 else ""
    on = "" if goal["group"] == "all" else f" on {_GROUPS[goal['group']]}"
    ratio = "" if goal["ratio"] is None else f", {goal['ratio']:.2f} x"
    verdict = "as expected" if goal["is_met"] else "not found here"
    if goal["wanted"] == 1 and goal["is_clear"] is False:
        verdict = "no clear difference here"
    claim = f"“{row}” at least {wanted}as good as “{than}”{on}"
    return f"{claim}: {verdict}{ratio} in {result['goal_metric'].upper()}."


def _histograms(result: Mapping[str, Any], titles: Mapping[str, str]) -> Section:
    """Return the section that draws the cosines of taken and random pairs."""
    drawn = []
    for name, found in result["histograms"].items():
        edges = found["edges"]
        centres = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
        auc = result["rows"][name]["auc"]["mean"]
        drawn.append(
            figures.curves(
                f"cosines-{name}",
                f"{titles[name]}, AUC {auc:.3f}",
                {
                    "taken one after the other": (centres, found["taken"]),
                    "random": (centres, found["random"]),
                },
                ("cosine", "share of the pairs"),
                f"Cosines by {titles[name]} from {edges[0]:.2f} to {edges[-1]:.2f}: "
                f"a taken pair is above a random one with a chance of {auc:.3f}.",
            )
        )
    return Section(name="cosines", title="Cosines of the pairs", figures=drawn)


def _subtitle(result: Mapping[str, Any]) -> str:
    said = [result["data"]]
    if users := result.get("users"):
        said.append(f"{users['test']:,} test users")
    if impressions := result.get("impressions"):
        said.append(f"{impressions['test']:,} test impressions")
    if "items" in result:
        said.append(f"{result['items']:,} items")
    if "seeds" in result:
        said.append(f"{result['seeds']} seeds")
    return ", ".join(said)


def _points(below: Mapping[str, float] | None) -> str:
    """Return how far a row is above the reference."""
    if below is None:
        return ""
    ends = (below["high"], below["low"])
    low, high = (None if end is None else -100 * end for end in ends)
    gain = Gain(-100 * below["difference"], low, high)
    return f"{signed(-100 * below['difference'])} {gain.interval}".strip()


def _change(row: Mapping[str, Any]) -> str:
    return f"{row['baseline']:.4f} → {row['mean']:.4f}"
