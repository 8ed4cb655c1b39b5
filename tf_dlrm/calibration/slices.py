"""`SlicedCorrection`: a correction of its own for each value of a categorical feature.

# B rows, F sparse features, L padded length
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.calibration.corrections import Correction, like
from tf_dlrm.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class SlicedCorrection:
    """Curves by the id of one categorical feature, and one for all other rows.

    Args:
        feature: Name of the feature.
        other: Curve of rows whose id has none of its own.
        by_id: Curves by id in the feature's table; -1 stands for rows without an id.
            All have the class of `other`.
        num_rows: Number of rows that all curves were fitted on.

    Example:

    >>> from tf_dlrm.calibration import PlattCorrection, SlicedCorrection
    >>> same, twice = PlattCorrection(1.0, 0.0), PlattCorrection(1.0, 0.693)
    >>> correction = SlicedCorrection("country", same, {7: twice})
    >>> correction([0.02, 0.02], [7, 8]).round(3).tolist()
    [0.039, 0.02]
    """

    feature: str
    other: Correction
    by_id: Mapping[int, Correction]
    num_rows: int = 0

    @property
    def method(self) -> str:
        """Name of the method of all curves."""
        return self.other.method

    def __call__(self, probabilities: Any, ids: Any) -> Any:
        """Return corrected probabilities, in the shape and dtype of the input.

        Args:
            probabilities: A tensor or an array with one value for each row.
            ids: The id of each row, as `first_ids` returns them, int64 `(B,)`.
        """
        known = np.array(sorted(self.by_id), np.int64)
        curves = [self.other, *(self.by_id[i] for i in known.tolist())]
        ids = tf.cast(ids, tf.int64)

        def correct(p: tf.Tensor) -> tf.Tensor:
            places = tf.searchsorted(known, ids, side="right")
            is_own = tf.equal(tf.gather(np.append(-2, known), places), ids)
            places = tf.where(is_own, places, tf.zeros_like(places))
            return type(self.other).apply(curves, places, p)

        return like(probabilities, correct)

    def find_column(self, sparse_features: Sequence[str]) -> int:
        """Return the position of the feature among those of a model.

        Args:
            sparse_features: Names of the model's sparse features.

        Raises:
            ValueError: If it is none of them.
        """
        if self.feature not in sparse_features:
            raise UserError(
                "Slices of a correction need a categorical feature of the model: "
                f"{', '.join(sparse_features[:60])}. Received: {self.feature!r}"
            )
        return list(sparse_features).index(self.feature)

    def describe(self) -> dict[str, Any]:
        """Return JSON-safe facts about the curves."""
        return {
            "method": self.method,
            "num_rows": self.num_rows,
            "slice_feature": self.feature,
            "slice_ids": sorted(map(int, self.by_id)),
        }


def first_ids(sparse_features: Any, column: int) -> tf.Tensor:
    """Return the first id of a feature in each row, or -1 if the row has none.

    Args:
        sparse_features: Ids `(B, F)`, `(B, F, L)` padded with -1, or ragged
            `(B, F, None)`.
        column: Position of the feature.

    Returns:
        int64 `(B,)`.

    Example:

    >>> from tf_dlrm.calibration import first_ids
    >>> first_ids([[[4, 1], [-1, 3]], [[2, -1], [-1, -1]]], 1).numpy().tolist()
    [3, -1]
    """
    if not isinstance(sparse_features, tf.RaggedTensor):
        ids = tf.cast(tf.convert_to_tensor(sparse_features), tf.int64)[:, column]
        if ids.shape.rank == 1:
            return tf.maximum(ids, -1)
        first = tf.argmax(ids >= 0, axis=1)
        return tf.maximum(tf.gather(ids, first, batch_dims=1), -1)
    starts = sparse_features.row_starts()
    bags = tf.gather(sparse_features.values, starts + column)
    ids = tf.cast(bags.flat_values, tf.int64)
    places, rows = tf.where(ids >= 0)[:, 0], bags.value_rowids()
    num_rows = tf.size(starts, tf.int64)
    first = tf.math.unsorted_segment_min(places, tf.gather(rows, places), num_rows)
    # A row without an id has the largest integer.
    first = tf.minimum(first, tf.size(ids, tf.int64))
    return tf.gather(tf.concat([ids, [-1]], axis=0), first)
