"""Conversion of every accepted form of a batch of features into one `Batch`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding.bags import to_signed
from tf_dlrm.features import FeatureSpec
from tf_dlrm.runtime import deferred_checks

PACKED_KEYS = ("dense_features", "sparse_features", "sparse_weights")


class Batch(NamedTuple):
    """A batch of features in one standard form.

    Attributes:
        dense: float32 `(B, num_dense)`.
        ids: int32/int64 `(B, num_sparse)`, `(B, num_sparse, L)` padded with -1, or
            ragged `(B, num_sparse, None)`.
        weights: float32 shaped as `ids`, or `None`.
    """

    dense: tf.Tensor
    ids: Any
    weights: Any


def standardize_features(features: Mapping[str, Any], spec: FeatureSpec) -> Batch:
    """Convert a dict of features into a `Batch`.

    Args:
        features: `{"dense_features", "sparse_features"[, "sparse_weights"]}`, or a
            dict with one entry for each feature of the spec: dense ones `(B,)` or
            `(B, 1)`, ids `(B,)`, `(B, 1)`, `(B, L)` padded with -1, or ragged
            `(B, None)`. This second form ignores other entries.
        spec: The columns of the model.

    Raises:
        TypeError: If `features` is not a dict, or if ids are not integers.
        ValueError: If entries are missing or have the wrong shape.
    """
    refuse_frame(features)
    if not isinstance(features, dict):
        raise TypeError(
            "Features must be a dict with 'dense_features' and 'sparse_features', or "
            "one entry for each feature (pipelines.from_dataframe makes them from a "
            f"DataFrame). Received: {type(features).__name__}"
        )
    if any(key in features for key in PACKED_KEYS):
        batch = _from_packed(features, spec)
    else:
        batch = _from_columns(features, spec)
    shape = batch.dense.shape
    if shape.rank != 2 or shape[1] not in (spec.num_dense, None):
        raise ValueError(
            f"'dense_features' must be (batch, {spec.num_dense}). Received shape: "
            f"{shape}"
        )
    return batch


def _from_packed(features: Mapping[str, Any], spec: FeatureSpec) -> Batch:
    unknown = sorted(set(features) - set(PACKED_KEYS))
    needed = PACKED_KEYS[:2] if spec.num_dense else PACKED_KEYS[1:2]
    missing = sorted(set(needed) - set(features))
    if unknown or missing:
        raise ValueError(
            f"Features in packed form have the keys {PACKED_KEYS} (the last is "
            f"optional). Missing: {missing}, unknown: {unknown}"
        )
    dense = features.get("dense_features")
    if dense is None:
        dense = _no_dense(features["sparse_features"])
    dense = tf.cast(tf.convert_to_tensor(dense), tf.float32)
    if dense.shape.rank is None:
        dense = tf.ensure_shape(dense, (None, spec.num_dense))
    ids, weights = (features.get(key) for key in PACKED_KEYS[1:])
    if isinstance(ids, tf.SparseTensor):  # weights have the same indices
        ids = tf.sparse.to_dense(ids, default_value=-1)
        if isinstance(weights, tf.SparseTensor):
            weights = tf.sparse.to_dense(weights)
    return Batch(dense, _refuse_lists("'sparse_features'", ids), weights)


def without_lists(features: Any) -> Any:
    """Return features with lists converted to arrays: Keras models refuse lists.

    Raises:
        ValueError: If a list holds lists of different lengths.
    """
    if not isinstance(features, dict):
        return features
    return {name: _refuse_lists(f"{name!r}", v) for name, v in features.items()}


def _refuse_lists(name: str, ids: Any) -> Any:
    """Return ids unchanged, or a list as an array; refuse a list of uneven lists."""
    if isinstance(ids, (list, tuple)):
        try:
            return np.array(ids)
        except ValueError:
            raise ValueError(
                f"{name} holds lists of different lengths. Convert them to a ragged "
                "tensor, tf.ragged.constant(ids), or pad them with -1."
            ) from None
    return ids


def _from_columns(features: Mapping[str, Any], spec: FeatureSpec) -> Batch:
    missing = [n for n in (*spec.dense, *spec.sparse_features) if n not in features]
    if missing:
        raise ValueError(
            f"Features are missing: {', '.join(missing)}. Received: "
            f"{', '.join(map(str, features))}"
        )
    dense = []
    for name in spec.dense:
        column = tf.cast(_with_rank(features[name]), tf.float32)
        if column.shape.rank not in (1, 2) or column.shape[1:] not in ([], [1], [None]):
            raise ValueError(
                f"Dense feature '{name}' must be (batch,) or (batch, 1). Received "
                f"shape: {column.shape}"
            )
        dense.append(tf.reshape(column, (tf.shape(column)[0],)))
    ids = [_bag_column(name, features[name]) for name in spec.sparse_features]
    ids = _stack_bags(ids)
    return Batch(tf.stack(dense, axis=1) if dense else _no_dense(ids), ids, None)


def _no_dense(ids: Any) -> tf.Tensor:
    """Return dense features `(B, 0)` for a batch of ids in any form."""
    if isinstance(ids, tf.RaggedTensor):
        num_rows = tf.cast(ids.nrows(), tf.int32)
    elif isinstance(ids, tf.SparseTensor):
        num_rows = tf.cast(ids.dense_shape[0], tf.int32)
    else:
        num_rows = tf.shape(ids)[0]
    return tf.zeros((num_rows, 0))


def _with_rank(column: Any) -> tf.Tensor:
    """Return a column as a tensor of known rank.

    When Keras shuffles a pandas Series, the static shape is lost.
    """
    column = tf.convert_to_tensor(column)
    if column.shape.rank is None:
        column = tf.reshape(column, (tf.shape(column)[0], -1))
        column = tf.ensure_shape(column, (None, None))
    return column


def _bag_column(name: str, column: Any) -> tf.Tensor | tf.RaggedTensor:
    """Return one feature's ids as `(B, L)` or ragged `(B, None)`."""
    column = _refuse_lists(f"Sparse feature '{name}'", column)
    if isinstance(column, tf.SparseTensor):  # as tf.io.VarLenFeature parses them
        column = tf.RaggedTensor.from_value_rowids(
            column.values, column.indices[:, 0], nrows=column.dense_shape[0]
        )
    if isinstance(column, tf.RaggedTensor):
        if column.ragged_rank != 1 or column.flat_values.shape.rank != 1:
            raise ValueError(
                f"Sparse feature '{name}' must be ragged (batch, None). Received "
                f"shape: {column.shape}"
            )
        return column.with_row_splits_dtype(tf.int64)
    column = _with_rank(column)
    if column.shape.rank == 1:
        column = column[:, None]
    if column.shape.rank != 2:
        raise ValueError(
            f"Sparse feature '{name}' must be (batch,), (batch, 1), (batch, length) "
            f"or ragged (batch, None). Received shape: {column.shape}"
        )
    return column


def _stack_bags(columns: list) -> tf.Tensor | tf.RaggedTensor:
    """Stack F features: `(B, F)`, `(B, F, L)` or ragged `(B, F, None)`."""
    wrong = {column.dtype.name for column in columns if not column.dtype.is_integer}
    if wrong:
        raise TypeError(
            "Ids must be int32 or int64 (float32 silently changes ids above 2^24; "
            f"strings need a vocabulary). Received: {', '.join(sorted(wrong))}"
        )
    columns = [tf.cast(to_signed(column), tf.int64) for column in columns]
    if any(isinstance(column, tf.RaggedTensor) for column in columns):
        # In dense columns next to ragged ones, -1 is padding, not an id.
        columns = [
            c
            if isinstance(c, tf.RaggedTensor)
            else tf.ragged.boolean_mask(c, tf.not_equal(c, -1))
            for c in columns
        ]
        bags = tf.ragged.stack(columns, axis=1).values
        return tf.RaggedTensor.from_uniform_row_length(
            bags, len(columns), nrows=columns[0].nrows()
        )
    lengths = [column.shape[1] for column in columns]
    if all(length == 1 for length in lengths):
        return tf.concat(columns, axis=1)
    longest = tf.reduce_max([tf.shape(column)[1] for column in columns])
    padded = [
        tf.pad(c, ((0, 0), (0, longest - tf.shape(c)[1])), constant_values=-1)
        for c in columns
    ]
    return tf.stack(padded, axis=1)


def refuse_frame(x: Any) -> None:
    """Refuse a DataFrame, which Keras would convert to one float32 matrix.

    Raises:
        TypeError: If `x` is a DataFrame; the message says what to pass instead.
    """
    if type(x).__name__ in ("DataFrame", "LazyFrame"):
        raise TypeError(
            "Keras would convert a DataFrame to one float32 matrix, which changes ids "
            "above 2^24. Use pipelines.from_dataframe(frame, model.spec), or pass a "
            "dict of its columns as arrays: {name: frame[name].to_numpy() for name in "
            "(*model.spec.dense, *model.spec.sparse_features)}."
        )


def check_arrays(x: Any, y: Any = None, spec: FeatureSpec | None = None) -> None:
    """Refuse columns that Keras' `fit` does not accept, or would change.

    Args:
        x: The features.
        y: The labels, or `None`.
        spec: The columns of the model. Keras would convert float64 ids to float32.

    Raises:
        TypeError: For such a column; the message says what to pass instead.
        ValueError: If a column has no batch dimension.
    """
    refuse_frame(x)
    if y is not None:
        _check_one_label(y)
    columns = dict(x) if isinstance(x, dict) else {}
    of_ids = () if spec is None else ("sparse_features", *spec.sparse_features)
    for name, column in columns.items():
        _check_rows(name, column)
        kind = getattr(getattr(column, "dtype", None), "kind", None)
        if name in of_ids and kind in ("b", "f", "c"):
            raise TypeError(
                f"{name!r} must hold integer ids. Received: dtype {column.dtype}. "
                "Convert them with `.astype('int64')`, missing ids to -1, or use "
                "pipelines.from_dataframe."
            )
    for name, column in [*columns.items(), ("the labels", y)]:
        library = type(column).__module__.partition(".")[0]
        data_type = getattr(column, "dtype", None)
        if isinstance(data_type, np.dtype) and data_type.kind in "OSUMm":
            raise TypeError(
                f"{name!r} must hold numbers (strings need a vocabulary, see "
                "pipelines.from_dataframe; convert numbers stored as objects with "
                f"column.astype). Received: dtype {data_type}"
            )
        if library == "polars" or (
            library == "pandas" and not isinstance(data_type, np.dtype | None)
        ):
            raise TypeError(
                f"{name!r} has the {library} type {data_type}, which Keras does not "
                "accept. Pass an array, column.to_numpy() (missing ids as -1: "
                "column.fillna(-1).to_numpy()), or use pipelines.from_dataframe."
            )


def _check_rows(name, column):
    shape = getattr(column, "shape", None)
    if shape is None:
        raise TypeError(
            f"{name!r} must be an array with one entry for each row. Received: "
            f"{type(column).__name__}"
        )
    if len(shape) < (2 if name in PACKED_KEYS else 1):
        raise ValueError(
            f"{name!r} has no batch dimension. For one row, add it: array[None]. "
            f"Received shape: {tuple(shape)}"
        )


def _check_one_label(y):
    shape = getattr(y, "shape", None)
    if isinstance(y, (dict, list, tuple)):
        received = f"{type(y).__name__} of {len(y)}"
    elif isinstance(y, (tf.SparseTensor, tf.RaggedTensor)) or shape == ():
        received = f"{type(y).__name__} of shape {shape}"
    else:
        return
    raise TypeError(
        "The label must be one array (batch,) or (batch, 1): the model has one "
        f"output, the click probability. Received: {received}"
    )


def standardize_labels(y: Any, are_probabilities: bool = False) -> tf.Tensor:
    """Return labels as float32 `(B, 1)`, the shape of the predictions.

    When the shapes are equal, Keras does not reshape the predictions and can recover
    the logit for a stable loss.

    Args:
        y: The labels.
        are_probabilities: Whether to refuse labels outside `[0, 1]`.

    Raises:
        ValueError: If there are no labels, or their shape is wrong.
        TypeError: If there are several arrays.
        tf.errors.InvalidArgumentError: If a label lies outside `[0, 1]`. Deferred
            checks raise it when they are read.
    """
    if y is None:
        raise ValueError("Labels are needed: data must be (features, label).")
    _check_one_label(y)
    y = tf.convert_to_tensor(y)
    if y.shape.rank is not None and (
        y.shape.rank not in (1, 2) or y.shape[1:] not in ([], [1], [None])
    ):
        raise ValueError(
            f"Labels must be (batch,) or (batch, 1). Received shape: {y.shape}"
        )
    y = tf.reshape(tf.cast(y, tf.float32), (tf.shape(y)[0], 1))
    if not are_probabilities:
        return y
    # The guard handles labels that are not finite.
    is_bad = tf.logical_or(y < 0.0, y > 1.0) & tf.math.is_finite(y)
    return _checked("Labels must lie in [0, 1]", y, is_bad)


def standardize_targets(
    y: Any, sample_weight: Any, is_cross_entropy: bool
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Return labels as float32 `(B, 1)`, and sample weights or `None`.

    Args:
        y: The labels, see `standardize_labels`.
        sample_weight: Weights of the rows, or `None`.
        is_cross_entropy: Whether the loss is binary cross-entropy. Labels must then lie
            in `[0, 1]`, and weights must not be negative: otherwise the loss has no
            minimum and falls without limit.

    Raises:
        ValueError: If there are no labels, or their shape is wrong.
        TypeError: If there are several arrays.
        tf.errors.InvalidArgumentError: If a label or weight is out of range. Deferred
            checks raise it when they are read.
    """
    y = standardize_labels(y, is_cross_entropy)
    if sample_weight is None or not is_cross_entropy:
        return y, sample_weight
    weights = tf.cast(sample_weight, tf.float32)
    is_bad = weights < 0.0
    return y, _checked("Sample weights must not be negative", weights, is_bad)


def _checked(rule: str, values: tf.Tensor, is_bad: tf.Tensor) -> tf.Tensor:
    """Return values, after a check that raises an error with one where `is_bad`."""
    message = f"{rule} for binary cross-entropy. Received one of:"
    largest = tf.reduce_max(tf.where(is_bad, values, 0.0))
    smallest = tf.reduce_min(tf.where(is_bad, values, 0.0))
    worst = tf.where(largest > -smallest, largest, smallest)
    bad = tf.reduce_any(is_bad)
    checks = deferred_checks.current()
    if checks is not None:

        def describe(details):
            text = f"{message} {details[0]:g}"
            return tf.errors.InvalidArgumentError(None, None, text)

        checks.note(rule, bad, worst[None], describe)
        return values
    check = tf.debugging.Assert(tf.logical_not(bad), [message, worst])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(values)
