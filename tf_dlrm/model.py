"""`DLRM`, the model of Naumov et al. 2019, arXiv 1906.00091."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tf_dlrm import calibration, summary
from tf_dlrm.embedding import EmbeddingLayer
from tf_dlrm.features import FeatureSpec
from tf_dlrm.inputs import Batch, standardize_features, without_lists
from tf_dlrm.layers import MLP, Scorer
from tf_dlrm.layers.construction import (
    DEFAULT_BOTTOM_MLP_DIMS,
    make_bottom_mlp,
    make_embedding,
    make_feature_mlps,
    make_interaction,
    make_top_mlp,
)
from tf_dlrm.layers.mlp import build as build_layer
from tf_dlrm.runtime import disk
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import PathLike, Shape
from tf_dlrm.training import keras_hooks, loops
from tf_dlrm.training.row_sparse_model import RowSparseModel
from tf_dlrm.training.weights_file import WeightsFile


@keras.saving.register_keras_serializable(package="tf_dlrm")
class DLRM(RowSparseModel):
    """Deep learning recommendation model, which predicts click probabilities.

    The bottom MLP maps the dense features to a vector. Each sparse feature is looked up
    and pooled to a vector of the same width. The interaction computes the dot products
    of all pairs of vectors, and the top MLP maps them to one logit:

    `p = sigmoid(top(interaction(bottom(dense), embedding(ids))))`

    The constructor builds the model, including all weights.

    Args:
        spec: The `FeatureSpec`: dense features and tables.
        bottom_mlp_dims: Dims of the bottom MLP, with ReLU after each layer, or an
            `MLP`. For dot interaction, the last dim must equal the tables' embedding
            dim. A model without dense features has no bottom MLP: omit the argument or
            pass `None`.
        top_mlp_dims: Dims of the top MLP, with ReLU between layers and a linear last
            layer of dim 1, or an `MLP`.
        interaction: `"dot"`, `"cat"`, `"cross"` (DCN-v2, 3 full layers), or a layer
            that is called with the list `[dense vector (B, D), pooled (B, F, D)]`
            and returns `(B, n)`.
        self_interaction: Whether `"dot"` includes each vector's product with itself.
        embedding: A `tf_dlrm.layers.EmbeddingLayer`. Default:
            `EmbeddingCollection(spec.tables)`.
        feature_mlp_dims: Dims of MLPs between the pooled embeddings and the
            interaction, with ReLU after each layer: one sequence for all features, or
            a dict that maps feature names to dims or an `MLP`. They let tables of
            different widths share one dot interaction.
        negative_sampling_rate: Share w of the rows without a click that the training
            data contain. Below 1, predictions outside training (`evaluate`, `predict`,
            exports) are corrected for it: `p / (p + (1 - p) / w)`. Evaluate such a
            model on data that are not sampled.

    Call arguments:
        features: Dict, in one of the forms of `tf_dlrm.inputs.standardize_features`:
            `{"dense_features": (B, num_dense), "sparse_features": (B, num_sparse)}`
            with ids one-hot, padded with -1 to `(B, num_sparse, L)`, or ragged; or
            one entry for each feature.
        training: Whether dropout and batch statistics are active. If so, the
            probabilities are not corrected for `negative_sampling_rate`.

    Returns:
        float32 `(B, 1)` click probabilities.

    Raises:
        ValueError: If the dims do not match each other or the spec; the message names
            the argument.
        TypeError: If `embedding` is not an `EmbeddingLayer`.

    Example:

    >>> import numpy as np, tf_dlrm
    >>> spec = tf_dlrm.FeatureSpec.criteo([100] * 26, embedding_dim=8)
    >>> model = tf_dlrm.DLRM(spec, bottom_mlp_dims=(32, 8), top_mlp_dims=(32, 1))
    >>> model.compile("adagrad", "binary_crossentropy")
    >>> features = {"dense_features": np.zeros((4, 13), "float32"),
    ...             "sparse_features": np.zeros((4, 26), "int64")}
    >>> model.predict(features, verbose=0).shape
    (4, 1)

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 2 and figure 1. The correction for
        negative sampling is described in `tf_dlrm.calibration`.
    """

    built: bool

    def __init__(
        self,
        spec: FeatureSpec,
        bottom_mlp_dims: Sequence[int] | MLP | None = DEFAULT_BOTTOM_MLP_DIMS,
        top_mlp_dims: Sequence[int] | MLP = (512, 256, 1),
        interaction: str | keras.layers.Layer = "dot",
        self_interaction: bool = False,
        embedding: EmbeddingLayer | None = None,
        feature_mlp_dims: Sequence[int]
        | Mapping[str, Sequence[int] | MLP]
        | None = None,
        negative_sampling_rate: float = 1.0,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("autocast", False)  # ids and float32 features stay exact
        super().__init__(**kwargs)
        self.spec = spec
        self.negative_sampling_rate = calibration.check_rate(negative_sampling_rate)
        policy = self.dtype_policy
        self.bottom_mlp = make_bottom_mlp(bottom_mlp_dims, spec, policy)
        self.embedding = make_embedding(embedding, spec)
        self.feature_mlps = make_feature_mlps(feature_mlp_dims, spec, policy)
        # tf.train.Checkpoint does not track the contents of Keras' dicts.
        self._checkpointed = tf.Module()
        self._checkpointed.feature_mlps = dict(self.feature_mlps)
        has_dense = spec.num_dense > 0
        num_vectors = has_dense + spec.num_sparse
        self.interaction = make_interaction(
            interaction, self_interaction, has_dense, num_vectors, policy
        )
        self.top_mlp = make_top_mlp(top_mlp_dims, policy)
        # Hidden from Keras' tracking: its parts are already tracked, and saved, as
        # layers of the model itself.
        self.__dict__["_scorer"] = Scorer(
            self.bottom_mlp,
            self.interaction,
            self.top_mlp,
            spec.num_dense,
            {f: t.embedding_dim for t in spec.tables for f in t.features},
            dict(self.feature_mlps),
            dtype=policy,
            name="scorer",
        )
        self.build()

    def __call__(self, features: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the model, after converting lists in a dict of features to arrays."""
        # Not super(): AutoGraph would then keep the locals of all callers alive.
        return keras.Model.__call__(self, without_lists(features), *args, **kwargs)

    # The model, as in the paper's figure 1

    def call(
        self, features: Mapping[str, Any], training: bool | None = None
    ) -> tf.Tensor:
        """Return click probabilities, float32 `(B, 1)`."""
        with self.xla_settings():
            batch = self.standardize(features)
            pooled = self.embedding(batch.ids, weights=batch.weights)
            # A batch with an id out of range must change nothing, not even statistics.
            waits = training and self.non_trainable_variables
            with tf.control_dependencies(tf.nest.flatten(pooled) if waits else []):
                probabilities = self.score(batch.dense, pooled, bool(training))
            return probabilities if training else self.recalibrate(probabilities)

    _own_call = call  # `compile` compares a subclass's `call` with it

    def score(
        self,
        dense: tf.Tensor,
        pooled: tf.Tensor | Sequence[tf.Tensor],
        training: bool = False,
    ) -> tf.Tensor:
        """Return click probabilities from dense features and pooled embeddings.

        Args:
            dense: float32 `(B, num_dense)`.
            pooled: The vectors that the embedding layer returned: `(B, F, D)`, or a
                list of F tensors `(B, width)`.
            training: Whether dropout and batch statistics are active.

        Returns:
            float32 `(B, 1)`.
        """
        return self._scorer(dense, pooled, training=training)

    def score_vectors(
        self, bottom: tf.Tensor | None, pooled: tf.Tensor | Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """Return click probabilities, as `score`, from the output of the bottom MLP.

        Args:
            bottom: The output `(B, D)`, or `None` without dense features.
            pooled: As in `score`.
        """
        return self._scorer.score_vectors(bottom, pooled)

    def recalibrate(self, probabilities: tf.Tensor) -> tf.Tensor:
        """Correct the probabilities from `score` for `negative_sampling_rate`."""
        return calibration.recalibrate(probabilities, self.negative_sampling_rate)

    def standardize(self, features: Mapping[str, Any]) -> Batch:
        """Convert features in any accepted form into a `Batch`."""
        return standardize_features(features, self.spec)

    def build(self, input_shape: Shape | None = None) -> None:
        """Create all weights; no input shape is needed."""
        if self.built:
            return
        build_layer(self.embedding, None)
        self._scorer.build_parts()
        self.built = True

    # Summary and saving

    def summary(
        self,
        line_length: int | None = None,
        positions: Sequence[float] | None = None,
        print_fn: Callable[[str], Any] | None = None,
        expand_nested: bool = False,
        show_trainable: bool = False,
        layer_range: Sequence[str] | None = None,
    ) -> None:
        """Print the tables with their bytes, the MLPs, and parameters by part.

        The other options of `keras.Model.summary` are accepted and ignored.

        Args:
            line_length: Width of the text in characters; default: 80.
            positions: Ignored.
            print_fn: Function that is called with each line; default: `print`.
            expand_nested: Ignored.
            show_trainable: Ignored.
            layer_range: Ignored.
        """
        for line in summary.lines(self, width=line_length or 80):
            (print_fn or print)(line)

    # Weights by logical table, wherever the tables are stored

    def get_weights(self) -> list[np.ndarray]:
        """Return copies of all weights: first the dense layers, then the tables.

        Each table has the shape `(vocabulary_size, embedding_dim)`, even if it is
        sharded. `EarlyStopping(restore_best_weights=True)` therefore restores the
        tables on any number of devices; its copy of the tables takes as much memory as
        the tables themselves.
        """
        own = [variable.numpy() for variable in self._weights_but_tables]
        return [*own, *self.embedding.get_weights()]

    def set_weights(self, weights: Sequence[npt.ArrayLike]) -> None:
        """Set all weights to arrays in the form that `get_weights` returns.

        Raises:
            ValueError: If the number of arrays or a shape differs.
        """
        variables = self._weights_but_tables
        num_tables = self.embedding.num_arrays
        if len(weights) != len(variables) + num_tables:
            raise UserError(
                f"The model has {len(variables)} dense weights and {num_tables} "
                f"tables. Received: {len(weights)} arrays"
            )
        self.embedding.set_weights(weights[len(variables) :])
        for variable, value in zip(variables, weights):
            variable.assign(value)

    def count_params(self) -> int:
        """Return the number of parameters of the dense layers and tables."""
        own = sum(math.prod(weight.shape) for weight in self._weights_but_tables)
        return own + self.embedding.count_params()

    @property
    def _weights_but_tables(self):
        return [w for w in self.weights if not self.embedding.owns(w)]

    def load_weights(
        self, filepath: PathLike, skip_mismatch: bool = False, **kwargs: Any
    ) -> None:
        """Load weights, as `keras.Model.load_weights` does.

        With `skip_mismatch=True`, tables that do not match the file are skipped one by
        one, and a warning names them.
        """
        with self.embedding.skipping_mismatches(skip_mismatch):
            super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)

    def save_weights(
        self, filepath: PathLike, overwrite: bool = True, **kwargs: Any
    ) -> None:
        """Save the weights, as `keras.Model.save_weights` does.

        A local file is written completely or not at all. Of several workers, all must
        call this method, and the first writes.

        Raises:
            tf_dlrm.runtime.disk.WriteError: If the file cannot be written; an
                `OSError`.
        """
        with loops.written_by_chief(self, filepath) as path:
            self._save_weights(path, overwrite, **kwargs)

    def _save_weights(self, filepath, overwrite, **kwargs):
        is_file = str(filepath).endswith(".weights.h5") and "://" not in str(filepath)
        is_file = is_file and isinstance(filepath, str | os.PathLike)
        if not is_file or kwargs.get("max_shard_size") or not overwrite:
            super().save_weights(filepath, overwrite, **kwargs)
            return
        with disk.replacing_file("the weights", filepath) as temporary:
            with WeightsFile(temporary) as file:
                super().save_weights(file, overwrite)
                file.check()

    def save(self, filepath: PathLike, overwrite: bool = True, **kwargs: Any) -> None:
        """Save the whole model to a `.keras` file, as `keras.Model.save` does.

        A local file is written completely or not at all. Of several workers, all must
        call this method, and the first writes.

        Raises:
            ValueError: For the legacy `.h5` format, which would lose tables.
            tf_dlrm.runtime.disk.WriteError: If the file cannot be written; an
                `OSError`.
        """
        _refuse_legacy_h5(str(filepath).lower().endswith((".h5", ".hdf5")), filepath)
        with loops.written_by_chief(self, filepath) as path:
            self._save(path, {"overwrite": overwrite, **kwargs})

    def _save(self, filepath, options):
        is_file = str(filepath).endswith(".keras") and "://" not in str(filepath)
        if not is_file or options.get("zipped") is False or not options["overwrite"]:
            super().save(filepath, **options)
            return
        with disk.replacing_file("the model", filepath) as temporary:
            super().save(temporary, **options)

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Raise an error: Keras' export would write a wrong signature for bags.

        Raises:
            ValueError: Always; use `tf_dlrm.export_saved_model` instead.
        """
        raise UserError(
            "Keras' export loses raggedness (padding is looked up as id 0) and writes "
            "each weight twice. Use tf_dlrm.export_saved_model(model, base_dir)."
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        _refuse_legacy_h5(keras_hooks.is_writing_legacy_h5(), "an `.h5` file")
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "spec": self.spec.get_config(),
            "bottom_mlp_dims": self.bottom_mlp and serialize(self.bottom_mlp),
            "top_mlp_dims": serialize(self.top_mlp),
            "interaction": serialize(self.interaction),
            "self_interaction": False,  # the layer's own config has it
            "embedding": serialize(self.embedding),
            "feature_mlp_dims": {k: serialize(v) for k, v in self.feature_mlps.items()},
            "negative_sampling_rate": self.negative_sampling_rate,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        config = dict(config)
        config["spec"] = FeatureSpec.from_config(config["spec"])
        for name in ("bottom_mlp_dims", "top_mlp_dims", "interaction", "embedding"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(
                    config[name], custom_objects=custom_objects
                )
        config["feature_mlp_dims"] = {
            name: keras.saving.deserialize_keras_object(mlp)
            for name, mlp in (config["feature_mlp_dims"] or {}).items()
        }
        return cls(**config)


def _refuse_legacy_h5(is_legacy: bool, path) -> None:
    if is_legacy:
        raise UserError(
            "The legacy `.h5` format loses the tables' state, and such a model could "
            "not be loaded. Save the model as `.keras`, or its weights as "
            f"`.weights.h5`. Received: {path}"
        )
