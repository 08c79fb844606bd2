"""What a report is made of, before it is written in any format."""

import re
import zlib
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


def anchor(name: str) -> str:
    """Return an id for the page, of a name that may hold anything a user wrote."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"


def scaled(value: Any, scale: float = 1.0) -> float | None:
    """Return a number of a JSON, e.g. in per cent; None where it is undefined."""
    return None if value is None else scale * float(value)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers in rows.

    Attributes:
        name: key in the JSON; `anchor` of it is the id in the page.
        title: above it.
        columns: names of the columns.
        rows: one list of cells a row, each a string or a number; None or NaN where
            undefined.
        formats: format of each column's numbers, e.g. "+.2f"; "" for strings.
        note: below it.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[Any]]
    formats: list[str]
    note: str = ""

    def text(self, row: int, column: int) -> str:
        """Return a cell as it is read."""
        value = self.rows[row][column]
        if value is None or value != value:  # not a number
            return "–"  # noqa: RUF001  a dash, not a minus
        return format(value, self.formats[column])


@dataclass(frozen=True)
class Drawing:
    """An SVG tree: all text in it is escaped when it is written.

    Attributes:
        root: the element `svg`.
    """

    root: ElementTree.Element

    def __html__(self) -> str:
        """Return the markup, which Jinja takes as it is."""
        return ElementTree.tostring(self.root, encoding="unicode")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing and the words for those who do not see it.

    Attributes:
        name: `anchor` of it is the id in the page.
        title: above it.
        svg: the drawing; its colours are the page's.
        alternative: what it shows, in words.
    """

    name: str
    title: str
    svg: Drawing
    alternative: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        name: `anchor` of it is the id in the page.
        title: the heading.
        text: paragraphs of plain text.
        tables: numbers.
        figures: drawings.
        code: text in its own layout, such as a configuration.
    """

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it.

    Attributes:
        title: of the page.
        subtitle: what run, when, with which versions.
        notices: what a reader must know before any number, on every page.
        sections: in order.
    """

    title: str
    subtitle: str
    notices: list[str]
    sections: list[Section]
