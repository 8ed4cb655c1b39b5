"""Rows of files or records, as NumPy arrays and as the tensors that a model takes."""

import numpy as np
import tensorflow as tf

from pipelines.evaluation import slice_columns
from pipelines.evaluation.slice_columns import FILE
from pipelines.formats.encoding import encode
from pipelines.formats.layout import Wanted
from pipelines.formats.scanning import scan
from pipelines.log_data import expander_of
from pipelines.records import features as record_features
from pipelines.records.batch import Batch, concatenate, cut, id_ends, row_splits
from pipelines.records.layout import Manifest
from pipelines.records.record_batches import open_rows
from pipelines.runtime import UserError

_BLOCK_ROWS = 1 << 15


class Lines:
    """Files of lines, as pairs of a block and its rows.

    Args:
        paths: The files.
        parser: The parser with the vocabulary of the model.
        quarantine: Collects bad rows.
        others: Further columns to read, as categories.

    Attributes:
        expand: Function of the features of a batch that makes its bags.
    """

    num_rows = None

    def __init__(self, paths, parser, quarantine, others=()):
        self._paths, self._quarantine = paths, quarantine
        self._vocabulary, self.expand = parser.vocabulary, parser.expand
        self._wanted = Wanted(others=others)

    def column(self, name):
        """Return the column with this name, to slice rows by."""
        vocabulary = self._vocabulary
        schema = vocabulary.schema
        if name == FILE:
            return slice_columns.Files(self._paths)
        if period := slice_columns.period_of(name, schema):
            return slice_columns.Times(period)
        if name in schema.dense_features:
            return slice_columns.NumberBins(name, schema, is_transformed=False)
        return slice_columns.TextValues(name, schema, vocabulary.learned)

    def __iter__(self):
        def number(rows):
            return encode(rows, self._vocabulary)

        blocks = scan(
            self._paths,
            self._quarantine,
            self._vocabulary.schema,
            self._wanted,
            make=number,
        )
        for block in blocks:
            yield block, block.made


class Records:
    """A split of records, as pairs of `None` and some rows.

    Args:
        folder: The folder of records.
        split: Name of the split.
        vocabulary: The vocabulary of the records.
    """

    def __init__(self, folder, split, vocabulary):
        self._manifest = Manifest.load(folder)
        self._store = open_rows(folder, self._manifest, split)
        self._folder, self._vocabulary = folder, vocabulary
        self.num_rows = self._store.num_rows

    def expand(self, features):
        """Return the features of a batch unchanged."""
        return features  # `prepare` already expanded the rows

    def column(self, name):
        """Return the column with this name, to slice rows by."""
        if name == FILE:
            raise UserError(
                f"Records do not contain the file of a row: leave {FILE} out, or "
                f"evaluate the original files. Received: {self._folder}"
            )
        schema = self._vocabulary.schema
        if name in schema.dense_features:
            return slice_columns.NumberBins(name, schema, is_transformed=True)
        if name not in schema.sparse_features:
            raise UserError(
                f"Records contain only the columns that the model reads, and {name} is "
                "not one of them: evaluate the original files. Received: "
                f"{self._folder}"
            )
        position = self._manifest.schema.sparse.index(name)
        is_expanded = expander_of(self._manifest) is not None
        return slice_columns.IdValues(name, position, self._vocabulary, is_expanded)

    def __iter__(self):
        for first in range(0, self.num_rows, _BLOCK_ROWS):
            last = min(first + _BLOCK_ROWS, self.num_rows)
            yield None, concatenate(self._store.read(first, last))


def tensors(batch: Batch, first, last):
    """Return rows `first` .. `last - 1` as the tensors that the step takes."""
    part = cut(batch, id_ends(batch), first, last)
    ids, lengths = part.ids, part.lengths
    if lengths is None:  # missing ids are empty bags
        lengths = ids >= 0
        ids = ids[lengths]
    splits = row_splits(lengths)
    id_weights, weights = part.id_weights, part.weights
    if id_weights is None:
        id_weights = np.ones(len(ids), np.float32)
    if weights is None:
        weights = np.ones(len(part.labels), np.float32)
    labels = part.labels.astype(np.float32)
    return part.dense, ids.astype(np.int64), splits, id_weights, labels, weights


def signature(num_dense: int) -> list[tf.TensorSpec]:
    """Return the specs of the tensors that `tensors` returns."""
    numbers, ids = tf.TensorSpec((None,), tf.float32), tf.TensorSpec((None,), tf.int64)
    dense = tf.TensorSpec((None, num_dense), tf.float32)
    return [dense, ids, ids, numbers, numbers, numbers]


def make_features(schema, expand, dense, ids, splits, id_weights) -> dict:
    """Return the features of a batch, as a model takes them.

    Args:
        schema: The columns.
        expand: Function of the features that makes bags, `Lines.expand`.
        dense: float32 `(n, num_dense)`.
        ids: int64 `(V,)`, the ids of all bags.
        splits: int64 `(n * F + 1,)`, ends of the bags.
        id_weights: float32 `(V,)`.
    """
    features = record_features.make_features(
        dense if schema.dense else None,
        ids,
        splits,
        id_weights if schema.has_id_weights else None,
        len(schema.sparse),
        tf.shape(dense, tf.int64)[0],
    )
    return expand(features)


def make_step(model, schema, expand, finish):
    """Return the function of the first four tensors of `tensors` that predicts rows.

    Args:
        model: The `DLRM`.
        schema: The columns.
        expand: Function of the features that makes bags, `Lines.expand`.
        finish: Function of features and predictions `(n,)` that returns the result.
    """

    @tf.function(input_signature=signature(len(schema.dense))[:4], autograph=False)
    def step(*tensors):
        features = make_features(schema, expand, *tensors)
        return finish(features, model(features, training=False)[:, 0])

    # A concrete one: TensorFlow warns of functions that are made several times.
    return step.get_concrete_function()
