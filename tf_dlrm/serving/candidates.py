"""One user and context, many items: shared features and those of each item.

# N candidates, D width
"""

from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

from tf_dlrm.features import FeatureSpec
from tf_dlrm.runtime.errors import UserError

Pooled: TypeAlias = tf.Tensor | list[tf.Tensor]  # a list where widths differ


class Split:
    """A model's features, divided into shared ones and those of each candidate.

    Args:
        spec: The model's `FeatureSpec`.
        candidate_features: Names of the features in which candidates differ.

    Attributes:
        shared_dense, own_dense: Columns of the dense features, in order.
        shared_sparse, own_sparse: Columns of the sparse features, in order.

    Raises:
        ValueError: If a name is not a feature, comes twice, or no sparse feature is
            among them.
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
                "`candidate_features` must hold at least one sparse feature, or all "
                f"candidates would be one item. Received: {names}"
            )

    def join_dense(
        self, shared: tf.Tensor, own: tf.Tensor, num_items: tf.Tensor
    ) -> tf.Tensor:
        """Return the dense features of all candidates, `(N, num_dense)`."""
        repeated = tf.repeat(shared, num_items, axis=0)
        joined = tf.concat([repeated, own], axis=1)
        return tf.gather(joined, _places(self.shared_dense + self.own_dense), axis=1)

    def join_pooled(self, shared: Pooled, own: Pooled, num_items: tf.Tensor) -> Pooled:
        """Return the pooled vectors of all candidates, from one row of shared ones.

        Args:
            shared: `(1, features, D)`, or a list of `(1, D)` where widths differ.
            own: The same with N rows.
            num_items: N.
        """
        order = _places(self.shared_sparse + self.own_sparse)
        if isinstance(shared, list) or isinstance(own, list):
            vectors = [tf.repeat(each, num_items, axis=0) for each in _as_list(shared)]
            vectors += _as_list(own)
            return [vectors[place] for place in order]
        joined = tf.concat([tf.repeat(shared, num_items, axis=0), own], axis=1)
        return tf.gather(joined, order, axis=1)


def _as_list(vectors: Pooled) -> list[tf.Tensor]:
    return vectors if isinstance(vectors, list) else tf.unstack(vectors, axis=1)


def _places(columns: list[int]) -> list[int]:
    """Return the place of each column, after columns were put in another order."""
    return [columns.index(column) for column in range(len(columns))]
