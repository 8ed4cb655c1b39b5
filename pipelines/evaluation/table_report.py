"""Size and health of embedding tables, as a table of text and as JSON."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.text_tables import align
from tf_dlrm.runtime import format_bytes

_MOST_LINES = 40
_LEAST_SHARE, _LEAST_BYTES = 0.01, 1_000_000


@dataclasses.dataclass(frozen=True)
class Advice:
    """One way of making a table smaller.

    Attributes:
        text: The reason and the change.
        saved_bytes: Bytes of rows and optimizer state that the change saves.
    """

    text: str
    saved_bytes: int


@dataclasses.dataclass(frozen=True)
class TableReport:
    """Size and health of an embedding table.

    Norms, ranks and duplicates are those of the rows that were trained; they are `None`
    if there are none.

    Attributes:
        name: Name of the table.
        num_rows: Number of rows.
        width: Width of a row.
        row_bytes: Size of the rows in bytes.
        slot_bytes: Size of the optimizer state in bytes.
        dead_rows: Number of rows that training has never changed; `None`: unknown.
        dead_by: How `dead_rows` was found: `"initial values"`, `"counts"` or `None`.
        rare_rows: Number of rows whose value occurs fewer than 20 times in the rows
            that the vocabulary was built from; `None`: unknown.
        norms: 5%, 50% and 95% quantiles of the rows' Euclidean norms.
        stable_rank: Squared Frobenius norm divided by the squared spectral norm, from 1
            to the width.
        information_abundance: Sum of the singular values divided by the largest, from 1
            to the width.
        energy: Share of the squared Frobenius norm that the first 1, 2, ... width
            singular directions hold.
        sampled_rows: Number of rows among which near duplicates were counted.
        near_duplicates: Number of sampled rows within 1% of an earlier one.
        advice: Ways of making the table smaller, the largest saving first; each saves
            at least a megabyte and 1% of all tables.

    Reference:
        Guo et al. 2024, On the embedding collapse when scaling up recommendation
        models, ICML, section 3, for the information abundance.
    """

    name: str
    num_rows: int
    width: int
    row_bytes: int
    slot_bytes: int
    dead_rows: int | None
    dead_by: str | None
    rare_rows: int | None
    norms: tuple[float, float, float] | None
    stable_rank: float | None
    information_abundance: float | None
    energy: tuple[float, ...] | None
    sampled_rows: int
    near_duplicates: int
    advice: tuple[Advice, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return JSON-safe facts for `tables.json`."""
        facts = dataclasses.asdict(self)
        facts["advice"] = [dataclasses.asdict(advice) for advice in self.advice]
        return facts


def least_saving(total_bytes: int) -> float:
    """Return the bytes that advice must save, given the size of all tables in bytes."""
    return max(_LEAST_BYTES, _LEAST_SHARE * total_bytes)


def lines(reports: Sequence[TableReport]) -> Iterator[str]:
    """Yield the lines of a table for a terminal, the largest first, and advice."""
    total = sum(report.row_bytes + report.slot_bytes for report in reports)
    yield (
        f"{len(reports):,} tables, {format_bytes(total)} with optimizer state. "
        f"{_say_dead(reports)}"
    )
    rows = [
        ["table", "rows", "width", "size", "slots", "dead", "norms 5/50/95%"]
        + ["stable rank", "abundance", "duplicates"]
    ]
    ordered = sorted(reports, key=lambda report: -report.row_bytes - report.slot_bytes)
    rows += [_cells(report) for report in ordered[:_MOST_LINES]]
    yield from align(rows)
    if len(ordered) > _MOST_LINES:
        yield f"and {len(ordered) - _MOST_LINES:,} smaller tables"
    advice = [(report.name, each) for report in ordered for each in report.advice]
    if not advice:
        size = format_bytes(least_saving(total))
        yield f"No advice: no change would save {size} or more."
        return
    yield ""
    yield "To save memory (check the metrics of the smaller model):"
    for name, each in sorted(advice, key=lambda pair: -pair[1].saved_bytes):
        yield f"- {name}: {each.text}: saves {format_bytes(each.saved_bytes)}"


def _say_dead(reports):
    ways = {report.dead_by for report in reports} - {None}
    if ways == {"initial values"}:
        return "Dead rows still have their initial values."
    if ways == {"counts"}:
        return "Dead rows are those of values that do not occur in the vocabulary."
    if ways:
        return "Dead rows: see tables.json for how each table's were found."
    return "Dead rows are unknown: the initial values cannot be computed again."


def _cells(report):
    dead = (
        "-" if report.dead_rows is None else f"{report.dead_rows / report.num_rows:.0%}"
    )
    norms = "-" if report.norms is None else "/".join(f"{n:.3g}" for n in report.norms)
    duplicates = "-"
    if report.sampled_rows:
        duplicates = f"{report.near_duplicates / report.sampled_rows:.0%}"
    return [
        report.name,
        f"{report.num_rows:,}",
        f"{report.width}",
        format_bytes(report.row_bytes),
        format_bytes(report.slot_bytes),
        dead,
        norms,
        _decimal(report.stable_rank),
        _decimal(report.information_abundance),
        duplicates,
    ]


def _decimal(value):
    return "-" if value is None else f"{value:.1f}"
