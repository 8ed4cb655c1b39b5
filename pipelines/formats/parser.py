"""`Parser`: the definition of the formats, in TensorFlow operations."""

import functools
import tempfile
from typing import Any

import tensorflow as tf

from pipelines.formats import cell_ops, line_rules, samples
from pipelines.formats.assembly import Assembly
from pipelines.formats.examples import Examples
from pipelines.formats.ops import LineOps
from pipelines.runtime import disk
from pipelines.schema import Schema
from tf_dlrm import EmbeddingTable, FeatureSpec


class Parser(tf.Module):
    r"""Turn lines of a click log into features and labels.

    The schema of the vocabulary says which columns a line has, and what they mean.
    One line end (`"\n"`, `"\r\n"` or `"\r"`) and a byte-order mark at the start are
    dropped.
    Cells are bytes: NULs and invalid UTF-8 are nothing special, nor are quotes, unless
    the schema's format is quoted.

    - A number is a decimal one, perhaps with an exponent, not beyond the largest
      float32; an integer matches `-?[0-9]+`. A missing one counts as what the feature
      says, by default 0. Transforms are computed in float64.
    - A category is a value, or a bag of values where its feature has a `separator`;
      empty values in a bag are skipped, so with `,` the cell `,` is the empty bag. A
      missing cell is the bag `[0]`. The vocabulary says which id a value has. Of the
      pieces of a bag that have a value, the first `max_values` are taken.

    Anything else is a bad row: other columns, a label that is none, a missing weight or
    time, a line end inside the line, an empty line.

    Criteo's lines are a label, 13 integers and 26 categories, separated by tabs: 40
    columns, or 39 where no label is needed. An integer x becomes `log(max(x, 0) + 1)`.

    Args:
        vocabulary: A `Vocabulary`, `HashVocabulary` or `SharedHashVocabulary`.
        asset_dir: Folder for the vocabulary as text files, which a SavedModel then
            copies; see `for_serving`. `None`: it is kept in memory.
        expander: A `pipelines.MultiHot` that one-hot rows go through, or `None`.

    Call arguments:
        lines: String tensor `(B,)`, good rows with a label.

    Returns:
        `(features, label)`, or `(features, label, sample_weight)` where the schema has
        a column of weights: `features["dense_features"]` is float32 `(B, num_dense)`,
        absent without numbers; `features["sparse_features"]` an int64
        `tf.RaggedTensor` `(B, num_sparse, None)` of ragged rank 2 with uniform middle
        dimension; `features["sparse_weights"]`, where values have weights, the same in
        float32; `label` and `sample_weight` float32 `(B,)`.

    Raises:
        tf.errors.InvalidArgumentError: If a line is not a valid row; it is shown.

    Example:

    >>> import pipelines.criteo, pipelines.vocabulary
    >>> parser = pipelines.criteo.Parser(pipelines.vocabulary.HashVocabulary(1000))
    >>> line = "\t".join(["1", "3"] + [""] * 12 + ["0c1e8f72"] + [""] * 25)
    >>> features, label = parser([line])
    >>> features["sparse_features"].shape, float(label[0])
    (TensorShape([1, 26, None]), 1.0)

    Reference:
        The transformation of Criteo's integers is that of facebookresearch/dlrm
        (`data_utils.py`). There, categorical values are numbered without a
        threshold and lines are not checked.
    """

    def __init__(
        self, vocabulary: Any, asset_dir: str | None = None, expander: Any = None
    ):
        super().__init__()
        self.vocabulary, self.expander, self._folder = vocabulary, expander, None
        self.schema = vocabulary.schema
        self._lookup = vocabulary.make_lookup(asset_dir)

    # What follows is made when it is needed: who wants the sizes needs no patterns.

    @functools.cached_property
    def _rules(self) -> line_rules.LineRules:
        return line_rules.rules(self.schema)

    @functools.cached_property
    def _is_criteo(self) -> bool:
        return self.schema == Schema.criteo()

    @functools.cached_property
    def _learned(self) -> dict[str, Any]:
        return dict(self.vocabulary.learned)

    @functools.cached_property
    def _numbers(self) -> tuple[dict[str, Any], Any]:
        edges = {n: own["edges"] for n, own in self._learned.items() if "edges" in own}
        return edges, cell_ops.fill_numbers(self.schema, self._learned)

    @functools.cached_property
    def _ops(self) -> LineOps:
        kind = "a Criteo log" if self._is_criteo else "the schema's log"
        return LineOps(self._rules, *self._numbers, kind)

    @functools.cached_property
    def _examples(self) -> Examples:
        return Examples(self.schema, *self._numbers)

    @functools.cached_property
    def _assembly(self) -> Assembly:
        return Assembly(self.schema, self._learned)

    @tf.autograph.experimental.do_not_convert
    def __call__(self, lines: tf.Tensor) -> tuple:
        lines = _as_lines(lines)
        valid, plain = self._ops.check(lines, labelled=True)
        return self.parse(self._ops.require(lines, valid), plain)

    @tf.autograph.experimental.do_not_convert
    def features(self, lines: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn lines with a label, without one, or some of each into features.

        Args:
            lines: String tensor `(B,)` of good rows, with or without a label.

        Returns:
            The features, as the call returns them.

        Raises:
            tf.errors.InvalidArgumentError: If a line is not a valid row.
        """
        lines = _as_lines(lines)
        valid, plain = self._ops.check(lines, labelled=False)
        return self.parse(self._ops.require(lines, valid), plain, labelled=False)

    def check(
        self, lines: tf.Tensor, labelled: bool = True
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Tell which lines are rows, and which are plain: what `parse` needs.

        Args:
            lines: String tensor `(B,)`.
            labelled: Whether a row must have a label; if not, a line without its column
                is a row too.

        Returns:
            `(valid, plain)`, two bool tensors `(B,)`. Plain rows are the common kind
            that can be split without a closer look.
        """
        return self._ops.check(_as_lines(lines), labelled)

    def parse(self, lines: tf.Tensor, plain: tf.Tensor, labelled: bool = True) -> Any:
        """Turn lines that `check` found valid into features and labels.

        Args:
            lines: String tensor `(B,)` of rows.
            plain: bool tensor `(B,)`, from `check`.
            labelled: As given to `check`.

        Returns:
            What the call returns, or the features if not `labelled`.
        """
        rows = self._ops.split(lines, plain, labelled)
        features = self._assemble(rows.cells)
        if not labelled:
            return features
        if rows.sample_weight is None:
            return features, rows.label
        return features, rows.label, rows.sample_weight

    @tf.autograph.experimental.do_not_convert
    def features_of_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn serialized `tf.Example` messages of raw fields into features.

        They have what a line has, by the names of columns: Criteo's int64 `I1` ..
        `I13`, with no value or one, and bytes `C1` .. `C26`, with any number; see
        `example_features`. What is not there is a missing cell. The rules are those of
        lines: several values are a bag.

        Args:
            examples: String tensor `(B,)`.

        Returns:
            The features, as the call returns them.

        Raises:
            tf.errors.InvalidArgumentError: If one is no `tf.Example`, a feature has
                another type, or a number several values.
        """
        return self._assemble(self._examples.split(examples))

    def example_features(self) -> dict[str, str]:
        """The type of each feature of `features_of_examples`, by name."""
        return self._examples.describe()

    def _assemble(self, cells):
        schema = self.schema
        if self._lookup is None:
            self.vocabulary.refuse()
        bags = self._assembly.bags(cells, self._lookup)
        num_rows = tf.shape(cells.fields[0], tf.int64)[0]

        def as_ragged(values):
            ragged = tf.RaggedTensor.from_row_splits(
                values, bags.row_splits, validate=False
            )
            return tf.RaggedTensor.from_uniform_row_length(
                ragged, len(schema.sparse), nrows=num_rows
            )

        features = {}
        if schema.dense:
            features["dense_features"] = self._assembly.dense(cells.numbers)
        features["sparse_features"] = as_ragged(bags.ids)
        if bags.weights is not None:
            features["sparse_weights"] = as_ragged(bags.weights)
        return self.expand(features)

    def expand(self, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Features as the expander makes them, if there is one."""
        return features if self.expander is None else self.expander.expand(features)

    def is_valid(self, lines: tf.Tensor, labelled: bool = True) -> tf.Tensor:
        """Tell which lines are rows.

        Args:
            lines: String tensor `(B,)`.
            labelled: As of `check`.

        Returns:
            bool tensor `(B,)`.
        """
        return self.check(lines, labelled)[0]

    def reason(self, line: bytes, labelled: bool = True) -> str | None:
        """Return in plain Python why a line is not a valid row; `None` if it is."""
        return self._rules.reason(line, labelled)

    def spec(self, embedding_dim: int = 16) -> FeatureSpec:
        """Return the `FeatureSpec` of a model for what this parser gives.

        Args:
            embedding_dim: Width of the embedding tables that the schema gives none.
        """
        schema, sizes = self.schema, self.vocabulary.sizes
        if not self.vocabulary.is_shared:
            return schema.spec(sizes, embedding_dim)
        features = schema.sparse_features
        table = EmbeddingTable("shared", sizes[0], embedding_dim, features=features)
        return FeatureSpec(schema.dense_features, [table])

    def sample_lines(self, num_lines: int = 16) -> list[bytes]:
        """Make lines that try the vocabulary: to compare two ways of serving them.

        Known and unknown values, bags of several (without an expander), missing
        fields, negative integers.

        Args:
            num_lines: Number of lines, all without label where a line can lack it.
        """
        has_bags = self.expander is None
        return samples.sample_lines(self._rules, self.vocabulary, num_lines, has_bags)

    def to_examples(self, lines: list[bytes]) -> list[bytes]:
        """Make serialized `tf.Example` messages of the same fields.

        Args:
            lines: Rows; a label is left out.

        Raises:
            ValueError: If a row has another number of columns.
        """
        return self._examples.write(lines, self._rules)

    # For exports: see `tf_dlrm.serving.Preprocessor`.

    @property
    def lines_signature(self) -> str:
        """Name of the signature of `features` in an export."""
        return "serving_tsv" if self._is_criteo else "serving_lines"

    @property
    def line_columns(self) -> list[str]:
        """The columns of a line, in order, without the label's where it can lack."""
        names = [str(column) for column in self._rules.columns]
        if self._rules.is_exact:
            del names[self._rules.label_position]
        return names

    @property
    def delimiter(self) -> str:
        """The byte between the columns of a line."""
        return self.schema.text.delimiter

    def export_files(self) -> dict[str, str]:
        """The schema, to be stored with an export."""
        return {"schema.json": self.schema.to_json() + "\n"}

    def for_serving(self) -> "Parser":
        """Return an equal parser to store in a SavedModel.

        Its vocabulary is made from text files, in a temporary folder that lasts as
        long as the returned parser, or until its `close()`. `tf.saved_model.save`
        copies them to the model's `assets`, where the vocabulary of the parser itself
        would be stored as constants of the graph, which cannot be larger than 2 GB.

        Example:

        >>> import os, tempfile
        >>> import pipelines.criteo, pipelines.vocabulary, tensorflow as tf
        >>> values = [[b"0c1e8f72"]] * 26
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
        prefix = disk.temporary_name("vocabulary")
        folder = tempfile.TemporaryDirectory(prefix=prefix)
        try:
            parser = Parser(self.vocabulary, folder.name, self.expander)
            parser._lookup.build()
        except BaseException:
            folder.cleanup()
            raise
        parser._folder = folder  # Removed with the parser.
        return parser

    def close(self) -> None:
        """Remove the files of a parser from `for_serving`, once it is stored."""
        if self._folder is not None:
            self._folder.cleanup()


def _as_lines(lines):
    lines = tf.convert_to_tensor(lines, tf.string)
    if lines.shape.rank not in (1, None):
        raise ValueError(
            "`lines` must be a string tensor of the shape (batch,). "
            f"Received: lines of the shape {lines.shape}"
        )
    return lines
