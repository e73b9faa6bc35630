"""Tables in plain text."""

from __future__ import annotations

from collections.abc import Sequence

from frostline._results import WIDTH


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, indent: int = 2
) -> str:
    """Aligned columns, the first ``left`` of them to the left and the others to the right.

    Args:
        head: a title for each column.
        rows: a cell for each column.
        left: how many columns hold words.
        indent: spaces before each line.

    Raises:
        ValueError: a row has another number of cells than the head, or a line would be wider than
            80 columns.

    Example:
        >>> print(table(["way", "kept"], [["flag", "no"], ["fl.freeze", "yes"]], indent=0))
        way        kept
        flag         no
        fl.freeze   yes
    """
    lines = [head, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    text = [_line(line, widths, left, indent) for line in lines]
    longest = max(text, key=len)
    if len(longest) > WIDTH:
        raise ValueError(
            f"expected lines of at most {WIDTH} columns, got {len(longest)}: {longest}"
        )
    return "\n".join(text)


def _line(cells: Sequence[str], widths: Sequence[int], left: int, indent: int) -> str:
    padded = [
        cell.ljust(width) if i < left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return (" " * indent + "  ".join(padded)).rstrip()
