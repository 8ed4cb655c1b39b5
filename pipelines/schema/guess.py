"""A schema guessed from the first rows of a log, with the reason for each column."""

import dataclasses
import re
import textwrap
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipelines.files import expand_paths
from pipelines.formats.frame_rows import is_frame
from pipelines.runtime import UserError
from pipelines.schema import first_rows, label_guess, layout_match, name_hints
from pipelines.schema.column_facts import ColumnFacts
from pipelines.schema.columns import Dense, Label, Sparse, Text
from pipelines.schema.feature_guess import guess_feature
from pipelines.schema.first_rows import FirstRows
from pipelines.schema.schema import Schema
from pipelines.text_tables import align

_FEW_ROWS = 100
_MAX_OTHER_FILES = 200
_LONG_TABLE, _NUM_BUCKETED = 60, 8
# Marks that may also be categories: in columns of numbers they mean missing.
_UNSURE_MARKS = (b"NA", b"na", b"none", b"None", b"-", b"?")


@dataclasses.dataclass(frozen=True)
class ColumnGuess:
    """A guess about one column.

    Attributes:
        column: Name of the column.
        taken_as: Role, such as "label", "dense, log1p", "category" or "left out".
        why: The reason, a phrase.
        num_distinct: Number of distinct values in the rows that were read.
        missing_share: Share of the cells that are missing.
        examples: Its most frequent values.
    """

    column: str
    taken_as: str
    why: str
    num_distinct: int
    missing_share: float
    examples: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Guess:
    """A guessed schema, and the reasons for it.

    Attributes:
        schema: The `Schema`.
        columns: A `ColumnGuess` for each column of the file.
        path: The file that was read.
        num_rows: Number of its rows that were read.
        notes: Sentences about the files, for example about rows that would be bad.
    """

    schema: Schema
    columns: tuple[ColumnGuess, ...]
    path: str
    num_rows: int
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """Return a table for display: one line per column, then the notes."""
        rows: list[tuple[str, ...]] = [
            ("column", "taken as", "why", "distinct", "missing", "examples")
        ]
        is_long = len(self.columns) > _LONG_TABLE
        skipped = 0
        for place, one in enumerate(self.columns):
            last = self.columns[place - 1] if place else None
            after = self.columns[place + 1] if place + 1 < len(self.columns) else None
            kinds = {(c.taken_as, c.why) if c else None for c in (last, one, after)}
            if is_long and len(kinds) == 1:
                skipped += 1
                continue
            if skipped:
                rows.append((f"... {skipped:,} more", *[""] * 5))
                skipped = 0
            missing = f"{one.missing_share:.1%}" if one.missing_share else ""
            examples = "  ".join(_shorten(text) for text in one.examples)
            rows.append(
                (
                    _shorten(one.column, 30),
                    one.taken_as,
                    one.why,
                    f"{one.num_distinct:,}",
                    missing,
                    examples,
                )
            )
        lines = align(rows, left=(0, 1, 2, 5))
        for note in self.notes:
            lines += ["", *textwrap.wrap(f"Note: {note}", 100)]
        return "\n".join(lines)


def guess(paths: Any, num_rows: int = 100_000, label: str | None = None) -> Guess:
    """Guess the schema of a log; see `Schema.guess`."""
    if not isinstance(num_rows, int) or num_rows < 1:
        raise UserError(f"`num_rows` must be at least 1. Received: {num_rows!r}")
    files = [paths] if is_frame(paths) else expand_paths(paths)
    rows = first_rows.read(files[0], num_rows)
    rows = rows._replace(columns=[column.slice(0, num_rows) for column in rows.columns])
    marks = _find_marks(rows)
    facts = [
        ColumnFacts(name, column, pa.array(marks, pa.large_binary()))
        for name, column in zip(rows.names, rows.columns, strict=True)
    ]
    notes = [*rows.notes, *_compare(files, rows)]
    known = layout_match.find(rows, facts, label)
    if known is not None:
        name, schema = known
        columns = _describe_layout(name, schema, rows, facts)
    else:
        schema, columns, more = _decide(rows, facts, marks, label)
        notes += more
    if len(rows.columns[0]) < _FEW_ROWS:
        notes.append(
            f"Guessed from only {len(rows.columns[0])} rows: check each column."
        )
    return Guess(schema, columns, rows.path, len(rows.columns[0]), tuple(notes))


def _find_marks(rows: FirstRows) -> list[bytes]:
    """Return the cells that mean "missing", "" first."""
    candidates = [mark.encode() for mark in first_rows.MISSING_MARKS]
    wanted = pa.array(candidates, pa.large_binary())
    marks = set()
    for column in rows.columns:
        if not pat.is_large_binary(column.type):
            continue
        there = pc.is_in(wanted, column).to_numpy(zero_copy_only=False)
        for mark in np.array(candidates, object)[there]:
            if mark in marks:
                continue
            if mark not in _UNSURE_MARKS or mark == b"?":
                marks.add(mark)
            else:
                others = ColumnFacts("", column, wanted)
                if others.number_share > 0.5 or mark == b"-":
                    marks.add(mark)
    return [b"", *(mark for mark in candidates if mark in marks)]


def _compare(files: list[str], rows: FirstRows) -> list[str]:
    """Return notes on columns that the other files lack."""
    notes = []
    text = rows.format if isinstance(rows.format, Text) else Text()
    for path in files[1 : _MAX_OTHER_FILES + 1]:
        names = first_rows.read_names(path, text)
        if names is None:
            continue
        missing = [name for name in rows.names if name not in names]
        if missing == list(rows.names):
            notes.append(f"{path} names none of the columns. Does it have a header?")
        elif missing:
            listed = ", ".join(map(repr, missing[:10]))
            more = ", ..." if len(missing) > 10 else ""
            notes.append(f"{path} lacks the columns {listed}{more}.")
    folders = re.findall(r"([A-Za-z_]\w*)=[^/]*/", rows.path)
    if folders:
        notes.append(
            f"The names of folders contain values of {', '.join(map(repr, folders))}, "
            "which the guess does not read."
        )
    return notes


def _describe_layout(
    name: str, schema: Schema, rows: FirstRows, facts: list[ColumnFacts]
) -> tuple[ColumnGuess, ...]:
    why = f"the built-in layout {name!r}"
    columns = []
    for column, one in zip(schema.text.columns, facts, strict=True):
        one.name = column
        roles = [f"dense, {f.transform}" for f in schema.dense if f.column == column]
        roles += [
            "bag of categories" if f.is_bag else "category"
            for f in schema.sparse
            if f.column == column
        ]
        for role in ("weight", "time", "group"):
            if getattr(schema, role) == column:
                roles.append(role)
        if schema.label.column == column:
            roles.append("label")
        columns.append(_column(one, " + ".join(roles) or "left out", why))
    return tuple(columns)


def _decide(
    rows: FirstRows,
    facts: list[ColumnFacts],
    marks: list[bytes],
    label_name: str | None,
) -> tuple[Schema, tuple[ColumnGuess, ...], list[str]]:
    """Return the schema, the guesses by column and notes."""
    if label_name is not None and label_name not in rows.names and label_name.isdigit():
        label_name = dict(enumerate(rows.names)).get(int(label_name), label_name)
    try:
        label, label_why = label_guess.find(facts, label_name)
    except UserError as error:
        raise UserError(f"{rows.path}: {error}") from None
    notes = []
    if isinstance(rows.format, Text) and not rows.format.header:
        rows, label = _name_label(rows, facts, label)
    roles: dict[str, tuple[str, str]] = {str(label.column): ("label", label_why)}
    for one in facts:
        if one.name == label.column and one.num_missing:
            notes.append(
                f"{one.missing_share:.1%} of the rows have no label and would be bad "
                "rows."
            )
        if one.name == label.column and one.num_distinct == 1:
            notes.append(f"The label is {one.texts(1)[0]} in every row that was read.")
    others = _find_others(facts, roles)
    dense: list[Dense] = []
    sparse: list[Sparse] = []
    for one in facts:
        role, why = roles.get(one.name, ("", ""))
        if role and role != "group":
            continue
        feature, why = guess_feature(one, is_group=role == "group")
        if isinstance(feature, Dense):
            dense.append(feature)
            role = f"dense, {feature.transform}"
        elif isinstance(feature, Sparse):
            sparse.append(feature)
            role = "bag of categories" if feature.is_bag else "category"
            if feature.weight_separator:
                role = "weighted bag"
            if others.get("group") == one.name:
                role += " + group"
                why = "a user, by its name"
        else:
            role = "left out"
        roles[one.name] = role, why
    floats = [one.name for one in facts if one.is_float_integer]
    floats = [f.name for f in sparse if f.column in floats and f.buckets is None]
    if floats and isinstance(rows.format, Text):
        notes.append(
            f"The values of {', '.join(floats[:5])} are written as 7.0, as pandas "
            "writes integers with gaps. A Parquet file or a frame with integers has 7, "
            "another value: train and serve on the same form."
        )
    if not sparse:
        sparse = _bucket(dense, roles)
        if not sparse:
            raise UserError(
                f"{rows.path}: found no category. A DLRM needs at least one. The "
                f"columns are {', '.join(map(repr, rows.names[:10]))}."
            )
        notes.append(
            "No column is a category, so the first numbers are also used as "
            "categories, by quantiles."
        )
    sparse = _share_tables(sparse, facts, roles)
    kind = dataclasses.replace(
        rows.format, missing=tuple(mark.decode() for mark in marks)
    )
    if isinstance(kind, Text):
        kind = dataclasses.replace(kind, columns=_real_names(rows.names))
    schema = Schema(label, tuple(dense), tuple(sparse), format=kind, **others)
    columns = tuple(_column(one, *roles[one.name]) for one in facts)
    return schema, columns, notes


def _real_names(names: tuple[str, ...]) -> tuple[str, ...]:
    return names if all(names) else ()


def _name_label(
    rows: FirstRows, facts: list[ColumnFacts], label: Label
) -> tuple[FirstRows, Label]:
    """Name the label's column "label" in a file without a header."""
    names = list(rows.names)
    place = names.index(str(label.column))
    names[place] = facts[place].name = "label"
    return rows._replace(names=tuple(names)), dataclasses.replace(label, column="label")


def _find_others(
    facts: list[ColumnFacts], roles: dict[str, tuple[str, str]]
) -> dict[str, str]:
    """Find the columns of weight, time and user, and add them to `roles`."""
    others = {}
    finders = {
        "weight": (name_hints.weight_rank, _is_weight),
        "time": (name_hints.time_rank, _is_time),
        "group": (name_hints.group_rank, _is_group),
    }
    for role, (rank_of, fits) in finders.items():
        ranked = []
        for place, one in enumerate(facts):
            rank = rank_of(one.name)
            if role == "time" and rank is None and one.is_time:
                rank = 99
            if rank is not None and one.name not in roles and fits(one):
                # Among columns without a telling name, prefer more distinct times.
                ranked.append((rank, -one.num_distinct if rank == 99 else 0, place))
        if ranked:
            name = facts[min(ranked)[-1]].name
            others[role] = name
            how = "values are times" if min(ranked)[0] == 99 else "its name"
            roles[name] = role, f"{how}; not a feature"
    return others


def _is_weight(facts: ColumnFacts) -> bool:
    return facts.is_number and not facts.num_missing and facts.numbers.min() >= 0


def _is_time(facts: ColumnFacts) -> bool:
    if facts.num_missing or facts.num_distinct < 2:
        return False
    if facts.is_time:
        return True
    if not facts.is_number:
        return False
    low, high = facts.numbers.min(), facts.numbers.max()
    is_epoch = any(
        4e8 * unit <= low and high <= 4e9 * unit for unit in (1, 10**3, 10**6, 10**9)
    )
    is_written = 10**7 <= low and facts.is_integer and high <= 10**14  # 20260131, ...
    return is_epoch or (is_written and high < low * 1.2)


def _is_group(facts: ColumnFacts) -> bool:
    return facts.is_readable and not facts.is_list and 1 < facts.num_distinct


def _bucket(dense: list[Dense], roles: dict[str, tuple[str, str]]) -> list[Sparse]:
    features = []
    for feature in dense[:_NUM_BUCKETED]:
        name = f"{feature.name}_bucket"
        features.append(Sparse(feature.column, name, buckets="quantile"))
        role, why = roles[str(feature.column)]
        roles[str(feature.column)] = f"{role} + buckets", why
    return features


def _share_tables(
    sparse: list[Sparse],
    facts: list[ColumnFacts],
    roles: dict[str, tuple[str, str]],
) -> list[Sparse]:
    """Give a bag the table of the column whose values it holds."""
    by_name = {one.name: one for one in facts}
    singles = [feature for feature in sparse if not feature.is_bag]
    shared = []
    for feature in sparse:
        pieces = by_name[str(feature.column)].pieces if feature.is_bag else None
        for single in singles:
            if pieces is None:
                break
            values = by_name[str(single.column)].values
            if len(values) < 20 or len(pieces.values) < 20:
                continue
            words = [set(name_hints.words_of(str(f.column))) for f in (feature, single)]
            stems = [{word.removesuffix("s") for word in name} for name in words]
            is_kin = bool((stems[0] & stems[1]) - {"id"})
            digits = by_name[str(single.column)].is_number
            overlap = pc.mean(pc.is_in(pieces.values, values)).as_py()
            if overlap > 0.8 and (is_kin or not digits):
                feature = dataclasses.replace(feature, table=single.table)
                role, why = roles[str(feature.column)]
                why += f"; values of {single.name!r}, whose table it reads"
                roles[str(feature.column)] = role, why
                break
        shared.append(feature)
    return shared


def _column(facts: ColumnFacts, taken_as: str, why: str) -> ColumnGuess:
    examples = tuple(facts.texts(3))
    return ColumnGuess(
        facts.name, taken_as, why, facts.num_distinct, facts.missing_share, examples
    )


def _shorten(text: str, width: int = 20) -> str:
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: width + 1])
    return text if len(text) <= width else text[: width - 3] + "..."
