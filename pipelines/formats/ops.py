"""Split lines of a text log in TensorFlow operations.

The rules are those of `line_rules.py`. Every row goes through here, so the common case
is fast: *plain* lines need a single pass of a regular expression.

# B lines, C columns, D dense features, F sparse features
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.formats import cell_ops, plain_lines
from pipelines.formats.cell_ops import Cells
from pipelines.formats.line_rules import ISO_TIME, LineRules
from pipelines.schema import Dense

# RE2 reads UTF-8 here: a class like [^\t] does not match bytes that are not valid
# UTF-8, and only \C matches any byte.
_LINE_END = r"\C*[\r\n]\C*"
_QUOTED = r'"(?:[^"]|"")*"'
_MAX_SHOWN_BYTES = 1024


class Rows(NamedTuple):
    """Rows that are split into cells.

    Attributes:
        cells: The `Cells` of the features.
        label: float32 `(B,)`.
        sample_weight: float32 `(B,)`, or `None` without a column of weights.
    """

    cells: Cells
    label: tf.Tensor
    sample_weight: tf.Tensor | None


class LineOps:
    """The operations on the lines of one log.

    Args:
        rules: The rules of the log.
        edges: The learned edges of buckets, by feature.
        fills: float64 `(D,)`, the numbers to use for missing cells.
        kind: Description of the log, for the error about a bad row.
    """

    def __init__(
        self,
        rules: LineRules,
        edges: Mapping[str, Any],
        fills: np.ndarray,
        kind: str,
    ):
        self._rules, self._schema, self._kind = rules, rules.schema, kind
        self._edges, self._fills = edges, fills
        self._delimiter = self._schema.text.delimiter
        self._quoted = self._schema.text.quoted
        self._used = sorted(set(rules.positions.values()))
        self._marks = plain_lines.bag_marks(rules)
        self._patterns = {
            (labelled, has_bags): plain_lines.plain_pattern(rules, labelled, has_bags)
            for labelled in (True, False)
            for has_bags in (True, False)
        }
        # Defaults of columns that can be read directly as numbers. They are NumPy
        # arrays because a tensor made here would start TensorFlow's runtime.
        self._defaults = {
            position: default
            for column, position in rules.positions.items()
            if (default := self._number_default(column)) is not None
        }

    def check(self, lines: tf.Tensor, labelled: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Return masks of the lines that are valid rows, and of those that are plain.

        Args:
            lines: String tensor `(B,)`.
            labelled: Whether the label is required.

        Returns:
            `(valid, plain)`, two bool tensors `(B,)`. Plain lines are valid.
        """
        plain = self._matches(lines, self._patterns[labelled, False])
        valid = plain
        with_bags = self._patterns[labelled, True]
        if with_bags != self._patterns[labelled, False]:
            valid = _check_others(lines, valid, lambda x: self._matches(x, with_bags))
        valid = _check_others(lines, valid, lambda x: self._check_any(x, labelled))
        return valid, plain

    def require(self, lines: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Return the lines; raise an error that shows the first invalid one, if any."""

        def fail():
            position = tf.argmin(tf.cast(valid, tf.int32))
            line = lines[position]
            found = [
                f"Not a row of {self._kind} (position in the batch, columns, text):",
                position,
                tf.size(tf.strings.split(line, self._delimiter)),
                # Text that is not UTF-8 would cause a UnicodeDecodeError instead.
                tf.strings.unicode_transcode(
                    tf.strings.substr(line, 0, _MAX_SHOWN_BYTES), "UTF-8", "UTF-8"
                ),
            ]
            asserted = tf.debugging.Assert(False, found)
            with tf.control_dependencies([asserted]):
                return tf.identity(lines)

        return tf.cond(tf.reduce_all(valid), lambda: lines, fail)

    def split(self, lines: tf.Tensor, plain: tf.Tensor, labelled: bool) -> Rows:
        """Split rows into cells.

        Args:
            lines: String tensor `(B,)` of rows.
            plain: bool tensor `(B,)`, from `check`.
            labelled: Whether the label is required. Rows without a label get an
                arbitrary one.
        """

        def look_closer():
            trimmed = _trim(lines)
            if self._marks == "":
                return trimmed, tf.constant(False)
            if self._marks is None:
                return trimmed, tf.constant(True)
            mark = tf.strings.regex_full_match(trimmed, rf"\C*{self._marks}\C*")
            return trimmed, tf.reduce_any(mark)

        schema = self._schema
        trimmed, has_bags = tf.cond(
            tf.reduce_all(plain), lambda: (lines, tf.constant(False)), look_closer
        )
        has_label = None
        if not labelled and self._rules.is_exact:
            has_label = tf.equal(self._count(trimmed), self._rules.num_columns)
        defaults = dict(self._defaults)
        if not labelled and schema.weight is not None:  # it may hold anything
            defaults.pop(self._rules.positions[schema.weight], None)
        decoded = self._decode(trimmed, has_label, defaults)
        cells = cell_ops.of_texts(schema, decoded, self._fills, self._edges, has_bags)
        label = self._read_label(decoded[schema.label.column])[0]
        weight = None
        if labelled and schema.weight is not None:
            weight = tf.cast(cell_ops.read(decoded[schema.weight]), tf.float32)
        return Rows(cells, label, weight)

    def _matches(self, lines, pattern):
        if pattern is None:
            return tf.zeros(tf.shape(lines), tf.bool)
        return tf.strings.regex_full_match(lines, pattern)

    def _check_any(self, lines, labelled):
        rules, schema = self._rules, self._schema
        lines = _trim(lines)
        valid = tf.not_equal(lines, "") & self._can_be_split(lines)
        count = self._count(lines)
        has_label = tf.equal(count, rules.num_columns)
        if not rules.is_exact:
            has_label |= tf.greater(count, rules.num_columns)
        valid &= (
            has_label
            if labelled or not rules.is_exact
            else (has_label | tf.equal(count, rules.num_columns - 1))
        )
        # A line that cannot be split would fail, so the other checks replace it.
        blank = self._delimiter * (rules.num_columns - 1)
        lines = tf.where(valid, lines, blank)
        if labelled or not rules.is_exact:
            found = self._decode(lines, None, {})
            valid &= self._read_label(found[schema.label.column])[1]
        else:
            has_label |= tf.logical_not(valid)
            found = self._decode(lines, has_label, {})
            is_label = self._read_label(found[schema.label.column])[1]
            valid &= is_label | tf.logical_not(has_label)
        valid &= cell_ops.check(schema, found)
        return valid & self._check_roles(found) if labelled else valid

    def _check_roles(self, found):
        """Check the sample weight and the time."""
        schema, valid = self._schema, True
        if schema.weight is not None:
            text = found[schema.weight]
            present = ~cell_ops.is_missing(schema, text) & cell_ops.is_number(text)
            valid = present & (cell_ops.read(text) >= 0)
        if schema.time is not None:
            text = found[schema.time]
            is_time = tf.strings.regex_full_match(text, ISO_TIME)
            is_time |= cell_ops.is_number(text)
            valid &= is_time & ~cell_ops.is_missing(schema, text)
        return valid

    def _read_label(self, cell):
        """Read labels: float32 `(B,)`, and a mask of the valid ones."""
        label, schema = self._schema.label, self._schema
        if cell.dtype == tf.float32:
            return cell, tf.ones(tf.shape(cell), tf.bool)
        if label.is_number:
            number, valid = cell_ops.read(cell), True
            if cell.dtype == tf.string:
                valid = cell_ops.is_number(cell) & ~cell_ops.is_missing(schema, cell)
            if label.soft:
                valid &= (number >= 0) & (number <= 1)
                return tf.cast(number, tf.float32), valid
            return tf.cast(number >= label.threshold, tf.float32), valid
        clicked = cell_ops.is_one_of(cell, label.positive)
        if label.negative is None:
            valid = clicked | ~cell_ops.is_missing(schema, cell)
        else:
            valid = clicked | cell_ops.is_one_of(cell, label.negative)
        return tf.cast(clicked, tf.float32), valid

    def _can_be_split(self, lines):
        if not self._quoted:
            return tf.logical_not(tf.strings.regex_full_match(lines, _LINE_END))
        delimiter = rf"\x{ord(self._delimiter):02x}"
        field = rf'(?:{_QUOTED}|[^"\r\n{delimiter}]*)'
        pattern = f"{field}(?:{delimiter}{field})*"
        return tf.strings.regex_full_match(_as_latin(lines), pattern)

    def _count(self, lines):
        """Count the columns of lines that can be split."""
        if self._quoted:
            lines = tf.strings.regex_replace(_as_latin(lines), _QUOTED, "")
        return tf.strings.split(lines, self._delimiter).row_lengths()

    def _decode(self, lines, has_label, defaults):
        """Split lines into the columns of the schema.

        Args:
            lines: String tensor `(B,)`.
            has_label: bool tensor `(B,)`; `None`: all lines have a label.
            defaults: Numbers to use for empty cells, by position, in columns to read as
                numbers; other columns are strings.
        """
        last, label = self._rules.num_columns - 1, self._rules.label_position
        if has_label is not None and label in (0, last):
            parts = [self._delimiter, lines] if label == 0 else [lines, self._delimiter]
            lines = tf.where(has_label, lines, tf.strings.join(parts))
            has_label = None
        if has_label is None:
            found = self._decode_columns(lines, self._used, last + 1, defaults)
            return self._by_column(found)
        # The label is in the middle: split both kinds, with blanks for the other kind.
        full = tf.where(has_label, lines, self._delimiter * last)
        bare = tf.where(has_label, self._delimiter * (last - 1), lines)
        found = self._decode_columns(full, self._used, last + 1, defaults)
        rest = [position for position in self._used if position != label]
        moved = {p: d for p, d in defaults.items() if p != label}
        moved = {p - (p > label): d for p, d in moved.items()}
        positions = [position - (position > label) for position in rest]
        others = self._decode_columns(bare, positions, last, moved)
        for position, old in zip(rest, positions, strict=True):
            found[position] = tf.where(has_label, found[position], others[old])
        return self._by_column(found)

    def _decode_columns(self, lines, positions, num_columns, defaults):
        select = None
        if len(positions) < num_columns or not self._rules.is_exact:
            select = positions
        records = [defaults.get(position, [""]) for position in positions]
        found = tf.io.decode_csv(
            lines,
            records,
            field_delim=self._delimiter,
            use_quote_delim=self._quoted,
            select_cols=select,
        )
        return dict(zip(positions, found, strict=True))

    def _by_column(self, found):
        return {column: found[p] for column, p in self._rules.positions.items()}

    def _number_default(self, column):
        schema = self._schema
        readers = [f for f in (*schema.dense, *schema.sparse) if f.column == column]
        if schema.weight == column:
            readers.append("weight")
        readers += ["label"] * (schema.label.column == column)
        if len(readers) != 1 or schema.time == column or schema.group == column:
            return None
        if readers == ["label"]:
            return self._label_default()
        if readers == ["weight"]:
            return np.zeros(1, np.float64)
        if isinstance(readers[0], Dense) and set(schema.missing) <= {b""}:
            return self._fills[[schema.dense.index(readers[0])]]
        return None

    def _label_default(self):
        label = self._schema.label
        if label.is_number:
            return np.zeros(1, np.float64)
        if label.negative is None:
            return None
        numbers = [(t, 1.0) for t in label.positive] + [
            (t, 0.0) for t in label.negative
        ]
        is_number = all(_is_number(text, number) for text, number in numbers)
        return np.zeros(1, np.float32) if is_number else None


def _is_number(text: str, number: float) -> bool:
    return text.isdecimal() and text.isascii() and float(text) == number


def _check_others(
    lines: tf.Tensor, valid: tf.Tensor, check_rest: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Apply a check to the lines that are not yet known to be valid."""

    def look_closer():
        rest = tf.where(tf.logical_not(valid))
        checked = check_rest(tf.gather_nd(lines, rest))
        return tf.tensor_scatter_nd_update(valid, rest, checked)

    return tf.cond(tf.reduce_all(valid), lambda: valid, look_closer)


def _trim(lines):
    lines = tf.strings.regex_replace(lines, r"\A\x{FEFF}", "", replace_global=False)
    return tf.strings.regex_replace(
        lines, r"(?:\r\n|\n|\r)\z", "", replace_global=False
    )


def _as_latin(lines):
    """Return lines in which RE2 reads each byte as a character."""
    return tf.strings.unicode_transcode(lines, "ISO-8859-1", "UTF-8")
