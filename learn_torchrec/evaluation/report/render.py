"""A report as HTML, Markdown and JSON with the same numbers."""

import base64
import hashlib
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from learn_torchrec.evaluation.report.parts import Report, Table, anchor
from learn_torchrec.outputs import replacing

_TEMPLATE = "page.html.j2"
_GENERATOR = '<meta name="generator" content="LEARN on TorchRec">'
_HEAD_BYTES = 4096


def report_files(path: Path) -> tuple[Path, Path, Path]:
    """Return the files of a report: the page at `path`, `.md` and `.json` beside it."""
    return path, path.with_suffix(".md"), path.with_suffix(".json")


def write_report(report: Report, path: Path) -> None:
    """Write the `report_files`, each complete or not at all."""
    bodies = (
        to_html(report),
        to_markdown(report),
        json.dumps(to_json(report), indent=2) + "\n",
    )
    for one, body in zip(report_files(path), bodies, strict=True):
        with replacing(one) as working:
            working.write_text(body, encoding="utf-8")


def is_report(path: Path) -> bool:
    """Whether a file is a page that `write_report` wrote."""
    with path.open("rb") as stream:
        return _GENERATOR.encode() in stream.read(_HEAD_BYTES)


def to_html(report: Report) -> str:
    """Return a self-contained page."""
    template = (
        resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"sort_key": _sort_key, "anchor": anchor}
    return environment.from_string(template).render(
        report=report, script_digest=_script_digest(template)
    )


def _script_digest(template: str) -> str:
    """Return the digest by which the page's policy allows only its own script."""
    script = template.partition("<script>")[2].partition("</script>")[0]
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def to_markdown(report: Report) -> str:
    """Return the same text and tables, with the figures' text alternatives."""
    lines = [f"# {report.title}", "", report.subtitle, ""]
    lines += [f"> **{notice}**\n" for notice in report.notices]
    for section in (*report.summary, *report.sections):
        lines += [f"## {section.title}", ""]
        lines += [f"{text}\n" for text in section.text]
        for table in section.tables:
            lines += [f"### {table.title}", "", *_markdown_table(table), ""]
            lines += [table.note, ""] if table.note else []
        for figure in section.figures:
            lines += [f"*{figure.title}*: {figure.alternative}", ""]
        lines += ["```", section.code, "```", ""] if section.code else []
    lines += report.left_out
    return "\n".join(lines).rstrip() + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Return the summary's sentences, and the tables with unrounded numbers."""
    return {
        "title": report.title,
        "subtitle": report.subtitle,
        "notices": report.notices,
        "summary": [text for section in report.summary for text in section.text],
        "tables": {
            table.name: [
                dict(zip(table.columns, map(_finite, row), strict=True))
                for row in table.rows
            ]
            for section in (*report.summary, *report.sections)
            for table in section.tables
        },
    }


def _markdown_table(table: Table) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    columns = range(len(table.columns))
    rows = [
        line([table.text(row, column) for column in columns])
        for row in range(len(table.rows))
    ]
    rule = "|" + "|".join("---:" if table.formats[c] else "---" for c in columns) + "|"
    return [line(table.columns), rule, *rows]


def _sort_key(value: Any) -> str:
    """Return the key by which the page sorts a cell; "" for undefined, sorted last."""
    if _finite(value) is None:
        return ""
    return repr(float(value)) if isinstance(value, int | float) else str(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
