"""From categorical values to ids, in TensorFlow operations.

# N values of one feature, F features
"""

import abc
import os
from collections.abc import Sequence

import tensorflow as tf

from pipelines.formats.line_rules import NUM_SPARSE, SPARSE_FEATURES
from pipelines.runtime import disk

# The key at id 0. No value of a field holds a comma, so nothing ever finds it; a
# table made from a text file cannot have an empty line there.
_NO_VALUE = b","


class Lookup(tf.Module, abc.ABC):
    """Base class: how values of the 26 categorical features become ids."""

    @abc.abstractmethod
    def find(self, feature: int, values: tf.Tensor) -> tf.Tensor:
        """Look up values of one feature.

        Args:
            feature: Position of the feature, 0 for C1.
            values: String tensor `(N,)`.

        Returns:
            int64 tensor `(N,)`; 0 for an empty or unknown value.
        """

    def find_columns(self, columns: Sequence[tf.Tensor]) -> tf.Tensor:
        """Look up one value of each feature: 26 strings `(N,)` -> int64 `(N, 26)`."""
        return tf.stack([self.find(i, v) for i, v in enumerate(columns)], axis=1)

    def find_mixed(self, values: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
        """Look up values of mixed features.

        Args:
            values: String tensor `(N,)`.
            features: int32 tensor `(N,)`, the position of each value's feature.

        Returns:
            int64 tensor `(N,)`.
        """
        positions = tf.dynamic_partition(
            tf.range(tf.size(values)), features, NUM_SPARSE
        )
        parts = tf.dynamic_partition(values, features, NUM_SPARSE)
        ids = [self.find(i, part) for i, part in enumerate(parts)]
        return tf.dynamic_stitch(positions, ids)


class TableLookup(Lookup):
    """One hash table a feature: the id of a value is its place in the vocabulary.

    Args:
        vocabulary: A `Vocabulary`.
        asset_dir: Folder to write the tables to, one text file a feature, for the
            tables to be made from. `tf.saved_model.save` then copies the files;
            tables from memory it would store as constants of the graph, which
            may not grow beyond 2 GB. `None`: tables from memory.
    """

    def __init__(self, vocabulary, asset_dir: str | None = None):
        super().__init__()
        self._tables = []
        for feature in SPARSE_FEATURES:
            keys = [_NO_VALUE, *vocabulary.values(feature)]
            if asset_dir is None:
                initializer = tf.lookup.KeyValueTensorInitializer(
                    tf.constant(keys, tf.string), tf.range(len(keys), dtype=tf.int64)
                )
            else:
                path = os.path.join(asset_dir, f"{feature}.txt")
                with disk.explaining("the vocabulary of the export", path):
                    with open(path, "wb") as file:
                        file.write(b"\n".join(keys) + b"\n")
                initializer = tf.lookup.TextFileInitializer(
                    path,
                    key_dtype=tf.string,
                    key_index=tf.lookup.TextFileIndex.WHOLE_LINE,
                    value_dtype=tf.int64,
                    value_index=tf.lookup.TextFileIndex.LINE_NUMBER,
                )
            self._tables.append(tf.lookup.StaticHashTable(initializer, 0))

    def find(self, feature, values):
        return self._tables[feature].lookup(values)


class HashLookup(Lookup):
    """SipHash-2-4 of the value, keyed with the feature; see `HashVocabulary`.

    Args:
        sizes: 26 numbers of ids, 0 included.
        key: Second word of the hash's key; the first is the number of the feature.
    """

    def __init__(self, sizes, key: int):
        super().__init__()
        self._sizes, self._key = tuple(sizes), key

    def find(self, feature, values):
        buckets = self._hash(feature, values)
        return tf.where(tf.equal(values, ""), tf.constant(0, tf.int64), 1 + buckets)

    def find_columns(self, columns):
        # One `where` for all features rather than 26.
        buckets = [self._hash(i, values) for i, values in enumerate(columns)]
        is_empty = [tf.equal(values, "") for values in columns]
        return tf.where(
            tf.stack(is_empty, axis=1),
            tf.constant(0, tf.int64),
            1 + tf.stack(buckets, axis=1),
        )

    def _hash(self, feature, values):
        return tf.strings.to_hash_bucket_strong(
            values, self._sizes[feature] - 1, key=[feature + 1, self._key]
        )
