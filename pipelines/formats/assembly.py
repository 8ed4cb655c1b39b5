"""Turn the cells of a batch into the features of a model, in TensorFlow operations.

# B rows, D dense features, F sparse features, V values in the batch
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.formats import cell_ops
from pipelines.formats.cell_ops import Cells
from pipelines.schema import Schema

_NO_LIMIT = np.iinfo(np.int64).max


class Bags(NamedTuple):
    """The ids of a batch.

    Attributes:
        ids: int64 `(V,)`, by row, then by feature.
        weights: float32 `(V,)`; `None` if the schema has no weights.
        row_splits: int64 `(B * F + 1,)`.
    """

    ids: tf.Tensor
    weights: tf.Tensor | None
    row_splits: tf.Tensor


class Assembly:
    """The step from cells to features.

    Args:
        schema: The schema.
        learned: The learned numbers, by feature name.
    """

    def __init__(self, schema: Schema, learned: Mapping[str, Any]):
        self._schema = schema
        self._num_sparse = len(schema.sparse)
        # Features grouped by the separators of their cells.
        groups: dict[tuple[str | None, str | None], list[int]] = {}
        for position, feature in enumerate(schema.sparse):
            marks = feature.separator, feature.weight_separator
            groups.setdefault(marks, []).append(position)
        self._groups = list(groups.items())
        self._order = np.argsort([p for group in groups.values() for p in group])
        self._transforms = _plan_transforms(schema, learned)

    def dense(self, numbers: tf.Tensor) -> tf.Tensor:
        """Transform numbers: float64 `(B, D)` -> float32 `(B, D)`."""
        if len(self._transforms) == 1:
            transform, (_, *constants) = self._transforms[0]
            return tf.cast(transform(numbers, *constants), tf.float32)
        parts, order = [], []
        for transform, (positions, *constants) in self._transforms:
            part = tf.gather(numbers, positions, axis=1)
            parts.append(tf.cast(transform(part, *constants), tf.float32))
            order += positions
        return tf.gather(tf.concat(parts, axis=1), np.argsort(order), axis=1)

    def bags(self, cells: Cells, lookup: Any) -> Bags:
        """Look up the values of cells."""
        if all(feature.separator is None for feature in self._schema.sparse):
            return self._one_hot(cells, lookup)
        found = tf.cond(
            cells.has_bags,
            lambda: _without_none(self._any(cells, lookup)),
            lambda: _without_none(self._one_hot(cells, lookup)),
        )
        weights = found[1] if self._schema.has_id_weights else None
        return Bags(found[0], weights, found[-1])

    def _one_hot(self, cells, lookup):
        ids = tf.reshape(lookup.find_columns(cells.fields), [-1])
        weights = tf.ones_like(ids, tf.float32) if self._schema.has_id_weights else None
        return Bags(ids, weights, tf.range(tf.size(ids, tf.int64) + 1))

    def _any(self, cells, lookup):
        parts = [
            self._split_group(cells, lookup, positions, *marks)
            for marks, positions in self._groups
        ]
        if len(parts) == 1:
            ids, weights, lengths = parts[0]
            return Bags(ids, weights, _splits(tf.reshape(lengths, [-1])))
        lengths = tf.concat([part[2] for part in parts], axis=1)
        lengths = tf.gather(lengths, self._order, axis=1)
        row_splits = _splits(tf.reshape(lengths, [-1]))
        starts = tf.reshape(row_splits[:-1], (-1, self._num_sparse))
        places = [
            _places(tf.gather(starts, positions, axis=1), part[2])
            for (_, positions), part in zip(self._groups, parts, strict=True)
        ]
        places, total = tf.concat(places, axis=0)[:, None], row_splits[-1:]

        def interleave(values):
            return tf.ensure_shape(
                tf.scatter_nd(places, tf.concat(values, axis=0), total), (None,)
            )

        weights = None
        if self._schema.has_id_weights:
            weights = interleave([part[1] for part in parts])
        return Bags(interleave([part[0] for part in parts]), weights, row_splits)

    def _split_group(self, cells, lookup, positions, separator, weight_separator):
        """Ids, weights and lengths `(B, n)` of n features with the same separators."""
        count = len(positions)
        fields = [cells.fields[position] for position in positions]
        if separator is None:
            ids = lookup.find_columns(fields, positions)
            lengths = tf.ones_like(ids)
            return self._with_weights(tf.reshape(ids, [-1]), None, lengths)
        fields = tf.reshape(tf.stack(fields, axis=1), [-1])
        values, bags = cell_ops.split_bags(fields, separator)
        if cells.is_missing[positions[0]] is None:
            is_missing = tf.equal(fields, "")
        else:
            is_missing = [cells.is_missing[position] for position in positions]
            is_missing = tf.reshape(tf.stack(is_missing, axis=1), [-1])
        weights = None
        if weight_separator is not None:
            values, weights, _ = cell_ops.split_weights(values, weight_separator)
        # Splitting an empty field gives one empty piece, which means id 0.
        kept = tf.logical_or(tf.not_equal(values, ""), tf.gather(is_missing, bags))
        limits = [self._schema.sparse[p].max_values or _NO_LIMIT for p in positions]
        if min(limits) < _NO_LIMIT:
            kept = _keep_first(kept, bags, limits, tf.size(fields, tf.int64))
        values, bags = tf.boolean_mask(values, kept), tf.boolean_mask(bags, kept)
        if weights is not None:
            weights = tf.boolean_mask(weights, kept)
            weights = tf.cast(cell_ops.read(weights), tf.float32)
        features = tf.cast(bags % count, tf.int32)
        ids = lookup.find_mixed(values, features, positions)
        lengths = tf.math.unsorted_segment_sum(
            tf.ones_like(bags), bags, tf.size(fields, tf.int64)
        )
        return self._with_weights(ids, weights, tf.reshape(lengths, (-1, count)))

    def _with_weights(self, ids, weights, lengths):
        if weights is None and self._schema.has_id_weights:
            weights = tf.ones_like(ids, tf.float32)
        return ids, weights, lengths


def _without_none(bags):
    return [tensor for tensor in bags if tensor is not None]


def _splits(lengths):
    return tf.concat([[0], tf.cumsum(lengths)], axis=0)


def _places(starts, lengths):
    """Return the positions of a group's values among all values: int64 `(V,)`."""
    starts, lengths = tf.reshape(starts, [-1]), tf.reshape(lengths, [-1])
    splits = _splits(lengths)
    own = tf.range(splits[-1]) - tf.repeat(splits[:-1], lengths)
    return tf.repeat(starts, lengths) + own


def _keep_first(kept, bags, limits, num_bags):
    """Keep the first pieces of each bag, up to its limit, of those in `kept`."""
    numbers = tf.cast(kept, tf.int64)
    before = tf.cumsum(numbers, exclusive=True)
    lengths = tf.math.unsorted_segment_sum(numbers, bags, num_bags)
    rank = before - tf.gather(tf.cumsum(lengths, exclusive=True), bags)
    return kept & (rank < tf.gather(tf.constant(limits, tf.int64), bags % len(limits)))


def _plan_transforms(schema: Schema, learned: Mapping[str, Any]) -> list:
    """Return each transform with the positions of its features and its constants."""
    by_name: dict[str, list[int]] = {}
    for position, feature in enumerate(schema.dense):
        by_name.setdefault(feature.transform, []).append(position)
    plan = []
    for name, positions in by_name.items():
        features = [schema.dense[position] for position in positions]
        constants: Sequence[Sequence[float]] = ()
        if name == "clip":
            constants = (
                [-np.inf if f.low is None else f.low for f in features],
                [np.inf if f.high is None else f.high for f in features],
            )
        elif name == "standardize":
            own = [learned[feature.name] for feature in features]
            constants = (
                [numbers["mean"] for numbers in own],
                [numbers["deviation"] or 1.0 for numbers in own],
            )
        arrays = [np.array(numbers, np.float64) for numbers in constants]
        plan.append((_TRANSFORMS[name], (positions, *arrays)))
    return plan


_TRANSFORMS = {
    "identity": cell_ops.without_tiny,
    "log1p": lambda x: tf.math.log(tf.maximum(x, 0.0) + 1.0),
    "signed_log1p": lambda x: tf.sign(x) * tf.math.log(tf.abs(x) + 1.0),
    "standardize": lambda x, mean, deviation: cell_ops.divide(x - mean, deviation),
    "clip": lambda x, low, high: tf.minimum(
        tf.maximum(cell_ops.without_tiny(x), low), high
    ),
}
