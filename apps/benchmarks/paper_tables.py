"""The paper's tables as measured: results/tableN_DATA.json, i2i_DATA.json and so on."""

from collections.abc import Mapping
from typing import Any

from learn_torchrec.evaluation.report.experiment import (
    cohort_table,
    goal_sentence,
    row_titles,
    rows_table,
)
from learn_torchrec.evaluation.report.parts import Table

from .markdown import markdown

_TABLES = (
    *("table1", "table2", "table3", "table4", "table5", "table6", "table7"),
    *("i2i", "v2", "transfer", "curve"),
)
_DATA = {
    "movielens_100k": "MovieLens-100K",
    "amazon_scientific": "Amazon Scientific 2018",
    "amazon_office": "Amazon Office 2018, from Industrial",
    "online_retail": "Online Retail II",
    "complete_journey": "The Complete Journey",
}


def paper_tables(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return each table over all data sets that it was run on, by its name."""
    found = {}
    for name in _TABLES:
        parts = [
            _of_data(title, results[f"{name}_{data}"])
            for data, title in _DATA.items()
            if f"{name}_{data}" in results
        ]
        if parts:
            found[name] = "\n".join(parts)
    return found


def _of_data(title: str, result: Mapping[str, Any]) -> str:
    titles = row_titles(result)
    table = (
        cohort_table(result)
        if result["reference"] is None
        else rows_table(result, titles)
    )
    size = [f"{result['seeds']} seeds"]
    if users := result.get("users"):
        size.append(f"{users['test']:,} test users")
    if "items" in result:
        size.append(f"{result['items']:,} items")
    lines = [f"**{title}** ({', '.join(size)})", "", _markdown(table)]
    lines += [f"- {goal_sentence(goal, result, titles)}" for goal in result["goals"]]
    return "\n".join(lines) + "\n"


def _markdown(table: Table) -> str:
    rows = [
        [table.text(row, column) for column in range(len(table.columns))]
        for row in range(len(table.rows))
    ]
    return markdown(table.columns, rows)
