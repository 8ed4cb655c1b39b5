"""Tables of text, in columns for a terminal or as Markdown."""

from collections.abc import Container, Sequence


def align(
    rows: Sequence[Sequence[str]], gap: str = "  ", left: Container[int] = (0,)
) -> list[str]:
    """Return rows as lines; columns that are not in `left` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (
        [
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        for cells in rows
    )
    return [gap.join(cells).rstrip() for cells in padded]


def shorten_count(number: float) -> str:
    """Return a number as short text: 0, 250k, 1.5M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:g}{letter}"
    return f"{number:g}"


def to_markdown(
    headings: Sequence[str], rows: Sequence[Sequence[str]], rule: str = "---:"
) -> str:
    """Return a table as Markdown; `rule` aligns all columns but the first."""
    lines = [headings, ["---", *[rule] * (len(headings) - 1)], *rows]
    lines = [[cell.strip().replace("|", "/") for cell in cells] for cells in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
