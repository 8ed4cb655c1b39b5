"""The signatures of an exported model, which use the variables of a DLRM.

# B rows, F sparse features, L padded length, N candidates
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_dlrm.calibration import Correction, SlicedCorrection, first_ids
from tf_dlrm.model import DLRM
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime import xla
from tf_dlrm.serving.candidates import Pooled, Split
from tf_dlrm.serving.compaction import CompactTables
from tf_dlrm.serving.preprocessor import lines_signature
from tf_dlrm.serving.quantization import QuantizedTables
from tf_dlrm.serving.updates import APPLY_DELTA, Updates

Outputs = dict[str, tf.Tensor]
PROBABILITIES = "probabilities"
_SPARSE_KEYS = ("sparse_features", "sparse_weights")


class ServingModule(tf.Module):
    """The module that an export saves: the model's variables and the signatures.

    A SavedModel of the Keras model itself would contain each weight twice and lose
    raggedness.

    Args:
        model: A built `DLRM` whose embedding layer has a `lookup` that ignores ids out
            of range.
        max_hotness: Length L of the padded bags of `serving_default`.
        preprocessor: A `Preprocessor`, or `None`. Its `features(lines)` is called by
            the signature that it names, and its `features_of_examples(examples)`, if
            present, by `serving_examples`.
        candidate_features: Names of the features that differ between the items of
            `serving_candidates`; empty for no such signature.
        table_dtype: Storage format of the tables, one of
            `tf_dlrm.serving.TABLE_DTYPES`.
        calibration: Correction of the model's probabilities. Default: none.
        updatable: Whether to add the signature `apply_delta`, see `Updates`.
        compact: Whether growing tables hold only the rows of their ids.

    Attributes:
        functions: A `tf.function` for each signature, by name.
        quantized: The `QuantizedTables`, or `None` for float32 tables.
    """

    def __init__(
        self,
        model: DLRM,
        max_hotness: int,
        preprocessor: Any = None,
        candidate_features: Sequence[str] = (),
        table_dtype: str = "float32",
        calibration: Correction | SlicedCorrection | None = None,
        updatable: bool = False,
        compact: bool = False,
    ) -> None:
        super().__init__(name="tf_dlrm_serving")
        self._score = model.score
        self._lookup: Callable[..., Any] = model.embedding.lookup
        self._recalibrate = model.recalibrate
        self.calibration = calibration
        self._slice_column: int | None = None
        if isinstance(calibration, SlicedCorrection):
            self._slice_column = calibration.find_column(model.spec.sparse_features)
        self.table_dtype = table_dtype
        self.weights = weights_for_inference(model)
        tables = model.embedding.lookup_variables
        others = self.weights[len(tables) :]
        self.compact = CompactTables(model.embedding) if compact else None
        if self.compact is not None:
            others = others[: len(others) - len(model.embedding.id_variables)]
            others = [*others, self.compact.ids]
            tables = self.compact.variables_of_tables
            options: dict[str, Any] = {"find": self.compact.find}
            self._lookup = functools.partial(
                model.embedding.lookup, read=self.compact.read, **options
            )
        self.quantized = None
        if table_dtype != "float32":
            self.quantized = QuantizedTables(tables, table_dtype)
            tables = self.quantized.variables_of_tables
            self._lookup = functools.partial(self._lookup, read=self._read_quantized)
        self.weights = [*tables, *others]
        self.preprocessor = preprocessor
        self.lines_signature: str | None = None
        self.candidate_features = tuple(candidate_features)
        self.max_hotness = max_hotness
        self._num_dense = model.spec.num_dense
        self._num_sparse = model.spec.num_sparse
        self.functions = {
            "serving_default": self._make_default(),
            "serving_ragged": self._make_ragged(),
        }
        if preprocessor is not None:
            self.lines_signature = lines_signature(preprocessor)
            if self.lines_signature is not None:
                self.functions[self.lines_signature] = self._make_raw(
                    "lines", "features"
                )
            if hasattr(preprocessor, "features_of_examples"):
                self.functions["serving_examples"] = self._make_raw(
                    "examples", "features_of_examples"
                )
        if candidate_features:
            split = Split(model.spec, candidate_features)
            self.functions["serving_candidates"] = self._make_candidates(split)
        if updatable:
            num_tables = len(model.embedding.lookup_variables)
            self.updates = Updates(self.weights[:num_tables], self.weights[num_tables:])
            self.functions[APPLY_DELTA] = self.updates.function

    def _read_quantized(self, variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
        if self.quantized is None:
            raise RuntimeError("The tables are not quantized.")
        if self.compact is not None:
            rows = self.compact.places(variable, rows)
            variable = self.compact.copy_of(variable)
        return self.quantized.read(variable, rows)

    def _make_default(self) -> Callable[..., Any]:
        @_signature(
            self._dense_spec(self._num_dense), self._sparse_spec(self._num_sparse)
        )
        def serving_default(
            dense_features: tf.Tensor, sparse_features: tf.Tensor
        ) -> Outputs:
            dense, ids = _with_equal_rows(
                "`dense_features` and `sparse_features` must have the same number of "
                "rows.",
                dense_features,
                sparse_features,
            )
            pooled = self._pool(self._without_length(ids))
            return self._answer(dense, pooled, self.slice_ids(ids))

        return serving_default

    def _make_ragged(self) -> Callable[..., Any]:
        @_signature(
            self._dense_spec(self._num_dense),
            tf.TensorSpec((None,), tf.int64, "sparse_values"),
            # Flat or (B, F)
            tf.TensorSpec(None, tf.int64, "sparse_row_lengths"),
        )
        def serving_ragged(
            dense_features: tf.Tensor,
            sparse_values: tf.Tensor,
            sparse_row_lengths: tf.Tensor,
        ) -> Outputs:
            shape = tf.shape(sparse_row_lengths)
            lengths = tf.reshape(sparse_row_lengths, (-1,))
            num_rows = tf.shape(dense_features)[0]
            num_values = tf.size(sparse_values, tf.int64)
            is_flat = tf.equal(tf.size(shape), 1)
            is_matrix = tf.equal(tf.size(shape), 2) & tf.equal(
                tf.reduce_prod(shape[1:]), self._num_sparse
            )
            # Check each length too, because an overflowing sum could look right.
            fits = tf.reduce_all((lengths >= 0) & (lengths <= num_values))
            with tf.control_dependencies(
                [
                    _require(
                        (is_flat | is_matrix)
                        & (tf.size(lengths) == num_rows * self._num_sparse),
                        "`sparse_row_lengths` must have an entry for each of the "
                        f"{self._num_sparse} sparse features of each row, flat or as "
                        "(rows, features). Received shape, number of rows:",
                        shape,
                        num_rows,
                    ),
                    _require(
                        fits & (tf.reduce_sum(lengths) == num_values),
                        "`sparse_row_lengths` must not be negative and must add up to "
                        "the number of `sparse_values`. Received smallest length, sum, "
                        "number of values:",
                        tf.reduce_min(lengths),
                        tf.reduce_sum(lengths),
                        num_values,
                    ),
                ]
            ):
                bags = tf.RaggedTensor.from_row_lengths(
                    tf.identity(sparse_values), tf.identity(lengths), validate=False
                )
            ids = tf.RaggedTensor.from_uniform_row_length(
                bags, self._num_sparse, nrows=tf.cast(num_rows, tf.int64)
            )
            pooled = self._pool(ids)
            return self._answer(dense_features, pooled, self.slice_ids(ids))

        return serving_ragged

    def _make_raw(self, name: str, method: str) -> Callable[..., Any]:
        # A user's preprocessor may depend on AutoGraph.
        @_signature(tf.TensorSpec((None,), tf.string, name), autograph=True)
        def serving_raw(raw: tf.Tensor) -> Outputs:
            return self._score_features(getattr(self.preprocessor, method)(raw))

        return serving_raw

    def _make_candidates(self, split: Split) -> Callable[..., Any]:
        @_signature(
            self._dense_spec(len(split.shared_dense), 1),
            self._sparse_spec(len(split.shared_sparse), 1),
            self._dense_spec(len(split.own_dense), None, "candidate_"),
            self._sparse_spec(len(split.own_sparse), None, "candidate_"),
        )
        def serving_candidates(
            dense_features: tf.Tensor,
            sparse_features: tf.Tensor,
            candidate_dense_features: tf.Tensor,
            candidate_sparse_features: tf.Tensor,
        ) -> Outputs:
            own_dense, own_ids = _with_equal_rows(
                "`candidate_dense_features` and `candidate_sparse_features` must have "
                "a row for each candidate.",
                candidate_dense_features,
                candidate_sparse_features,
            )
            own_ids = self._without_length(own_ids)
            num_items = tf.shape(own_ids)[0]
            shared_ids = self._without_length(sparse_features)
            pooled = split.join_pooled(
                self._pool(shared_ids, split.shared_sparse),
                self._pool(own_ids, split.own_sparse),
                num_items,
            )
            dense = split.join_dense(dense_features, own_dense, num_items)
            slice_ids = self._slice_ids_of_items(
                split, sparse_features, candidate_sparse_features
            )
            return self._answer(dense, pooled, slice_ids)

        return serving_candidates

    def _dense_spec(
        self, width: int, num_rows: int | None = None, prefix: str = ""
    ) -> tf.TensorSpec:
        return tf.TensorSpec((num_rows, width), tf.float32, f"{prefix}dense_features")

    def _sparse_spec(
        self, width: int, num_rows: int | None = None, prefix: str = ""
    ) -> tf.TensorSpec:
        shape = (num_rows, width, self.max_hotness)
        return tf.TensorSpec(shape, tf.int64, f"{prefix}sparse_features")

    def _without_length(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.squeeze(ids, axis=2) if self.max_hotness == 1 else ids

    def _pool(
        self,
        ids: tf.Tensor | tf.RaggedTensor,
        columns: list[int] | None = None,
        weights: Any = None,
    ) -> Pooled:
        with xla.for_servers():
            return self._lookup(ids, weights, columns=columns)

    def predict(self, features: dict[str, Any]) -> tf.Tensor:
        """Return the probabilities `(B, 1)` of a batch before `correct`."""
        ids, weights = (features.get(k) for k in _SPARSE_KEYS)
        dense = features.get("dense_features")
        if dense is None:  # a model without dense features
            dense = tf.zeros((_num_rows(ids), 0))
        return self._probabilities(dense, self._pool(ids, weights=weights))

    def slice_ids(self, ids: Any) -> tf.Tensor | None:
        """Return the ids `(B,)` by which `correct` chooses a curve, if it does."""
        if self._slice_column is None:
            return None
        return first_ids(ids, self._slice_column)

    def correct(self, probabilities: Any, slice_ids: Any = None) -> Any:
        """Apply `calibration`, if there is one, to probabilities `(B, 1)`."""
        if self.calibration is None:
            return probabilities
        slices = () if slice_ids is None else (slice_ids,)
        return self.calibration(probabilities, *slices)

    def _slice_ids_of_items(
        self, split: Split, shared_ids: tf.Tensor, own_ids: tf.Tensor
    ) -> tf.Tensor | None:
        if self._slice_column is None:
            return None
        if self._slice_column in split.own_sparse:
            return first_ids(own_ids, split.own_sparse.index(self._slice_column))
        column = split.shared_sparse.index(self._slice_column)
        return tf.repeat(first_ids(shared_ids, column), tf.shape(own_ids)[0])

    def _score_features(self, features: dict[str, Any]) -> Outputs:
        def score() -> Outputs:
            slice_ids = self.slice_ids(features["sparse_features"])
            return {PROBABILITIES: self.correct(self.predict(features), slice_ids)}

        outputs: Outputs = tf.autograph.experimental.do_not_convert(score)()
        return outputs

    def _answer(
        self, dense: tf.Tensor, pooled: Pooled, slice_ids: tf.Tensor | None
    ) -> Outputs:
        probabilities = self._probabilities(dense, pooled)
        return {PROBABILITIES: self.correct(probabilities, slice_ids)}

    def _probabilities(self, dense: tf.Tensor, pooled: Pooled) -> tf.Tensor:
        # Treat values that are not finite like missing ones, which the parser makes 0.
        dense = tf.where(tf.math.is_finite(dense), dense, tf.zeros_like(dense))
        with xla.for_servers():
            probabilities = self._score(dense, pooled, training=False)
            probabilities = self._recalibrate(probabilities)
        return _require_numbers(probabilities)


def _num_rows(ids: Any) -> tf.Tensor:
    return ids.nrows() if isinstance(ids, tf.RaggedTensor) else tf.shape(ids)[0]


def weights_for_inference(model: DLRM) -> list[tf.Variable]:
    """Return the `tf.Variable`s that predictions use, without seeds and slots."""
    return [
        *model.embedding.lookup_variables,
        *(
            row_ops.local_variables(variable.value)[0]
            for variable in model.variables
            if not model.embedding.owns(variable)
            and "seed_generator" not in variable.path
        ),
        *model.embedding.id_variables,
    ]


def _signature(
    *specs: tf.TensorSpec, autograph: bool = False
) -> Callable[[Callable[..., Outputs]], Callable[..., Any]]:
    """Return a decorator for a `tf.function` that checks the shapes of its inputs.

    Servers do not check shapes: a single feature would be broadcast to all features,
    and extra features would be dropped.
    """

    def decorate(function: Callable[..., Outputs]) -> Callable[..., Any]:
        def checked(*inputs: tf.Tensor) -> Outputs:
            return function(
                *[tf.ensure_shape(x, spec.shape) for x, spec in zip(inputs, specs)]
            )

        checked.__name__ = function.__name__
        signature: Callable[..., Any] = tf.function(
            checked, input_signature=specs, autograph=autograph
        )
        return signature

    return decorate


def _with_equal_rows(
    message: str, first: tf.Tensor, second: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    numbers = tf.shape(first)[0], tf.shape(second)[0]
    check = _require(tf.equal(*numbers), f"{message} Received rows:", *numbers)
    with tf.control_dependencies([check]):
        return tf.identity(first), tf.identity(second)


def _require_numbers(probabilities: tf.Tensor) -> tf.Tensor:
    num_nans = tf.math.count_nonzero(tf.math.is_nan(probabilities), dtype=tf.int32)
    check = _require(
        tf.equal(num_nans, 0),
        "The dense features are so large that the model's sums overflow. Number of "
        "such rows:",
        num_nans,
    )
    with tf.control_dependencies([check]):
        return tf.identity(probabilities)


def _require(condition: tf.Tensor, message: str, *values: tf.Tensor) -> Any:
    """Return an assertion that fails with INVALID_ARGUMENT and the values."""
    return tf.debugging.Assert(condition, [message, *values])
