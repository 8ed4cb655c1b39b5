"""The text format of Criteo's click logs, in TensorFlow operations.

The rules are those of `format.py`. Lines go through here once a row, so the
common case is fast: *plain* lines, which are ASCII with nothing to trim, at most 15
digits an integer and one value a field, need a single pass of a regular expression.

# B lines
"""

import numpy as np
import tensorflow as tf

from pipelines.formats.line_rules import (
    DENSE_FEATURES,
    NUM_COLUMNS,
    NUM_DENSE,
    NUM_SPARSE,
    SPARSE_FEATURES,
)

# RE2 reads UTF-8 here: a class like [^\t] does not match bytes that are not valid
# UTF-8, and only \C matches any byte.
_INTEGERS = r"(?:-?[0-9]{1,15})?(?:\t(?:-?[0-9]{1,15})?){12}"
_ONE_VALUE_EACH = r"(?:\t[\x00-\x08\x0b\x0c\x0e-\x2b\x2d-\x7f]*){26}"
_ASCII = r"(?:\t[\x00-\x08\x0b\x0c\x0e-\x7f]*){26}"
_ANY_INTEGERS = r"(?:(?:-?[0-9]+)?\t){13}\C*"
_MAX_SHOWN_BYTES = 1024
# NumPy arrays: a tensor made at import would start TensorFlow's runtime.
_DEFAULTS = [
    np.zeros(1, np.float32),
    *[np.zeros(1, np.float64)] * NUM_DENSE,
    *[[""]] * NUM_SPARSE,
]


def check(lines: tf.Tensor, labelled: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Tell which lines are rows, and which of them are plain.

    Args:
        lines: String tensor `(B,)`.
        labelled: Whether a row has 40 columns; if not, 39 columns will do.

    Returns:
        `(valid, plain)`, two bool tensors `(B,)`. Plain lines are valid.
    """
    plain = _match_label(lines, labelled, _INTEGERS + _ONE_VALUE_EACH)
    valid = plain
    for check_rest in (
        lambda rest: _match_label(rest, labelled, _INTEGERS + _ASCII),
        lambda rest: _check_any(rest, labelled),
    ):
        valid = _check_others(lines, valid, check_rest)
    return valid, plain


def require(lines: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Return the lines, or fail and show the first that is not valid."""

    def fail():
        position = tf.argmin(tf.cast(valid, tf.int32))
        line = lines[position]
        found = [
            "Not a row of a Criteo log (position in the batch, columns, text):",
            position,
            tf.size(tf.strings.split(line, "\t")),
            # An error whose text is not UTF-8 would be a UnicodeDecodeError.
            tf.strings.unicode_transcode(
                tf.strings.substr(line, 0, _MAX_SHOWN_BYTES), "UTF-8", "UTF-8"
            ),
        ]
        asserted = tf.debugging.Assert(False, found)
        with tf.control_dependencies([asserted]):
            return tf.identity(lines)

    return tf.cond(tf.reduce_all(valid), lambda: lines, fail)


def split(
    lines: tf.Tensor, plain: tf.Tensor, labelled: bool
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], tf.Tensor]:
    """Split rows into columns.

    Args:
        lines: String tensor `(B,)` of rows.
        plain: bool tensor `(B,)`, from `check`.
        labelled: As in `check`. Rows of 39 columns get the label 0.

    Returns:
        `(label, integers, fields, has_bags)`: float32 `(B,)`, float64 `(B, 13)` with
        0 for an empty field, 26 string tensors `(B,)`, and whether one of these
        fields holds a comma, bool `()`.
    """

    def look_closer():
        trimmed = _trim(lines)
        comma = tf.strings.regex_full_match(trimmed, r"\C*,\C*")
        return trimmed, tf.reduce_any(comma)

    trimmed, has_bags = tf.cond(
        tf.reduce_all(plain), lambda: (lines, tf.constant(False)), look_closer
    )
    return *_split_trimmed(trimmed, labelled), has_bags


def split_examples(
    examples: tf.Tensor,
) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
    """Split serialized `tf.Example` messages into columns, as `split` does lines.

    Args:
        examples: String tensor `(B,)`.

    Returns:
        `(integers, fields, has_bags)`, as of `split`.
    """
    ragged = {
        **{name: tf.io.RaggedFeature(tf.int64) for name in DENSE_FEATURES},
        **{name: tf.io.RaggedFeature(tf.string) for name in SPARSE_FEATURES},
    }
    # A tf.Example is a SequenceExample without lists, on the wire. The parser of these
    # is as fast, and does not put the bytes of a damaged message into its error, which
    # in Python would be a UnicodeDecodeError.
    found = tf.io.parse_sequence_example(_require_whole(examples), ragged)[0]
    integers = []
    for name in DENSE_FEATURES:
        too_many = tf.reduce_any(found[name].row_lengths() > 1)
        message = f"Feature {name} must have no value or one."
        with tf.control_dependencies([tf.debugging.Assert(~too_many, [message])]):
            column = found[name].to_tensor(0, shape=(None, 1))[:, 0]
        integers.append(tf.cast(column, tf.float64))
    fields = [
        _join(found[name], tf.size(examples, tf.int64)) for name in SPARSE_FEATURES
    ]
    return tf.stack(integers, axis=1), fields, tf.constant(True)


def _require_whole(examples):
    """Return the messages, or fail if one is cut, or no `tf.Example`.

    TensorFlow's parser takes a message that ends between two features for whole. A
    `tf.Example` has a single field, of number 1, whose length comes first: seven bits
    a byte, the lowest first, and a high bit where more follow.
    """
    head = tf.io.decode_raw(tf.strings.substr(examples, 0, 6), tf.uint8, fixed_length=6)
    head = tf.cast(tf.ensure_shape(head, (None, 6)), tf.int64)
    more = tf.cast(head[:, 1:] >= 128, tf.int64)
    # Whether each byte is still of the length: all before it said that more follow.
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
            "Not a tf.Example, or cut (position in the batch, bytes):",
            tf.reduce_sum(tf.math.cumprod(tf.cast(valid, tf.int64))),
        ],
    )
    with tf.control_dependencies([check]):
        return tf.identity(examples)


def _join(values, num_rows):
    """Fields with commas between the values; the kernel forgets those of empty ones
    where they are its separator."""
    joined = tf.strings.unsorted_segment_join(
        tf.strings.join([",", values.values]), values.value_rowids(), num_rows
    )
    length = tf.maximum(tf.strings.length(joined) - 1, 0)
    start = tf.minimum(tf.strings.length(joined), 1)
    return tf.strings.substr(joined, start, length)


def _check_others(lines, valid, check_rest):
    """Apply a check to the lines that are not known to be valid."""

    def look_closer():
        rest = tf.where(tf.logical_not(valid))
        checked = check_rest(tf.gather_nd(lines, rest))
        return tf.tensor_scatter_nd_update(valid, rest, checked)

    return tf.cond(tf.reduce_all(valid), lambda: valid, look_closer)


def _match_label(lines, labelled, pattern):
    label = "[01]\t" if labelled else "(?:[01]\t)?"
    return tf.strings.regex_full_match(lines, label + pattern)


def _check_any(lines, labelled):
    lines = _trim(lines)
    match = tf.strings.regex_full_match
    num_columns = _num_columns(lines)
    valid = tf.equal(num_columns, NUM_COLUMNS) & match(lines, "[01]\t" + _ANY_INTEGERS)
    if not labelled:
        valid |= tf.equal(num_columns, NUM_COLUMNS - 1) & match(lines, _ANY_INTEGERS)
    valid &= tf.logical_not(match(lines, r"\C*[\r\n]\C*"))
    # What is left may still have an integer that is too large for a float64.
    positions = tf.where(valid)
    _, integers, _ = _split_trimmed(tf.gather_nd(lines, positions), labelled)
    finite = tf.reduce_all(tf.math.is_finite(integers), axis=1)
    return tf.tensor_scatter_nd_update(valid, positions, finite)


def _trim(lines):
    lines = tf.strings.regex_replace(lines, r"\A\x{FEFF}", "", replace_global=False)
    return tf.strings.regex_replace(
        lines, r"(?:\r\n|\n|\r)\z", "", replace_global=False
    )


def _num_columns(lines):
    return tf.strings.split(lines, "\t").row_lengths()


def _split_trimmed(lines, labelled):
    if not labelled:
        with_label = tf.strings.join(["0\t", lines])
        lines = tf.where(tf.equal(_num_columns(lines), NUM_COLUMNS), lines, with_label)
    label, *fields = tf.io.decode_csv(
        lines, _DEFAULTS, field_delim="\t", use_quote_delim=False
    )
    return label, tf.stack(fields[:NUM_DENSE], axis=1), fields[NUM_DENSE:]
