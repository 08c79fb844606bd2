"""Tables and sections of a report as text on a terminal."""

import re
import textwrap
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest

from learn_torchrec.evaluation.report.parts import Section, Table
from learn_torchrec.text import printable

_ELLIPSIS = "…"
_INDENT = "  "
_GLUE = "\u00a0"
_GAP = "  "
_BETWEEN = "    "  # two tables side by side
_LEAST = 12  # columns of a last column before the gaps shrink


def to_text(sections: Sequence[Section], width: int) -> str:
    """Return sections as lines of at most `width` columns, without drawings.

    The tables of a section stand side by side, each in its share of the width: a long
    last column is cut.
    """
    return "\n\n".join("\n".join(_section(one, width)) for one in sections)


def _section(section: Section, width: int) -> Iterator[str]:
    yield from _wrapped(section.title, width)
    for line in _body(section, width - len(_INDENT)):
        yield _INDENT + line


def _body(section: Section, width: int) -> Iterator[str]:
    for text in section.text:
        yield from _wrapped(text, width)
    if section.tables:
        count = len(section.tables)
        share = (width - (count - 1) * len(_BETWEEN)) // count
        blocks = [_table(table, share) for table in section.tables]
        sizes = [max(map(columns, block)) for block in blocks]
        for lines in zip_longest(*blocks, fillvalue=""):
            cells = (pad(line, size) for line, size in zip(lines, sizes, strict=True))
            yield _BETWEEN.join(cells).rstrip()
    for table in section.tables:
        yield from _wrapped(table.note, width)


def _wrapped(text: str, width: int) -> list[str]:
    """Return lines that break neither before a per cent sign nor in an interval."""
    glued = re.sub(r"(?<=\d)(,?) (?=[%+-])", rf"\1{_GLUE}", printable(text))
    lines = textwrap.wrap(glued, width, break_on_hyphens=False)
    return [line.replace(_GLUE, " ") for line in lines]


def _table(table: Table, width: int) -> list[str]:
    cells = range(len(table.columns))
    rows = [[table.text(row, cell) for cell in cells] for row in range(len(table.rows))]
    left = {cell for cell in cells if not table.formats[cell]}
    return align([table.columns, *rows], left, width).splitlines()


def align(
    lines: Sequence[Sequence[str]],
    left: Collection[int] = (0, 1),
    width: int | None = None,
) -> str:
    """Align columns, some to the left and the others to the right.

    Cells may hold any text, see `printable`. With a `width`, columns of text but the
    last take a third of it at most, and the last is cut so that lines fit.
    """
    table = [[printable(cell) for cell in line] for line in lines]
    sizes = [max(map(columns, column)) for column in zip(*table, strict=True)]
    gap = _GAP
    if width is not None:
        *sizes, last = sizes
        sizes = [
            min(size, width // 3) if place in left else size
            for place, size in enumerate(sizes)
        ]
        room = width - sum(sizes) - len(gap) * len(sizes)
        if room < min(last, _LEAST):
            gap = " "
            room = width - sum(sizes) - len(gap) * len(sizes)
        sizes.append(max(1, min(last, room)))
        table = [[*map(cut, line, sizes)] for line in table]
    return "\n".join(
        gap.join(
            pad(cell, size) if place in left else pad(cell, size, is_right=True)
            for place, (cell, size) in enumerate(zip(line, sizes, strict=True))
        ).rstrip()
        for line in table
    )


def columns(text: str) -> int:
    """Return the columns that printable text takes: two for a wide character."""
    return sum(map(_columns, text))


def _columns(one: str) -> int:
    if unicodedata.combining(one) or unicodedata.category(one) == "Me":
        return 0
    return 2 if unicodedata.east_asian_width(one) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Return text of at most `width` columns, cut text with an ellipsis at the end."""
    if columns(text) <= width:
        return text
    taken = 0
    for place, one in enumerate(text):
        taken += _columns(one)
        if taken > width - 1:
            return text[:place].rstrip() + _ELLIPSIS
    return text


def pad(text: str, width: int, *, is_right: bool = False) -> str:
    """Return text filled with spaces, by columns."""
    spaces = " " * (width - columns(text))
    return spaces + text if is_right else text + spaces
