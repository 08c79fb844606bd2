"""The page of one of the paper's tables, as measured on somebody's data."""

from collections.abc import Mapping
from typing import Any

from learn_torchrec.evaluation.report.parts import Report, Section, Table
from learn_torchrec.evaluation.report.retrieval_study import how, tables_by_group
from learn_torchrec.evaluation.words import TARGETS, ranked_by

_GROUPS = {name.removesuffix("_targets"): title for name, title in TARGETS.items()}


def experiment_report(result: Mapping[str, Any]) -> Report:
    """Return the page of what `learn-torchrec experiment` found (its JSON)."""
    titles = row_titles(result)
    sections = []
    if "groups" in result:
        sections = [*tables_by_group(result, titles), how(result)]
    return Report(
        title=f"{result['name']}: {result['title']}",
        subtitle=_subtitle(result),
        notices=[],
        summary=[
            Section(
                name="found",
                title=result["title"],
                text=[goal_sentence(goal, result, titles) for goal in result["goals"]],
                tables=[rows_table(result, titles)],
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
    columns = ["row", first.upper(), "95 % interval", "points to the reference"]
    formats = ["", ".4f", "", ""]
    columns += [metric.upper() for metric in others]
    formats += [".4f"] * len(others)
    if has_published:
        columns.append(f"paper's {result['published_metric'].upper()}")
        formats.append(".4f")
    cells = []
    for name in names:
        row = rows[name]
        mark = " (reference)" if name == result["reference"] else ""
        line = [titles[name] + mark, row[first]["mean"], _interval(row[first])]
        line.append(_points(row[first].get("below")))
        line += [row[metric]["mean"] for metric in others]
        cells.append(line + [row.get("published")] * has_published)
    note = "Averaged over seeds; intervals over users, points paired by user."
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


def goal_sentence(
    goal: Mapping[str, Any], result: Mapping[str, Any], titles: Mapping[str, str]
) -> str:
    """Return what the paper finds beside what was found here."""
    row, than = titles[goal["row"]], titles[goal["than"]]
    wanted = f"{goal['wanted']:g} x " if goal["wanted"] != 1 else ""
    on = "" if goal["group"] == "all" else f" on {_GROUPS[goal['group']]}"
    ratio = "" if goal["ratio"] is None else f", {goal['ratio']:.2f} x"
    verdict = "as expected" if goal["is_met"] else "not found here"
    claim = f"“{row}” at least {wanted}as good as “{than}”{on}"
    return f"{claim}: {verdict}{ratio} in {result['goal_metric'].upper()}."


def _subtitle(result: Mapping[str, Any]) -> str:
    said = [result["data"]]
    if users := result.get("users"):
        said.append(f"{users['test']:,} test users")
    if "items" in result:
        said.append(f"{result['items']:,} items")
    if "seeds" in result:
        said.append(f"{result['seeds']} seeds")
    return ", ".join(said)


def _interval(row: Mapping[str, Any]) -> str:
    if row.get("low") is None:
        return ""
    return f"({row['low']:.4f}, {row['high']:.4f})"


def _points(below: Mapping[str, float] | None) -> str:
    """Return how far a row is above the reference."""
    if below is None:
        return ""
    numbers = -100 * below["difference"], -100 * below["high"], -100 * below["low"]
    return "{:+.2f} ({:+.2f}, {:+.2f})".format(*numbers)
