"""Tables on a terminal."""

from collections.abc import Iterable

from learn_torchrec.ranker.features.derive import FeatureChoice


def align(lines: list[list[str]], left: int = 2) -> str:
    """Align columns: the first `left` ones left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def pad(column: int, cell: str) -> str:
        width = widths[column]
        return cell.ljust(width) if column < left else cell.rjust(width)

    return "\n".join(
        "  ".join(pad(column, cell) for column, cell in enumerate(line)).rstrip()
        for line in lines
    )


def feature_table(choices: Iterable[FeatureChoice]) -> str:
    """Return the features that were derived, a line for each column."""
    lines = [[c.column, c.source, c.use, c.reason] for c in choices]
    return align([["column", "from", "used as", "because"], *lines], left=4)
