"""Tables of text, in columns for a terminal or as Markdown."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], gap: str = "  ") -> list[str]:
    """Return rows as lines, the first column left-aligned, the others right-aligned."""
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join([cells[0].ljust(first), *map(str.rjust, cells[1:], others)]).rstrip()
        for cells in rows
    ]


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
