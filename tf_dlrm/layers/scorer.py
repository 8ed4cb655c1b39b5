"""`Scorer`: bottom MLP, interaction and top MLP, the dense part of a DLRM."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_dlrm.layers.interactions import DotInteraction
from tf_dlrm.layers.mlp import MLP
from tf_dlrm.layers.mlp import build as build_layer
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Shape


@keras.saving.register_keras_serializable(package="tf_dlrm")
class Scorer(keras.layers.Layer):
    """The dense part of a DLRM: everything but the embedding tables.

    `p = sigmoid(top(interaction(bottom(dense), pooled embeddings)))`

    Args:
        bottom_mlp: `MLP` of the dense features, or `None` if there are none.
        interaction: Layer that is called with the list
            `[dense vector (B, D), pooled (B, F, D)]` and returns `(B, n)`. If features
            have MLPs or different widths, the list holds F separate vectors
            `(B, width)` instead of `pooled`.
        top_mlp: `MLP` that ends in one logit.
        num_dense: Number of dense features.
        widths: Width of the pooled vectors by sparse feature name.
        feature_mlps: `MLP`s between the pooled vectors and the interaction, by feature
            name.

    Call arguments:
        dense: float32 `(B, num_dense)`.
        pooled: `(B, F, D)`, or a list of F tensors `(B, width)`.
        training: Whether dropout and batch statistics are active.

    Returns:
        float32 `(B, 1)` click probabilities.

    Raises:
        ValueError: If the widths of the vectors differ and the interaction is a
            `DotInteraction`.

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 2 and figure 1.
    """

    def __init__(
        self,
        bottom_mlp: MLP | None,
        interaction: keras.layers.Layer,
        top_mlp: MLP,
        num_dense: int,
        widths: dict[str, int],
        feature_mlps: dict[str, MLP] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.bottom_mlp, self.top_mlp = bottom_mlp, top_mlp
        self.interaction, self.feature_mlps = interaction, dict(feature_mlps or {})
        self.num_dense, self.widths = num_dense, dict(widths)
        if isinstance(interaction, DotInteraction):
            self._check_widths()

    # The paper's figure 1, above the tables

    def call(
        self,
        dense: tf.Tensor,
        pooled: tf.Tensor | Sequence[tf.Tensor],
        training: bool = False,
    ) -> tf.Tensor:
        """Return click probabilities, float32 `(B, 1)`."""
        bottom = None
        if self.bottom_mlp is not None:
            bottom = self.bottom_mlp(dense, training=training)
        return self.score_vectors(bottom, pooled, training)

    def score_vectors(
        self,
        bottom: tf.Tensor | None,
        pooled: tf.Tensor | Sequence[tf.Tensor],
        training: bool = False,
    ) -> tf.Tensor:
        """Return click probabilities from the output of the bottom MLP.

        Args:
            bottom: The output `(B, D)`, or `None` without dense features.
            pooled: `(B, F, D)`, or a list of F tensors `(B, width)`.
            training: Whether dropout and batch statistics are active.
        """
        vectors = self._embedding_vectors(pooled, training)
        if bottom is not None:
            vectors = [bottom, *vectors]
        vectors = [ops.cast(v, self.compute_dtype) for v in vectors]
        logit = self.top_mlp(self.interaction(vectors), training=training)
        # The sigmoid is the last operation and in float32, so that Keras recovers the
        # logit and a saturated row keeps its gradient.
        return ops.sigmoid(ops.cast(logit, "float32"))

    def _embedding_vectors(self, pooled, training):
        if not self.feature_mlps:
            return pooled if isinstance(pooled, (list, tuple)) else [pooled]
        if not isinstance(pooled, (list, tuple)):
            pooled = tf.unstack(pooled, axis=1)
        return [
            self.feature_mlps[name](vector, training=training)
            if name in self.feature_mlps
            else vector
            for name, vector in zip(self.widths, pooled)
        ]

    # Construction

    def build(self, *input_shapes: Any) -> None:
        """Create all weights; no input shapes are needed."""
        if not self.built:
            self.build_parts()

    def build_parts(self) -> None:
        """Create all weights, without the name prefix that Keras adds in `build`."""
        shapes: list[Shape] = []
        if self.bottom_mlp is not None:
            build_layer(self.bottom_mlp, (None, self.num_dense))
            shapes.append((None, self.bottom_mlp.dims[-1]))
        for name, width in self.widths.items():
            if name in self.feature_mlps:
                build_layer(self.feature_mlps[name], (None, width))
        widths = list(self._vector_widths().values())
        if self.feature_mlps or len(set(widths)) > 1:
            shapes += [(None, width) for width in widths]
        else:
            shapes.append((None, len(widths), widths[0]))
        try:
            build_layer(self.interaction, shapes)
            output_shape = self.interaction.compute_output_shape(shapes)
        except ValueError as error:
            if len({shape[-1] for shape in shapes}) == 1:
                raise
            raise UserError(
                f"The interaction, {type(self.interaction).__name__}, cannot take "
                f"vectors of different widths: {[shape[-1] for shape in shapes]}. Use "
                "`feature_mlp_dims` to give features of other widths an MLP, or use "
                f"interaction='cat'. {str(error).splitlines()[0]}"
            ) from error
        build_layer(self.top_mlp, output_shape)
        self.built = True

    def _vector_widths(self):
        """Return the widths of the embedding vectors that enter the interaction."""
        return {
            name: self.feature_mlps[name].dims[-1]
            if name in self.feature_mlps
            else width
            for name, width in self.widths.items()
        }

    def _check_widths(self):
        widths = self._vector_widths()
        if self.bottom_mlp is None:
            width = next(iter(widths.values()))
            origin = f"{width} from the first"
        else:
            width = self.bottom_mlp.dims[-1]
            origin = f"bottom_mlp_dims={self.bottom_mlp.dims}"
        wrong = {name: w for name, w in widths.items() if w != width}
        if wrong:
            raise UserError(
                "With dot interaction, `bottom_mlp_dims` must end in the embedding_dim "
                "of all features (use `feature_mlp_dims` to change other widths). "
                f"Received: {origin}, but widths of features {wrong}"
            )

    def compute_output_shape(
        self, dense_shape: Shape, pooled_shape: Shape | Sequence[Shape]
    ) -> Shape:
        """Return `(B, 1)`."""
        return (dense_shape[0], 1)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "bottom_mlp": self.bottom_mlp and serialize(self.bottom_mlp),
            "interaction": serialize(self.interaction),
            "top_mlp": serialize(self.top_mlp),
            "num_dense": self.num_dense,
            "widths": self.widths,
            "feature_mlps": {k: serialize(v) for k, v in self.feature_mlps.items()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Scorer":
        """Create a scorer from the result of `get_config()`."""
        config = dict(config)
        make = keras.saving.deserialize_keras_object
        for name in ("bottom_mlp", "interaction", "top_mlp"):
            config[name] = config[name] and make(config[name])
        config["feature_mlps"] = {k: make(v) for k, v in config["feature_mlps"].items()}
        return cls(**config)
