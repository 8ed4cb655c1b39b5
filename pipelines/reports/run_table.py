"""The table of a report, as text, as Markdown and as CSV."""

import json
from collections.abc import Iterator, Sequence

from pipelines.reports.measures import MEASURES, QUALITY, TIME
from pipelines.reports.runs import Run, shorten
from pipelines.text_tables import align, to_markdown

MISSING, BEST = "-", "*"
NARROWEST, WIDEST = 80, 120
_GAP = "  "


class Table:
    """A table of runs with the options that differ and their measures.

    Args:
        runs: The runs.
        differing: Names of the options to show.
        values: The result of `measures.measure` for each run.
        best: The result of `measures.find_best`.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        differing: Sequence[str],
        values: Sequence[dict],
        best: dict[str, list[int]],
    ):
        self._runs, self._differing = runs, differing
        self._values, self._best = values, best

    def to_text(self, width: int = WIDEST) -> str:
        """Return the table as text for a terminal.

        Args:
            width: Columns of the terminal; a wider block continues below.
        """
        width = min(max(width, NARROWEST), WIDEST)
        lines = []
        for title, columns in self._blocks(BEST, ""):
            names = ["", title, *(run.label for run in self._runs)]
            for part in _fit(columns, width - max(map(len, names))):
                rows = list(zip(names, *part, strict=True))
                lines += [*align(rows if any(rows[0]) else rows[1:], _GAP), ""]
        return "\n".join(lines).rstrip()

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        blocks = []
        for title, columns in self._blocks("**", "**"):
            heads = [" ".join(filter(None, column[:2])) for column in columns]
            cells = zip(*(column[2:] for column in columns), strict=True)
            rows = [[run.label, *c] for run, c in zip(self._runs, cells, strict=True)]
            blocks.append(to_markdown([title, *heads], rows))
        return "\n\n".join(blocks)

    def rows(self) -> Iterator[list]:
        """Yield the names of columns, then the options and measures of each run."""
        options = [f"config.{name}" for name in self._differing]
        names = [each.name for each in MEASURES]
        yield ["run", "folder", "finished", *options, *names]
        for run, values in zip(self._runs, self._values):
            chosen = [run.options.get(name) for name in self._differing]
            chosen = [c if isinstance(c, str) else json.dumps(c) for c in chosen]
            known = ["" if values[name] is None else values[name] for name in names]
            finished = json.dumps(run.is_finished)
            yield [run.name, run.files.path, finished, *chosen, *known]

    def _blocks(self, after, before):
        """Yield titles and columns; each column has two lines of title, then cells."""
        options = [
            ["", name, *(_words(run.options.get(name, "")) for run in self._runs)]
            for name in self._differing
        ]
        if options:
            yield "What differs", options
        for title, measures in (("Quality", QUALITY), ("Time", TIME)):
            columns = []
            for measure in measures:
                cells = []
                for i, values in enumerate(self._values):
                    value = values[measure.name]
                    text = MISSING if value is None else measure.text(value)
                    is_best = i in self._best.get(measure.name, ())
                    cells.append(
                        f"{before}{text}{after}" if is_best else text + " " * len(after)
                    )
                columns.append([*measure.title, *cells])
            yield title, columns


def _fit(columns, width):
    """Divide columns into parts of limited width; a wider column is a separate part."""
    part, used = [], 0
    for column in columns:
        needed = _width(column) + len(_GAP)
        if part and used + needed > width:
            yield part
            part, used = [], 0
        part.append(column)
        used += needed
    yield part


def _width(column):
    return max(map(len, column))


def _words(option):
    """Return an option as text: `512-256-1` for numbers, `none` for `None`."""
    if option is None:
        return "none"
    if isinstance(option, bool):
        return "on" if option else "off"
    if isinstance(option, list):
        if all(isinstance(each, int) for each in option):
            return shorten("-".join(map(str, option)))
        return shorten(" ".join(map(str, option)))
    return shorten(f"{option:g}" if isinstance(option, float) else str(option)) or "-"
