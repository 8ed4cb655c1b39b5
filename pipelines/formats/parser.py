"""`Parser`: the definition of the format, in TensorFlow operations."""

import tempfile
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.formats import line_rules, ops
from pipelines.formats.line_rules import NUM_SPARSE
from pipelines.runtime import disk
from tf_dlrm import FeatureSpec


class Parser(tf.Module):
    r"""Turn lines of Criteo's click logs into features and labels.

    A line is a label, 13 integers and 26 categorical fields, separated by tabs: 40
    columns, or 39 where no label is needed. One line end (`"\n"`, `"\r\n"` or
    `"\r"`) and a byte-order mark at the start are dropped.

    - The label is `0` or `1`.
    - An integer matches `-?[0-9]+` in full and is finite as a float64. An empty or
      negative one counts as 0; x becomes `log(x + 1)`.
    - A categorical field is bytes: quotes, NULs and invalid UTF-8 are nothing
      special. `a,b` is the bag of both values; empty values in it are skipped, so
      `,` is the empty bag. An empty field is the bag `[0]`. The vocabulary says
      which id a value has.

    Anything else is a bad row: other columns, a carriage return or line feed inside
    the line, an empty line.

    Args:
        vocabulary: A `Vocabulary`, `HashVocabulary` or `SharedHashVocabulary`.
        asset_dir: Folder for the vocabulary as text files, which a SavedModel then
            copies; see `for_serving`. `None`: it is kept in memory.
        expander: A `pipelines.MultiHot` that one-hot rows go through, or `None`.

    Call arguments:
        lines: String tensor `(B,)`, good rows of 40 columns.

    Returns:
        `(features, label)`: `features["dense_features"]` is float32 `(B, 13)`,
        `features["sparse_features"]` an int64 `tf.RaggedTensor` `(B, 26, None)` of
        ragged rank 2 with uniform middle dimension, `label` float32 `(B,)`.

    Raises:
        tf.errors.InvalidArgumentError: If a line is not a valid row; it is shown.

    Example:

    >>> import pipelines.criteo, pipelines.vocabulary
    >>> parser = pipelines.criteo.Parser(pipelines.vocabulary.HashVocabulary(1000))
    >>> line = "\t".join(["1", "3"] + [""] * 12 + ["68fd1e64"] + [""] * 25)
    >>> features, label = parser([line])
    >>> features["sparse_features"].shape, float(label[0])
    (TensorShape([1, 26, None]), 1.0)

    Reference:
        The transformation of integers is that of facebookresearch/dlrm
        (`data_utils.py`). There, categorical values are numbered without a
        threshold and lines are not checked.
    """

    def __init__(
        self, vocabulary: Any, asset_dir: str | None = None, expander: Any = None
    ):
        super().__init__()
        self.vocabulary = vocabulary
        self.expander, self._folder = expander, None
        self._lookup = vocabulary.make_lookup(asset_dir)

    @tf.autograph.experimental.do_not_convert
    def __call__(self, lines: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        lines = _as_lines(lines)
        valid, plain = ops.check(lines, labelled=True)
        return self.parse(ops.require(lines, valid), plain)

    @tf.autograph.experimental.do_not_convert
    def features(self, lines: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn lines of 39 columns, of 40, or some of each into features.

        Args:
            lines: String tensor `(B,)` of good rows, with or without a label.

        Returns:
            The features, as the call returns them.

        Raises:
            tf.errors.InvalidArgumentError: If a line is not a valid row.
        """
        lines = _as_lines(lines)
        valid, plain = ops.check(lines, labelled=False)
        return self.parse(ops.require(lines, valid), plain, labelled=False)

    def check(
        self, lines: tf.Tensor, labelled: bool = True
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Tell which lines are rows, and which are plain: what `parse` needs.

        Args:
            lines: String tensor `(B,)`.
            labelled: Whether a row has 40 columns; if not, 39 columns will do.

        Returns:
            `(valid, plain)`, two bool tensors `(B,)`. Plain rows are the common kind
            that can be split without a closer look.
        """
        return ops.check(_as_lines(lines), labelled)

    def parse(self, lines: tf.Tensor, plain: tf.Tensor, labelled: bool = True) -> Any:
        """Turn lines that `check` found valid into features and labels.

        Args:
            lines: String tensor `(B,)` of rows.
            plain: bool tensor `(B,)`, from `check`.
            labelled: As given to `check`.

        Returns:
            `(features, label)`, or the features if not `labelled`.
        """
        label, integers, fields, has_bags = ops.split(lines, plain, labelled)
        features = self._assemble(integers, fields, has_bags)
        return (features, label) if labelled else features

    @tf.autograph.experimental.do_not_convert
    def features_of_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn serialized `tf.Example` messages of raw fields into features.

        They have what a line has: int64 `I1` .. `I13`, with no value or one, and bytes
        `C1` .. `C26`, with any number. What is not there is an empty field. The rules
        are those of lines: several values are a bag.

        Args:
            examples: String tensor `(B,)`.

        Returns:
            The features, as the call returns them.

        Raises:
            tf.errors.InvalidArgumentError: If one is no `tf.Example`, a feature has
                another type, or an integer several values.
        """
        return self._assemble(*ops.split_examples(examples))

    def example_features(self) -> dict[str, str]:
        """The type of each feature of `features_of_examples`, by name."""
        return {
            **dict.fromkeys(line_rules.DENSE_FEATURES, "int64, none or one"),
            **dict.fromkeys(line_rules.SPARSE_FEATURES, "bytes, any number"),
        }

    def _assemble(self, integers, fields, has_bags):
        values, row_splits = tf.cond(
            has_bags, lambda: self._bags(fields), lambda: self._one_hot(fields)
        )
        bags = tf.RaggedTensor.from_row_splits(values, row_splits, validate=False)
        logs = tf.math.log(tf.maximum(integers, 0.0) + 1.0)
        features = {
            "dense_features": tf.cast(logs, tf.float32),
            "sparse_features": tf.RaggedTensor.from_uniform_row_length(
                bags, NUM_SPARSE, nrows=tf.shape(integers, tf.int64)[0]
            ),
        }
        return self.expand(features)

    def expand(self, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Features as the expander makes them, if there is one."""
        return features if self.expander is None else self.expander.expand(features)

    def is_valid(self, lines: tf.Tensor, labelled: bool = True) -> tf.Tensor:
        """Tell which lines are rows.

        Args:
            lines: String tensor `(B,)`.
            labelled: Whether a row has 40 columns; if not, 39 columns will do.

        Returns:
            bool tensor `(B,)`.
        """
        return self.check(lines, labelled)[0]

    def reason(self, line: bytes, labelled: bool = True) -> str | None:
        """Return in plain Python why a line is not a valid row; `None` if it is."""
        return line_rules.reason(line, labelled)

    def spec(self, embedding_dim: int = 16) -> FeatureSpec:
        """Return the `FeatureSpec` of a model for what this parser gives.

        Args:
            embedding_dim: Width of the embedding tables.
        """
        sizes = self.vocabulary.sizes
        if self.vocabulary.is_shared:
            sizes = sizes[0]
        return FeatureSpec.criteo(sizes, embedding_dim)

    def sample_lines(self, num_lines: int = 16) -> list[bytes]:
        """Make lines that try the vocabulary: to compare two ways of serving them.

        Known and unknown values, bags of several (without an expander), missing
        fields, negative integers.

        Args:
            num_lines: Number of lines, all without label.
        """
        rng = np.random.default_rng(0)
        lines = []
        for _ in range(num_lines):
            integers = [b"%d" % x for x in rng.integers(-2, 5000, line_rules.NUM_DENSE)]
            fields = []
            for feature in line_rules.SPARSE_FEATURES:
                known = getattr(self.vocabulary, "values", lambda _: [])(feature)
                pool = [b"", b"never seen", b"68fd1e64", *known[:50]]
                count = rng.integers(1, 3) if self.expander is None else 1
                picked = [pool[i] for i in rng.integers(0, len(pool), count)]
                fields.append(b",".join(picked))
            integers[int(rng.integers(0, len(integers)))] = b""
            lines.append(b"\t".join([*integers, *fields]))
        return lines

    def to_examples(self, lines: list[bytes]) -> list[bytes]:
        """Make serialized `tf.Example` messages of the same fields.

        Args:
            lines: Rows without a line end; a label is left out.

        Raises:
            ValueError: If a row has other than 39 columns, or 40 with a label.
        """
        names = (*line_rules.DENSE_FEATURES, *line_rules.SPARSE_FEATURES)
        examples = []
        for line in lines:
            message = tf.train.Example()
            fields = line.split(b"\t")
            if len(fields) not in (len(names), len(names) + 1):
                raise ValueError(
                    f"A row must have {len(names)} columns, or one more with its "
                    f"label. Received: {len(fields)}"
                )
            for name, field in zip(names, fields[-len(names) :], strict=True):
                if not field:
                    continue
                feature = message.features.feature[name]
                if name in line_rules.DENSE_FEATURES:
                    feature.int64_list.value.append(int(field))
                else:
                    feature.bytes_list.value.extend(field.split(b","))
            examples.append(message.SerializeToString())
        return examples

    def for_serving(self) -> "Parser":
        """Return an equal parser to store in a SavedModel.

        Its vocabulary is made from text files, in a temporary folder that lasts as
        long as the returned parser, or until its `close()`. `tf.saved_model.save`
        copies them to the model's `assets`, where the vocabulary of the parser itself
        would be stored as constants of the graph, which cannot be larger than 2 GB.

        Example:

        >>> import os, tempfile
        >>> import pipelines.criteo, pipelines.vocabulary, tensorflow as tf
        >>> values = [[b"68fd1e64"]] * 26
        >>> vocabulary = pipelines.vocabulary.Vocabulary(values)
        >>> module = tf.Module()
        >>> module.parser = pipelines.criteo.Parser(vocabulary).for_serving()
        >>> signature = [tf.TensorSpec((None,), tf.string)]
        >>> module.features = tf.function(module.parser.features, signature)
        >>> path = os.path.join(tempfile.mkdtemp(), "1")
        >>> tf.saved_model.save(module, path)
        >>> len(os.listdir(os.path.join(path, "assets")))
        26
        """
        disk.remove_abandoned(tempfile.gettempdir())
        prefix = disk.temporary_name("criteo-vocabulary")
        folder = tempfile.TemporaryDirectory(prefix=prefix)
        try:
            parser = Parser(self.vocabulary, folder.name, self.expander)
        except BaseException:
            folder.cleanup()
            raise
        parser._folder = folder  # Removed with the parser.
        return parser

    def close(self) -> None:
        """Remove the files of a parser from `for_serving`, once it is stored."""
        if self._folder is not None:
            self._folder.cleanup()

    def _one_hot(self, fields):
        ids = tf.reshape(self._lookup.find_columns(fields), [-1])
        return ids, tf.range(tf.size(ids, tf.int64) + 1)

    def _bags(self, fields):
        fields = tf.reshape(tf.stack(fields, axis=1), [-1])
        pieces = tf.strings.split(fields, ",")
        values, bags = pieces.flat_values, pieces.value_rowids()
        # Splitting an empty field gives one empty piece, which stands for id 0.
        is_alone = tf.gather(tf.equal(pieces.row_lengths(), 1), bags)
        kept = tf.logical_or(tf.not_equal(values, ""), is_alone)
        values, bags = tf.boolean_mask(values, kept), tf.boolean_mask(bags, kept)
        ids = self._lookup.find_mixed(values, tf.cast(bags % NUM_SPARSE, tf.int32))
        lengths = tf.math.unsorted_segment_sum(
            tf.ones_like(bags), bags, tf.size(fields, tf.int64)
        )
        return ids, tf.concat([[0], tf.cumsum(lengths)], axis=0)


def _as_lines(lines):
    lines = tf.convert_to_tensor(lines, tf.string)
    if lines.shape.rank not in (1, None):
        raise ValueError(
            "`lines` must be a string tensor of the shape (batch,). "
            f"Received: lines of the shape {lines.shape}"
        )
    return lines
