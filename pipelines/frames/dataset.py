"""Read a data frame as a `tf.data.Dataset` of (features, label), with exact ids.

The columns are raw and read by a parser, or they are the inputs of the model.

# N rows, F sparse features, B rows of a batch
"""

from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.formats.frame_rows import is_frame
from pipelines.formats.parser import Parser
from pipelines.frames.raw_columns import DEFAULT_LABEL, encode_frame, has_targets
from pipelines.frames.series import (
    NO_ID,
    read_ids,
    read_labels,
    read_numbers,
    read_weights,
)
from pipelines.records.batch import interleave, row_splits
from tf_dlrm import FeatureSpec


def from_dataframe(
    frame: Any,
    spec: FeatureSpec | Parser,
    label: str | int | None = DEFAULT_LABEL,
    batch_size: int = 2048,
    shuffle: bool = False,
    seed: int | None = None,
    *,
    weight: str | int | None = None,
) -> tf.data.Dataset:
    """Return batches of a pandas or polars data frame.

    With a `Parser`, the frame contains the raw columns of its schema, and the batches
    equal, bit for bit, those of `pipelines.read` on the Parquet file written from the
    frame. Integers with missing values, which pandas stores as floats, become the
    categories "1", "2"; booleans become "True" and "False"; lists become bags of a
    feature with a `separator`; NaN, None and NA are missing values. (A CSV file written
    from the frame would contain "1.0" instead, and float32 numbers with fewer digits.)
    The index is not a column. A cell that is not valid raises an error: no row is left
    out.

    With a `FeatureSpec`, the frame contains the inputs of the model: transformed dense
    columns and integer ids. `model.fit(frame)` would convert all columns to one float32
    matrix, which silently changes ids above 2^24; here they stay exact.

    Args:
        frame: A pandas or polars `DataFrame` with the columns of the parser's schema,
            by name or by position; or with a column for each name in `spec.dense` and
            `spec.sparse_features`. Other columns are ignored. With a `FeatureSpec`, a
            cell of a sparse column is an integer or a sequence of integers (a multi-hot
            bag). A missing value (NaN, None, NA) becomes -1 in the one-hot form and an
            empty bag in the ragged form. Float columns are accepted if all their values
            are integers, as in pandas for integers with missing values.
        spec: A parser, or the features of the model.
        label: Name of the label column: 0 or 1, or probabilities in between. `None`:
            only features, for `predict`. With a parser, label and weights are those of
            its schema.
        batch_size: Rows in a batch; the last one may have fewer.
        shuffle: Whether to shuffle all rows, differently in each epoch.
        seed: Seed of the shuffle; an integer makes the order repeatable.
        weight: Name of a column of nonnegative sample weights. Default: 1 for each row;
            with a parser, the weights of the schema.

    Returns:
        A `tf.data.Dataset` of `(features, label)`, of `features`, or with `weight` of
        `(features, label, sample_weight)`.
        `features["dense_features"]` is float32 `(B, num_dense)`;
        `features["sparse_features"]` is int64 `(B, num_sparse)` if no cell is a
        sequence, otherwise an int64 ragged tensor `(B, num_sparse, None)`; `label` and
        `sample_weight` are float32 `(B,)`. With a parser, features are those that the
        parser returns: always ragged, with `sparse_weights` if values have weights.

    Raises:
        TypeError: If `frame` is not a data frame, or a column is not numeric.
        ValueError: If a column is missing or repeated; a dense value, label or weight
            is missing or not finite; a label is not from 0 to 1; a weight is negative;
            an id is not an integer or not in the table; or the frame has no rows. With
            a parser, if a cell is not valid for the schema, a column contains cells of
            several types, or `label` or `weight` differs from the schema. The message
            names column and row.

    Example:

    >>> import pandas, pipelines.frames, tf_dlrm.features
    >>> spec = tf_dlrm.features.FeatureSpec(
    ...     dense=["age"], tables=[tf_dlrm.features.EmbeddingTable("item", 100, 8)])
    >>> frame = pandas.DataFrame(
    ...     {"age": [0.2, 0.7], "item": [3, None], "label": [0, 1]})
    >>> features, label = next(iter(pipelines.frames.from_dataframe(frame, spec)))
    >>> features["sparse_features"].numpy().tolist()
    [[3], [-1]]

    Raw columns, without a vocabulary made by hand:

    >>> import pipelines
    >>> logs = pandas.DataFrame({"item": ["a", "b", None], "click": [1, 0, 1]})
    >>> schema = pipelines.Schema("click", sparse="item")
    >>> vocabulary = pipelines.Vocabulary.build(logs, schema=schema, min_count=1)
    >>> parser = pipelines.Parser(vocabulary)
    >>> features, label = next(iter(pipelines.from_dataframe(logs, parser)))
    >>> features["sparse_features"].to_list(), label.numpy().tolist()
    ([[[1]], [[2]], [[0]]], [1.0, 0.0, 1.0])
    """
    if isinstance(batch_size, bool) or int(batch_size) != batch_size or batch_size < 1:
        raise ValueError(
            "`batch_size` must be a positive integer. "
            f"Received: batch_size={batch_size!r}"
        )
    if weight is not None and label is None:
        raise ValueError(
            f"`weight` needs a `label`. Received: weight={weight!r}, label=None"
        )
    if not is_frame(frame):
        raise TypeError(
            "`frame` must be a pandas or polars DataFrame. "
            f"Received: {type(frame).__module__}.{type(frame).__name__}"
        )
    if isinstance(spec, Parser):
        columns = _take_raw(frame, spec, label, weight)
    else:
        columns = _take_numbers(frame, spec, label, weight)
    take, take_targets, expand = columns

    @tf.autograph.experimental.do_not_convert
    def make_batch(rows):
        features = {name: function(rows) for name, function in take.items()}
        features = expand(features)
        if not take_targets:
            return features
        return (features, *(function(rows) for function in take_targets))

    num_rows = len(frame)
    rows = tf.data.Dataset.range(num_rows)
    if shuffle:
        rows = rows.shuffle(num_rows, seed=seed)
    batches = rows.batch(batch_size).map(make_batch, tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def _take_raw(frame, parser, label, weight):
    """Return functions from rows `(B,)` to features and targets, for raw columns."""
    schema = parser.schema
    labelled = has_targets(schema, label, weight)
    batch = encode_frame(frame, parser.vocabulary, labelled)
    num_sparse = len(schema.sparse)
    lengths = np.ones(len(batch.labels) * num_sparse, np.int64)
    splits = row_splits(lengths if batch.lengths is None else batch.lengths)
    take = {"dense_features": _make_take(batch.dense)} if schema.dense else {}
    ids = batch.ids.reshape(-1)
    take["sparse_features"] = _make_take_bags(ids, splits, num_sparse, tf.int64)
    if batch.id_weights is not None:
        take["sparse_weights"] = _make_take_bags(
            batch.id_weights, splits, num_sparse, tf.float32
        )
    targets = []
    if labelled:
        targets.append(_make_take(batch.labels.astype(np.float32)))
        if batch.weights is not None:
            targets.append(_make_take(batch.weights))
    return take, targets, parser.expand


def _take_numbers(frame, spec, label, weight):
    """Return functions from rows `(B,)` to features and targets, for model inputs."""
    targets = [name for name in (label, weight) if name is not None]
    _check_columns(frame, [*spec.dense, *spec.sparse_features, *targets])
    dense = np.empty((len(frame), spec.num_dense), np.float32)
    for position, name in enumerate(spec.dense):
        dense[:, position] = read_numbers(frame[name], name)
    take = {"dense_features": _make_take(dense)}
    take["sparse_features"] = _make_take_ids(frame, spec)
    take_targets = []
    if label is not None:
        take_targets.append(_make_take(read_labels(frame[label], label)))
    if weight is not None:
        take_targets.append(_make_take(read_weights(frame[weight], weight)))
    return take, take_targets, lambda features: features


def _check_columns(frame, wanted):
    columns = list(frame.columns)
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ValueError(
            f"The frame lacks the columns {missing}; it has {columns[:50]}. It must "
            "have the columns of `spec.dense`, `spec.sparse_features`, `label` and "
            "`weight`."
        )
    repeated = [name for name in wanted if columns.count(name) > 1]
    if repeated:
        raise ValueError(f"The frame has several columns named {repeated}.")
    if not len(frame):
        raise ValueError("The frame has no rows.")


def _make_take(array):
    tensor = tf.constant(array)
    return lambda rows: tf.gather(tensor, rows)


def _make_take_ids(frame, spec):
    """Return the function from rows `(B,)` to ids."""
    columns = []
    sizes = {
        name: table.vocabulary_size if table.growing is None else 1 << 63
        for table in spec.tables
        for name in table.features
    }
    for name in spec.sparse_features:
        columns.append(read_ids(frame[name], name, sizes[name]))
    if all(lengths is None for _, lengths in columns):
        return _make_take(np.stack([ids for ids, _ in columns], axis=1))
    counts = [
        (ids != NO_ID).astype(np.int64) if lengths is None else lengths
        for ids, lengths in columns
    ]
    present = [ids[ids != NO_ID] for ids, _ in columns]
    values, lengths, _ = interleave(present, counts, dtype=np.int64)
    return _make_take_bags(values, row_splits(lengths), len(columns), tf.int64)


def _make_take_bags(values, splits, num_sparse, dtype):
    """Return the function from rows `(B,)` to their bags `(B, num_sparse, None)`."""
    bags = tf.RaggedTensor.from_row_splits(values, splits, validate=False)

    def take(rows):
        # Gather bags as rows of a plain ragged tensor: `tf.gather` of the ragged tensor
        # of rows would lose its uniform row length.
        positions = rows[:, tf.newaxis] * num_sparse + tf.range(
            num_sparse, dtype=tf.int64
        )
        return tf.RaggedTensor.from_uniform_row_length(
            tf.cast(tf.gather(bags, tf.reshape(positions, [-1])), dtype),
            num_sparse,
            nrows=tf.size(rows, tf.int64),
        )

    return take
