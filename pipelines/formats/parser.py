"""`Parser`: the specification of the formats, in TensorFlow operations."""

import functools
import tempfile
from typing import Any

import tensorflow as tf

from pipelines.formats import cell_ops, line_rules, samples
from pipelines.formats.assembly import Assembly
from pipelines.formats.examples import Examples
from pipelines.formats.ops import LineOps
from pipelines.records.features import make_features
from pipelines.runtime import disk
from pipelines.schema import Schema
from tf_dlrm import EmbeddingTable, FeatureSpec


class Parser(tf.Module):
    r"""Turn lines of a click log into features and labels.

    The schema of the vocabulary defines the columns of a line. One line end (`"\n"`,
    `"\r\n"` or `"\r"`) and a byte-order mark at the start are dropped.

    Cells are bytes: NULs and invalid UTF-8 have no special meaning, and neither have
    quotes, unless the schema's format is quoted.

    - A number is a decimal number, optionally with an exponent, within the range of
      float32; an integer matches `-?[0-9]+`. A missing number has the value that the
      feature sets, by default 0. Transforms are computed in float64.
    - A category is a value, or a bag of values if its feature has a `separator`. Empty
      values in a bag are skipped, so with `,` the cell `,` is the empty bag. A missing
      cell is the bag `[0]`. The vocabulary maps values to ids. At most the first
      `max_values` non-empty values of a bag are used.

    Any other line is a bad row: one with a wrong number of columns, an invalid label, a
    missing weight or time, a line end inside the line, or an empty line.

    Criteo's lines are a label, 13 integers and 26 categories, separated by tabs: 40
    columns, or 39 if no label is needed. An integer x becomes `log(max(x, 0) + 1)`.

    Args:
        vocabulary: A `Vocabulary`, `HashVocabulary` or `SharedHashVocabulary`.
        asset_dir: Folder for the vocabulary as text files, which a SavedModel then
            copies (see `for_serving`). Default: keep it in memory.
        expander: A `pipelines.MultiHot` that expands one-hot rows, or `None`.

    Call arguments:
        lines: String tensor `(B,)` of valid rows with a label.

    Returns:
        `(features, label)`, or `(features, label, sample_weight)` if the schema has a
        column of weights. `features["dense_features"]` is float32 `(B, num_dense)`,
        absent without dense features; `features["sparse_features"]` is an int64
        `tf.RaggedTensor` `(B, num_sparse, None)` of ragged rank 2 with uniform middle
        dimension; `features["sparse_weights"]`, if values have weights, is the same in
        float32; `label` and `sample_weight` are float32 `(B,)`.

    Raises:
        tf.errors.InvalidArgumentError: If a line is not a valid row; the message shows
            it.

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

    # The following is made at first use: the sizes alone do not need the patterns.

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
        """Turn lines with or without labels into features.

        Args:
            lines: String tensor `(B,)` of valid rows, each with or without a label.

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
        """Return masks of the valid rows and the plain rows, for `parse`.

        Args:
            lines: String tensor `(B,)`.
            labelled: Whether a row must have a label; if not, a line without the
                label's column is a row, too.

        Returns:
            `(valid, plain)`, two bool tensors `(B,)`. Plain rows are the common kind
            that can be split without further checks.
        """
        return self._ops.check(_as_lines(lines), labelled)

    def parse(self, lines: tf.Tensor, plain: tf.Tensor, labelled: bool = True) -> Any:
        """Turn lines that are valid according to `check` into features and labels.

        Args:
            lines: String tensor `(B,)` of rows.
            plain: bool tensor `(B,)`, from `check`.
            labelled: The value that was passed to `check`.

        Returns:
            The result of calling the parser, or only the features if not `labelled`.
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

        A message contains the cells of a line by column name, for Criteo int64 `I1` ..
        `I13` with at most one value, and bytes `C1` .. `C26` with any number of values;
        see `example_features`. An absent feature is a missing cell. The rules are those
        of lines; several values are a bag.

        Args:
            examples: String tensor `(B,)`.

        Returns:
            The features that calling the parser returns.

        Raises:
            tf.errors.InvalidArgumentError: If a message is not a `tf.Example`, a
                feature has another type, or a number has several values.
        """
        return self._assemble(self._examples.split(examples))

    def example_features(self) -> dict[str, str]:
        """The type of each feature in `features_of_examples`, by name."""
        return self._examples.describe()

    def _assemble(self, cells):
        schema = self.schema
        if self._lookup is None:
            self.vocabulary.refuse()
        bags = self._assembly.bags(cells, self._lookup)
        features = make_features(
            self._assembly.dense(cells.numbers) if schema.dense else None,
            bags.ids,
            bags.row_splits,
            bags.weights,
            len(schema.sparse),
            tf.shape(cells.fields[0], tf.int64)[0],
        )
        return self.expand(features)

    def expand(self, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return the features after the expander, if there is one."""
        return features if self.expander is None else self.expander.expand(features)

    def is_valid(self, lines: tf.Tensor, labelled: bool = True) -> tf.Tensor:
        """Return a mask of the lines that are valid rows.

        Args:
            lines: String tensor `(B,)`.
            labelled: Whether a row must have a label.

        Returns:
            bool tensor `(B,)`.
        """
        return self.check(lines, labelled)[0]

    def reason(self, line: bytes, labelled: bool = True) -> str | None:
        """Return the reason that a line is not a valid row, or `None` if it is valid.

        This is computed in plain Python.
        """
        return self._rules.reason(line, labelled)

    def spec(self, embedding_dim: int = 16) -> FeatureSpec:
        """Return the `FeatureSpec` of a model for the features of this parser.

        Args:
            embedding_dim: Width of tables for which the schema sets no width.
        """
        schema, sizes = self.schema, self.vocabulary.sizes
        if not self.vocabulary.is_shared:
            return schema.spec(sizes, embedding_dim)
        features = schema.sparse_features
        table = EmbeddingTable("shared", sizes[0], embedding_dim, features=features)
        return FeatureSpec(schema.dense_features, [table])

    def sample_lines(self, num_lines: int = 16) -> list[bytes]:
        """Return made-up lines that cover the vocabulary, to compare serving paths.

        They have known and unknown values, bags with several values (without an
        expander), missing fields and negative integers.

        Args:
            num_lines: Number of lines, without labels if lines may lack them.
        """
        has_bags = self.expander is None
        return samples.sample_lines(self._rules, self.vocabulary, num_lines, has_bags)

    def to_examples(self, lines: list[bytes]) -> list[bytes]:
        """Return lines as serialized `tf.Example` messages, without labels.

        Args:
            lines: Rows, with or without a label.

        Raises:
            ValueError: If a row has a wrong number of columns.
        """
        return self._examples.write(lines, self._rules)

    # For exports, see `tf_dlrm.serving.Preprocessor`.

    @property
    def lines_signature(self) -> str:
        """Name of the signature for `features` in an export."""
        return "serving_tsv" if self._is_criteo else "serving_lines"

    @property
    def line_columns(self) -> list[str]:
        """The columns of a line in order, without the label's if it may be missing."""
        names = [str(column) for column in self._rules.columns]
        if self._rules.is_exact:
            del names[self._rules.label_position]
        return names

    @property
    def delimiter(self) -> str:
        """The byte between the columns of a line."""
        return self.schema.text.delimiter

    def export_files(self) -> dict[str, str]:
        """Return the schema as a file to store with an export."""
        return {"schema.json": self.schema.to_json() + "\n"}

    def for_serving(self) -> "Parser":
        """Return an equal parser to store in a SavedModel.

        Its vocabulary is made from text files in a temporary folder that exists as long
        as the returned parser, or until its `close()`. `tf.saved_model.save` copies
        them to the model's `assets`. The vocabulary of this parser would instead be
        stored as constants of the graph, which are limited to 2 GB.

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
        parser._folder = folder  # removed together with the parser
        return parser

    def close(self) -> None:
        """Remove the files of a parser from `for_serving`, after it is stored."""
        if self._folder is not None:
            self._folder.cleanup()


def _as_lines(lines):
    lines = tf.convert_to_tensor(lines, tf.string)
    if lines.shape.rank not in (1, None):
        raise ValueError(
            "`lines` must be a string tensor of shape (batch,). "
            f"Received: lines of shape {lines.shape}"
        )
    return lines
