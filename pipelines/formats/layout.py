"""The position of each column of a schema in a file, and the rows read from files."""

import dataclasses
import functools
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from pipelines.formats import line_rules
from pipelines.formats.fields import Values
from pipelines.formats.line_rules import LineRules
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.schema.checks import Column

_PARTITION = re.compile(r"[/\\]([A-Za-z_][^/\\=]*)=([^/\\]*)(?=[/\\])")
_MANY = 50
_ADVICE = (
    " To read a log with other columns, pass its schema as `schema`: `tf-dlrm schema` "
    "guesses one."
)
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


class Rows(NamedTuple):
    """The valid rows of a block, in order, and its bad lines.

    Attributes:
        labels: uint8 `(n,)`, 0 or 1, or float32 soft labels; 0 for a line without one.
        numbers: The numbers of each dense feature, float64 `(n,)`, not transformed; NaN
            for missing ones.
        values: The `Values` of each sparse feature; `None` for a feature with buckets.
        bucketed: The numbers of each sparse feature with buckets, by position, float64
            `(n,)`; NaN for missing ones.
        num_lines: Number of lines in the block, including bad ones.
        bad: `(position in the block, line, reason)` of each bad line.
        weights: Sample weights, float32 `(n,)`; `None` if the schema has none.
        others: The `Values` of requested further columns, read as categories.
        times: Event times in seconds, float64 `(n,)`, if requested.
    """

    labels: np.ndarray
    numbers: list[np.ndarray]
    values: list[Values]
    bucketed: dict[int, np.ndarray]
    num_lines: int
    bad: list[tuple[int, bytes, str]]
    weights: np.ndarray | None = None
    others: Mapping[Column, Values] = MappingProxyType({})
    times: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The columns to read in addition to the features.

    Attributes:
        label: Whether rows must have a label, and the weight and event time of the
            schema, if any.
        others: Further columns, read as categories.
        kept: Further columns of any type, of which only the texts are needed.
    """

    label: bool = True
    others: tuple[Column, ...] = ()
    kept: tuple[Column, ...] = ()

    def columns(self, schema: Schema) -> list[Column]:
        """Return the columns of a schema to read, each once."""
        columns = [feature.column for feature in (*schema.dense, *schema.sparse)]
        if self.label:
            columns.insert(0, schema.label.column)
            columns += [c for c in (schema.weight, schema.time) if c is not None]
        return list(dict.fromkeys([*columns, *self.others, *self.kept]))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The columns of one file.

    Attributes:
        schema: The schema.
        num_columns: Number of columns of a line.
        positions: Positions in a line of the columns that were found.
        constants: Columns with one value in the whole file, from the name of a folder
            such as `day=2026-01-01`.
        names: Names of all columns in order, or positions if they have no names.
        may_lack_label: Whether lines without the label's column are rows, too.
        is_exact: Whether lines have no further columns.
        is_bare: Whether the file is text without a header, so that its lines (with
            label, weight and time) are in the form that models take.
    """

    schema: Schema
    num_columns: int
    positions: Mapping[Column, int]
    constants: Mapping[Column, bytes]
    names: Sequence[Column]
    may_lack_label: bool = False
    is_exact: bool = True
    is_bare: bool = False

    @classmethod
    def of_text(
        cls, schema: Schema, path: str, names: Sequence[str] | None, wanted: Wanted
    ) -> "Layout":
        """Find the columns of a text file.

        Args:
            schema: The schema.
            path: The file.
            names: Names in the header; `None` without a header.
            wanted: The columns to read.

        Raises:
            ValueError: If a column is missing or its name is repeated.
        """
        if names is not None:
            return cls._find(schema, path, list(names), wanted)
        rules = line_rules.rules(schema)
        may_lack_label = rules.is_exact and not wanted.label
        every = dataclasses.replace(wanted, label=True)
        layout = cls._find(schema, path, rules.columns, every, may_lack_label)
        return dataclasses.replace(layout, is_exact=rules.is_exact, is_bare=True)

    @classmethod
    def of_table(
        cls, schema: Schema, path: str, names: Sequence[str], wanted: Wanted
    ) -> "Layout":
        """Find the columns of a Parquet file; the arguments are those of `of_text`."""
        return cls._find(schema, path, list(names), wanted)

    @classmethod
    def _find(cls, schema, path, columns, wanted, may_lack_label=False):
        constants = partitions_of(path)
        if b"" not in schema.missing and schema.missing:
            constants = {k: v or schema.missing[0] for k, v in constants.items()}
        positions, found_constants, missing, repeated = {}, {}, [], []
        places: dict[Column, int] = {}
        counts: dict[Column, int] = {}
        for place, name in enumerate(columns):
            places.setdefault(name, place)
            counts[name] = counts.get(name, 0) + 1
        asked = wanted.columns(schema)
        for column in asked:
            if isinstance(column, int) and column not in places:
                if column < len(columns):
                    positions[column] = column
                    continue
            if column in places:
                positions[column] = places[column]
                if counts[column] > 1:
                    repeated.append(column)
            elif column in constants:
                found_constants[column] = constants[column]
            else:
                missing.append(column)
        if missing:
            raise UserError(
                f"{path}: lacks the columns {missing[:_MANY]}. It has "
                f"{columns[:_MANY]}.{_ADVICE if schema == Schema.criteo() else ''}"
            )
        if repeated:
            raise UserError(f"{path}: has several columns named {repeated}.")
        return cls(
            schema, len(columns), positions, found_constants, columns, may_lack_label
        )

    def with_label(self) -> "Layout":
        """Return this layout with the label's column, if the file has it."""
        label, names = self.schema.label.column, list(self.names)
        place = label if isinstance(label, int) and label < len(names) else None
        if label in names:
            place = names.index(label)
        if place is None or label in self.positions:
            return self
        positions = {label: place, **self.positions}
        return dataclasses.replace(self, positions=positions)

    @functools.cached_property
    def rules(self) -> LineRules:
        """The rules of its lines, to explain bad lines."""
        schema, names = self.schema, list(self.names)
        absent = {
            name: None
            for name in ("weight", "time", "group")
            if getattr(schema, name) not in self.positions
        }
        schema = dataclasses.replace(schema, **absent)
        if self.is_exact:
            # A missing label comes last, where a line may lack it.
            names += [c for c in schema.columns if c not in self.positions]
            return LineRules(schema, names)
        return line_rules.rules(schema)

    @property
    def label_place(self) -> int | None:
        """Position of the label in a line; `None` if the file has no label."""
        return self.positions.get(self.schema.label.column)


def partitions_of(path: str) -> dict[str, bytes]:
    """Return the columns and values in the names of a file's folders.

    Example:

    >>> from pipelines.formats import layout
    >>> layout.partitions_of("log/day=2026-01-01/part-0.parquet")
    {'day': b'2026-01-01'}
    """
    return {
        name: b"" if value == _NO_PARTITION else urllib.parse.unquote_to_bytes(value)
        for name, value in _PARTITION.findall(path)
    }
