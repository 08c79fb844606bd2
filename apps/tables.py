"""Tables on a terminal."""


def align(lines: list[list[str]], left: int = 2) -> str:
    """Align columns: the first `left` ones left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def pad(column: int, cell: str) -> str:
        width = widths[column]
        return cell.ljust(width) if column < 2 else cell.rjust(width)

    return "\n".join(
        "  ".join(pad(column, cell) for column, cell in enumerate(line))
        for line in lines
    )
