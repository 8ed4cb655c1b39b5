"""Features of one user and context that many candidate items share.

# N candidates, D width
"""

from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

from tf_dlrm.features import FeatureSpec
from tf_dlrm.runtime.errors import UserError

Pooled: TypeAlias = tf.Tensor | list[tf.Tensor]  # a list if widths differ


class Split:
    """Split of a model's features into shared ones and those of each candidate.

    Args:
        spec: The model's `FeatureSpec`.
        candidate_features: Names of the features that differ between candidates.

    Attributes:
        shared_dense, own_dense: Columns of the shared dense features, and of those of
            each candidate, in order.
        shared_sparse, own_sparse: The same for sparse features.

    Raises:
        ValueError: If a name is not a feature or is repeated, or if no name is that of
            a sparse feature.
    """

    def __init__(self, spec: FeatureSpec, candidate_features: Sequence[str]) -> None:
        dense = list(spec.dense)
        sparse = [feature for table in spec.tables for feature in table.features]
        names = list(candidate_features)
        unknown = [name for name in names if name not in dense + sparse]
        if unknown or len(set(names)) < len(names):
            raise UserError(
                "`candidate_features` must name features of the model, each once. "
                f"Received: {names}" + (f", unknown: {unknown}" if unknown else "")
            )
        self.shared_dense = [i for i, name in enumerate(dense) if name not in names]
        self.own_dense = [i for i, name in enumerate(dense) if name in names]
        self.shared_sparse = [i for i, name in enumerate(sparse) if name not in names]
        self.own_sparse = [i for i, name in enumerate(sparse) if name in names]
        if not self.own_sparse:
            raise UserError(
                "`candidate_features` must contain at least one sparse feature, or "
                f"all candidates would be the same item. Received: {names}"
            )

    def join_dense(
        self, shared: tf.Tensor, own: tf.Tensor, num_items: tf.Tensor
    ) -> tf.Tensor:
        """Return the dense features of all candidates, `(N, num_dense)`."""
        repeated = tf.repeat(shared, num_items, axis=0)
        joined = tf.concat([repeated, own], axis=1)
        order = _places(self.shared_dense + self.own_dense)
        return tf.gather(joined, tf.constant(order, tf.int64), axis=1)  # may be empty

    def join_pooled(self, shared: Pooled, own: Pooled, num_items: tf.Tensor) -> Pooled:
        """Return the pooled vectors of all candidates.

        Args:
            shared: Pooled vectors of the shared features, `(1, features, D)`, or a list
                of tensors `(1, D)` if widths differ.
            own: Pooled vectors of the candidates' features, the same with N rows.
            num_items: Number of candidates, N.
        """
        order = _places(self.shared_sparse + self.own_sparse)
        if isinstance(shared, list) or isinstance(own, list):
            vectors = [tf.repeat(v, num_items, axis=0) for v in _as_list(shared)]
            vectors += _as_list(own)
            return [vectors[place] for place in order]
        joined = tf.concat([tf.repeat(shared, num_items, axis=0), own], axis=1)
        return tf.gather(joined, order, axis=1)


def _as_list(vectors: Pooled) -> list[tf.Tensor]:
    return vectors if isinstance(vectors, list) else tf.unstack(vectors, axis=1)


def _places(columns: list[int]) -> list[int]:
    """Return the position of each column in a reordered list of columns."""
    return [columns.index(column) for column in range(len(columns))]
