"""A report as HTML, Markdown and JSON with the same numbers."""

import base64
import hashlib
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from learn_torchrec.evaluation.report.parts import Report, Table, anchor
from learn_torchrec.outputs import replacing
from learn_torchrec.text import printable

_TEMPLATE = "page.html.j2"
_GENERATOR = '<meta name="generator" content="LEARN on TorchRec">'
_HEAD_BYTES = 4096
# What Markdown takes for markup: at any place, at the start of a line, and as HTML.
_MARKUP = re.compile(r"[\\`*\[|]|(?<!\w)_|_(?!\w)")
_BLOCK = re.compile(r"^(\d*)(?=[#>+=.)-])")
_HTML = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<=:)/(?=/)")


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
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_one_by_one
    )
    environment.filters |= {"sort_key": _sort_key, "anchor": anchor}
    return environment.from_string(template).render(
        report=report,
        script_digest=_digest(template, "script"),
        style_digest=_digest(template, "style"),
    )


def _one_by_one(value: Any) -> Any:
    """Return what the page shows, text as lines of printable characters."""
    if type(value) is not str:
        return value
    return "\n".join(map(printable, value.split("\n")))


def _digest(template: str, element: str) -> str:
    """Return the digest by which the page's policy allows its own element alone."""
    text = template.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def to_markdown(report: Report) -> str:
    """Return the same text and tables, with the figures' text alternatives."""
    lines = [f"# {_inline(report.title)}", "", _paragraph(report.subtitle), ""]
    lines += [f"> **{_inline(notice)}**\n" for notice in report.notices]
    for section in (*report.summary, *report.sections):
        lines += [f"## {_inline(section.title)}", ""]
        lines += [f"{_paragraph(text)}\n" for text in section.text]
        for table in section.tables:
            lines += [f"### {_inline(table.title)}", "", *_markdown_table(table), ""]
            lines += [_paragraph(table.note), ""] if table.note else []
        for figure in section.figures:
            texts = map(_inline, (figure.title, figure.alternative))
            lines += ["*{}*: {}".format(*texts), ""]
        lines += _markdown_code(section.code) if section.code else []
    lines += map(_paragraph, report.left_out)
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
        return "| " + " | ".join(map(_inline, cells)) + " |"

    columns = range(len(table.columns))
    rows = [
        line([table.text(row, column) for column in columns])
        for row in range(len(table.rows))
    ]
    rule = "|" + "|".join("---:" if table.formats[c] else "---" for c in columns) + "|"
    return [line(table.columns), rule, *rows]


def _inline(text: str) -> str:
    """Return text that Markdown shows as it is, inside a line."""
    text = _HTML.sub(lambda found: f"&#{ord(found[0])};", printable(text))
    return _MARKUP.sub(r"\\\g<0>", text.strip())


def _paragraph(text: str) -> str:
    """Return text that Markdown shows as it is, as a paragraph."""
    return _BLOCK.sub(r"\1\\", _inline(text))


def _markdown_code(code: str) -> list[str]:
    fence = "`" * (2 + max(map(len, re.findall("`*", code))))
    return [fence.ljust(3, "`"), _one_by_one(code), fence.ljust(3, "`"), ""]


def _sort_key(value: Any) -> str:
    """Return the key by which the page sorts a cell; "" for undefined, sorted last."""
    if _finite(value) is None:
        return ""
    return repr(float(value)) if isinstance(value, int | float) else str(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
