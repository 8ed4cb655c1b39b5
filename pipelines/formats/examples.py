"""Rows as `tf.Example` messages with named columns, in TensorFlow operations.

# B messages
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.formats import cell_ops
from pipelines.formats.cell_ops import Cells
from pipelines.formats.line_rules import LARGEST, NUMBER, LineRules
from pipelines.schema import Dense, Schema
from pipelines.schema.checks import Column

_WORDS = {
    "int64": "int64, none or one",
    "float": "float, none or one",
    "one": "bytes, none or one",
    "bytes": "bytes, any number",
    "weights": "float, as many as values, or none",
}


class Examples:
    """The messages of one log.

    A message holds the cells of a line: integers as int64 and other numbers as float,
    with at most one value; categories as bytes, with any number of values in a bag.
    The weights of a bag's values are float, under the column's name plus `_weights`,
    and may be omitted. A column without a name has the name of its feature. An absent
    feature is a missing cell.

    Args:
        schema: The schema.
        edges: The learned edges of buckets, by feature.
        fills: float64 `(D,)`, the numbers to use for missing cells.
    """

    def __init__(self, schema: Schema, edges: Mapping[str, Any], fills: np.ndarray):
        self._schema, self._edges, self._fills = schema, edges, fills
        self._keys, self._kinds = _find_kinds(schema)

    def _weights_key(self, name: str) -> str:
        """Return the name of a bag's weights, which no other feature has."""
        name = f"{name}_weights"
        while name in self._keys.values():
            name += "_"
        return name

    def describe(self) -> dict[str, str]:
        """Return the type of each feature of a message, by its name."""
        types = {self._keys[column]: kind for column, kind in self._kinds.items()}
        for column in self._weighted():
            types[self._weights_key(self._keys[column])] = "weights"
        return {name: _WORDS[kind] for name, kind in types.items()}

    def split(self, examples: tf.Tensor) -> Cells:
        """Split serialized messages into cells.

        Args:
            examples: String tensor `(B,)`.

        Raises:
            tf.errors.InvalidArgumentError: If one is not a `tf.Example`, or has a
                value that would be invalid in a line.
        """
        types = {"int64": tf.int64, "float": tf.float32}
        ragged = {
            self._keys[column]: tf.io.RaggedFeature(types.get(kind, tf.string))
            for column, kind in self._kinds.items()
        }
        for column in self._weighted():
            name = self._weights_key(self._keys[column])
            ragged[name] = tf.io.RaggedFeature(tf.float32)
        # On the wire, a tf.Example is a SequenceExample without lists. The parser of
        # SequenceExamples is as fast, and leaves the bytes of a damaged message out of
        # its error, where they would cause a UnicodeDecodeError in Python.
        found = tf.io.parse_sequence_example(_require_whole(examples), ragged)[0]
        num_rows = tf.size(examples, tf.int64)
        columns = {}
        for kind in ("float", "int64", "one"):
            own = [column for column in self._kinds if self._kinds[column] == kind]
            columns |= self._read_single(own, kind, found) if own else {}
        for column, kind in self._kinds.items():
            if kind == "bytes":
                columns[column] = self._read_bags(column, found, num_rows)
        fields, is_missing = [], []
        for feature in self._schema.sparse:
            text, absent = columns[feature.column]
            if feature.buckets is not None:
                edges = self._edges.get(feature.name)
                text, absent = self._require_number(feature.column, text, absent)
                text = cell_ops.bucket_texts(feature, text, edges)
                text = tf.where(absent, "", text)
            elif set(self._schema.missing) - {b""}:
                absent |= cell_ops.is_missing(self._schema, text)
                text = tf.where(absent, "", text)
            is_own = feature.is_bag and b"" not in self._schema.missing
            fields.append(text)
            is_missing.append(absent if is_own else None)
        has_bags = tf.constant(any(f.is_bag for f in self._schema.sparse))
        return Cells(self._numbers(columns, examples), fields, is_missing, has_bags)

    def write(self, lines: Sequence[bytes], rules: LineRules) -> list[bytes]:
        """Return lines as serialized messages, without labels.

        Args:
            lines: Rows, with or without a label.
            rules: The rules of the log.

        Raises:
            ValueError: If a line has a wrong number of columns.
        """
        missing, weighted = self._schema.missing, self._weighted()
        examples = []
        for line in lines:
            message = tf.train.Example()
            cells = rules.fields(line, labelled=False)
            for column, kind in self._kinds.items():
                cell, name = cells[column], self._keys[column]
                if cell is None or cell in missing:
                    continue
                feature = message.features.feature[name]
                if kind == "int64":
                    feature.int64_list.value.append(int(cell))
                elif kind == "float":
                    feature.float_list.value.append(float(cell))
                elif kind == "one":
                    feature.bytes_list.value.append(cell)
                elif column in weighted:
                    values, weights = _split_weights(cell, weighted[column])
                    feature.bytes_list.value.extend(values)
                    feature = message.features.feature[self._weights_key(name)]
                    feature.float_list.value.extend(weights)
                else:
                    separator = self._separator(column)
                    feature.bytes_list.value.extend(cell.split(separator.encode()))
            # Deterministic bytes: otherwise hashes decide the order of the features.
            examples.append(message.SerializeToString(deterministic=True))
        return examples

    def _bags(self, column: Column) -> list:
        return [f for f in self._schema.sparse if f.column == column and f.is_bag]

    def _separator(self, column: Column) -> str:
        return self._bags(column)[0].separator

    def _weighted(self) -> dict[Column, Any]:
        """Return the columns of weighted bags, each with a feature that reads it."""
        return {
            feature.column: feature
            for feature in reversed(self._schema.sparse)
            if feature.weight_separator is not None
            and self._kinds[feature.column] == "bytes"
        }

    def _read_bags(self, column, found, num_rows):
        """Return a column of bags as strings `(B,)`, and where it is absent."""
        name = self._keys[column]
        values = found[name]
        weights = found.get(self._weights_key(name))
        if weights is not None:
            feature = self._weighted()[column]
            values = _join_weights(name, values, weights, feature)
        absent = tf.equal(values.row_lengths(), 0)
        return _join(values, self._separator(column), num_rows), absent

    def _read_single(self, columns, kind, found):
        """Return columns as numbers or strings `(B,)`, and where they are absent.

        Columns of a kind are read together: a log may have thousands, and operations
        for each would take minutes to trace.
        """
        names = [self._keys[column] for column in columns]
        values = [found[name] for name in names]
        row_splits = tf.stack([own.row_splits for own in values])
        lengths = row_splits[:, 1:] - row_splits[:, :-1]  # by column, then by row
        rule = "must have no value or one."
        with tf.control_dependencies([_require(lengths <= 1, names, rule)]):
            absent = tf.equal(lengths, 0)
        default = tf.zeros((1,), values[0].dtype)  # 0 or ""
        flat = tf.concat([*(own.values for own in values), default], axis=0)
        places = tf.cumsum(tf.reshape(lengths, [-1]), exclusive=True)
        places = tf.reshape(places, tf.shape(lengths))
        places = tf.where(absent, tf.size(flat, places.dtype) - 1, places)
        cells = tf.gather(flat, places)
        if kind != "one":
            cells = tf.cast(cells, tf.float64)
            for number in _missing_numbers(self._schema, kind):
                is_missing = tf.equal(cells, number)
                absent |= is_missing
                cells = tf.where(is_missing, tf.constant(0, tf.float64), cells)
        if kind == "float":
            cells = cell_ops.without_tiny(cells)
            with tf.control_dependencies(
                [_require(tf.math.is_finite(cells), names, "must be a finite number.")]
            ):
                cells = tf.identity(cells)
        parts = zip(
            *(tf.unstack(x, len(columns)) for x in (cells, absent)), strict=True
        )
        return dict(zip(columns, parts, strict=True))

    def _numbers(self, columns, like):
        """Return the numbers of the dense features, float64 `(B, D)`."""
        dense = self._schema.dense
        pairs = [self._require_number(f.column, *columns[f.column]) for f in dense]
        numbers = cell_ops.stack_numbers([cells for cells, _ in pairs], like)
        if self._fills.any():  # absent cells are 0
            absent = tf.stack([absent for _, absent in pairs], axis=1)
            numbers = tf.where(absent, tf.constant(self._fills), numbers)
        return numbers

    def _require_number(self, column, cells, absent):
        """Return cells as numbers; they are strings if a category reads the column."""
        if cells.dtype != tf.string:
            return cells, absent
        absent |= cell_ops.is_missing(self._schema, cells)
        is_good = absent | cell_ops.is_number(cells)
        names = [self._keys[column]]
        with tf.control_dependencies([_require(is_good, names, "must be a number.")]):
            numbers = cell_ops.read(cells)
        return tf.where(absent, tf.constant(0, tf.float64), numbers), absent


def _require(is_good: tf.Tensor, names: list[str], rule: str) -> tf.Operation:
    """Fail with the name of the first feature, of those in order, that breaks a rule.

    Args:
        is_good: bool tensor by feature, then by row; without features for one feature.
        names: The names of the features.
        rule: The rule, the end of the message.
    """
    of_feature = tf.reduce_all(tf.reshape(is_good, (len(names), -1)), axis=1)
    first = tf.argmin(tf.cast(of_feature, tf.int32))
    message = tf.strings.join(["Feature", tf.gather(names, first), rule], " ")
    return tf.debugging.Assert(tf.reduce_all(of_feature), [message])


def _find_kinds(schema: Schema) -> tuple[dict[Column, str], dict[Column, str]]:
    """Return the name in a message and the kind of each feature's column."""
    keys: dict[Column, str] = {}
    kinds: dict[Column, str] = {}
    for feature in (*schema.dense, *schema.sparse):
        column = feature.column
        is_number = isinstance(feature, Dense) or feature.buckets is not None
        own = "bytes" if not is_number and feature.is_bag else "one"
        if is_number:
            is_integer = isinstance(feature, Dense) and feature.integer
            own = "int64" if is_integer else "float"
        ranks = ("float", "int64", "one", "bytes")
        kinds[column] = max(kinds.get(column, own), own, key=ranks.index)
        name = column if isinstance(column, str) else feature.name
        keys.setdefault(column, name)
    for column in list(kinds):
        separators = {f.separator for f in schema.sparse if f.column == column}
        if kinds[column] == "bytes" and len(separators) > 1:
            kinds[column] = "one"  # unsplit, since features split it differently
    if len(set(keys.values())) < len(keys):
        keys = {column: f"{column}" for column in keys}
    return keys, kinds


def _missing_numbers(schema: Schema, kind: str) -> list[float]:
    """Return the numbers that mean "missing", such as -1."""
    pattern = re.compile(NUMBER if kind == "float" else "0|-?[1-9][0-9]{0,14}")
    texts = [text for text in schema.format.missing if pattern.fullmatch(text)]
    return [float(text) for text in texts]


def _split_weights(cell: bytes, feature: Any) -> tuple[list[bytes], list[float]]:
    mark = feature.weight_separator.encode()
    values, weights = [], []
    for piece in cell.split(feature.separator.encode()):
        value, has_weight, weight = piece.rpartition(mark)
        values.append(value if has_weight else weight)
        weights.append(float(weight) if has_weight else 1.0)
    return values, weights


def _join_weights(name, values, weights, feature):
    """Return values joined with their weights, if any, as in a line."""
    lengths, has_weights = values.row_lengths(), weights.row_lengths() > 0
    agree = tf.reduce_all(~has_weights | tf.equal(lengths, weights.row_lengths()))
    flat = weights.flat_values
    is_good = tf.reduce_all(tf.math.is_finite(flat) & (tf.abs(flat) <= LARGEST))
    rule = f"Feature {name}_weights must have a finite number for each value, or none."
    with tf.control_dependencies([tf.debugging.Assert(agree & is_good, [rule])]):
        # Nine digits after the point distinguish any two float32.
        texts = tf.strings.as_string(flat, precision=9, scientific=True)
    is_weighted = tf.gather(has_weights, values.value_rowids())
    places = tf.where(is_weighted)
    texts = tf.tensor_scatter_nd_update(
        tf.fill([tf.size(values.flat_values)], ""),
        places,
        tf.strings.join([feature.weight_separator, texts]),
    )
    return values.with_flat_values(tf.strings.join([values.flat_values, texts]))


def _join(values, separator, num_rows):
    """Join values with separators.

    The kernel would drop its own separator around empty values.
    """
    joined = tf.strings.unsorted_segment_join(
        tf.strings.join([separator, values.values]), values.value_rowids(), num_rows
    )
    width = len(separator.encode())
    length = tf.maximum(tf.strings.length(joined) - width, 0)
    start = tf.minimum(tf.strings.length(joined), width)
    return tf.strings.substr(joined, start, length)


def _require_whole(examples):
    """Return the messages; fail if one is truncated or not a `tf.Example`.

    TensorFlow's parser accepts a message that is truncated between two features. A
    `tf.Example` has a single field, number 1, that starts with its length: seven bits
    per byte, the lowest first, with the high bit set if more bytes follow.
    """
    head = tf.io.decode_raw(tf.strings.substr(examples, 0, 6), tf.uint8, fixed_length=6)
    head = tf.cast(tf.ensure_shape(head, (None, 6)), tf.int64)
    more = tf.cast(head[:, 1:] >= 128, tf.int64)
    # Bytes of the length: all bytes before them have the high bit set.
    counted = tf.math.cumprod(more, axis=1, exclusive=True)
    bits = counted * (head[:, 1:] % 128)
    length = tf.reduce_sum(
        bits * tf.constant([1 << (7 * i) for i in range(5)], tf.int64), 1
    )
    num_bytes = tf.cast(tf.strings.length(examples), tf.int64)
    whole = (head[:, 0] == 10) & (1 + tf.reduce_sum(counted, 1) + length == num_bytes)
    valid = whole | (num_bytes == 0)
    check = tf.debugging.Assert(
        tf.reduce_all(valid),
        [
            "Not a tf.Example, or truncated (position in the batch):",
            tf.reduce_sum(tf.math.cumprod(tf.cast(valid, tf.int64))),
        ],
    )
    with tf.control_dependencies([check]):
        return tf.identity(examples)
