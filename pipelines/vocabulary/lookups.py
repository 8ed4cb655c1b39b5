"""Look up the ids of categorical values with TensorFlow operations.

# N values of one feature, F features
"""

import os
import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from pipelines.runtime import disk
from pipelines.vocabulary.hashing import HASH_KEY, HashNumbering


class Lookup(tf.Module):
    """Look up the ids of values of all features of a schema.

    Features that share a table share its values. Hash tables are made at first use or
    by `build`: with millions of values this takes seconds, and the sizes alone do not
    need them.

    Args:
        vocabulary: A vocabulary of any kind.
        asset_dir: Folder for one text file of values per table, from which the hash
            tables are made. `tf.saved_model.save` then copies the files. Hash tables
            made from memory would be stored as constants of the graph, which is limited
            to 2 GB. Default: make them from memory.
    """

    def __init__(self, vocabulary: Any, asset_dir: str | None = None):
        super().__init__()
        schema = vocabulary.schema
        self._vocabulary, self._asset_dir = vocabulary, asset_dir
        self._tables = None
        self._names = list(schema.tables)
        # A source is a hash or the position of a table of values.
        sources = [
            numbering if isinstance(numbering, HashNumbering) else table
            for numbering, table in zip(
                vocabulary.by_feature, schema.table_of, strict=True
            )
        ]
        self._sources = list(dict.fromkeys(sources))
        self._source_of = [self._sources.index(source) for source in sources]
        self._values_of = [s for s in self._sources if not isinstance(s, HashNumbering)]

    def build(self) -> "Lookup":
        """Make the hash tables if they do not exist yet, and return itself."""
        if self._tables is None:
            with tf.init_scope():  # not in the graph of the first caller
                tables = [self._make_table(table) for table in self._values_of]
            # As an attribute, so that a SavedModel finds the tables.
            self._tables = tables
        return self

    def find(self, feature: int, values: tf.Tensor) -> tf.Tensor:
        """Look up values of one feature.

        Args:
            feature: Position of the feature, 0 for the first.
            values: String tensor `(N,)`.

        Returns:
            int64 tensor `(N,)`; 0 for an empty or unknown value.
        """
        return self._find(self._source_of[feature], values)

    def find_columns(
        self, columns: Sequence[tf.Tensor], features: Sequence[int] | None = None
    ) -> tf.Tensor:
        """Look up one value of each feature; return int64 ids `(N, F)`.

        Args:
            columns: A string tensor `(N,)` for each feature.
            features: Positions of these features; default: all, in order.
        """
        sources = self._take(features)
        if not all(
            isinstance(self._sources[source], HashNumbering) for source in sources
        ):
            ids = [self._find(*pair) for pair in zip(sources, columns, strict=True)]
            return tf.stack(ids, axis=1)
        # One `where` for all features instead of one for each.
        buckets = [
            _hash(self._sources[source], values)
            for source, values in zip(sources, columns, strict=True)
        ]
        is_empty = [tf.equal(values, "") for values in columns]
        return tf.where(
            tf.stack(is_empty, axis=1),
            tf.constant(0, tf.int64),
            1 + tf.stack(buckets, axis=1),
        )

    def find_mixed(
        self,
        values: tf.Tensor,
        positions: tf.Tensor,
        features: Sequence[int] | None = None,
    ) -> tf.Tensor:
        """Look up values of mixed features.

        Args:
            values: String tensor `(N,)`.
            positions: int32 tensor `(N,)`, the position of each value's feature in
                `features`.
            features: Positions of the features; default: all, in order.

        Returns:
            int64 tensor `(N,)`.
        """
        sources = self._take(features)
        distinct = list(dict.fromkeys(sources))
        if len(distinct) == 1:
            return self._find(distinct[0], values)
        if len(distinct) < len(sources):
            places = [distinct.index(source) for source in sources]
            positions = tf.gather(tf.constant(places, tf.int32), positions)
        order = tf.dynamic_partition(
            tf.range(tf.size(values)), positions, len(distinct)
        )
        parts = tf.dynamic_partition(values, positions, len(distinct))
        ids = [self._find(*pair) for pair in zip(distinct, parts, strict=True)]
        return tf.dynamic_stitch(order, ids)

    def _take(self, features):
        if features is None:
            return self._source_of
        return [self._source_of[feature] for feature in features]

    def _find(self, source, values):
        source = self._sources[source]
        if isinstance(source, HashNumbering):
            ids = 1 + _hash(source, values)
            return tf.where(tf.equal(values, ""), tf.constant(0, tf.int64), ids)
        return self.build()._tables[self._values_of.index(source)].lookup(values)

    def _make_table(self, table):
        values = self._vocabulary.numberings[table].values()
        keys = [_free_key(values), *values]
        if self._asset_dir is None:
            initializer = tf.lookup.KeyValueTensorInitializer(
                tf.constant(keys, tf.string), tf.range(len(keys), dtype=tf.int64)
            )
        else:
            name = _file_name(self._names[table], table)
            path = os.path.join(self._asset_dir, name)
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
        return tf.lookup.StaticHashTable(initializer, 0)


def _hash(source, values):
    key = [source.key, HASH_KEY]
    return tf.strings.to_hash_bucket_strong(values, source.num_buckets - 1, key=key)


def _free_key(values: list[bytes]) -> bytes:
    """Return a key for id 0 that is neither a value nor an empty line.

    Files must not have empty lines. An unknown value that equals the key also gets id
    0.
    """
    key = b","
    while key in values:
        key += b","
    return key


def _file_name(table: str, position: int) -> str:
    is_plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", table)
    return f"{table}.txt" if is_plain else f"table_{position}.txt"
