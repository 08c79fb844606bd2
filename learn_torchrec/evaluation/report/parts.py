"""The parts of a report, independent of its format."""

import re
import zlib
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from learn_torchrec.text import printable

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


def anchor(name: str) -> str:
    """Return an HTML id for a name, which may hold any text of a user."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    data = name.encode(errors="surrogatepass")  # of a folder's name, not all UTF-8
    return plain if plain == name else f"{plain}-{zlib.crc32(data):08x}"


def scaled(value: Any, scale: float = 1.0) -> float | None:
    """Return a number from JSON, scaled e.g. to per cent; None if undefined."""
    return None if value is None else scale * float(value)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        name: key in the JSON; its `anchor` is the id in the page.
        title: shown above.
        columns: names of the columns.
        rows: cells of each row: strings, or numbers with None or NaN if undefined.
        formats: number format of each column, e.g. "+.2f"; "" for strings.
        note: shown below.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[Any]]
    formats: list[str]
    note: str = ""

    def text(self, row: int, column: int) -> str:
        """Return a cell as shown."""
        value = self.rows[row][column]
        if value is None or value != value:  # not a number
            return "–"  # noqa: RUF001  a dash, not a minus
        return printable(format(value, self.formats[column]))


@dataclass(frozen=True)
class Drawing:
    """An SVG tree, whose text is escaped when written.

    Attributes:
        root: the element `svg`.
    """

    root: ElementTree.Element

    def __html__(self) -> str:
        """Return the markup, which Jinja does not escape."""
        return ElementTree.tostring(self.root, encoding="unicode")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing and its text alternative.

    Attributes:
        name: its `anchor` is the id in the page.
        title: shown above.
        svg: the drawing, in the page's colours.
        alternative: what the drawing shows, in words.
    """

    name: str
    title: str
    svg: Drawing
    alternative: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section.

    Attributes:
        name: its `anchor` is the id in the page.
        title: the heading.
        text: paragraphs of plain text.
        tables: tables.
        figures: drawings.
        code: preformatted text, such as a configuration.
    """

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole report.

    Attributes:
        title: of the page.
        subtitle: when the run was made, with which versions.
        notices: warnings that stay visible above all numbers.
        sections: the details, in order.
        summary: sections before all others: what was found, in plain words.
        left_out: what the run does not hold, a sentence each.
    """

    title: str
    subtitle: str
    notices: list[str]
    sections: list[Section]
    summary: list[Section] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
