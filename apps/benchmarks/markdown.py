"""Tables in Markdown."""

from collections.abc import Iterable


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table."""

    def line(cells: Iterable[str]) -> str:
        return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|\n"

    head = list(head)
    rule = "|---" * len(head) + "|\n"
    return line(head) + rule + "".join(map(line, rows))
