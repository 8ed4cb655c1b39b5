"""`Preprocessor`: the methods of an object that turns raw fields into features."""

from collections.abc import Mapping
from typing import Any, Protocol

import tensorflow as tf

from tf_dlrm.features import FeatureSpec

# Name of the signature of lines where a preprocessor does not say.
DEFAULT_LINES = "serving_tsv"


class Preprocessor(Protocol):
    """The methods by which an export asks for raw fields, such as `pipelines.Parser`.

    Only `spec`, `features` and `for_serving` are needed. An object without
    `features_of_examples` and `example_features` has no `serving_examples`; one without
    `sample_lines` and `to_examples` has no recorded requests of raw fields and no
    example of them.

    Attributes:
        lines_signature: Name of the signature of `features`, `None` for none; without
            the attribute `"serving_tsv"`.
        line_columns: Names of the columns of a line, without the label, to read.
        delimiter: What stands between them.
    """

    lines_signature: str | None
    line_columns: list[str]
    delimiter: str

    def spec(self, embedding_dim: int = 16) -> FeatureSpec:
        """Return the columns of a model for these features."""
        ...

    def features(self, lines: tf.Tensor) -> dict[str, Any]:
        """Turn lines `(B,)`, strings, into features in packed form."""
        ...

    def features_of_examples(self, examples: tf.Tensor) -> dict[str, Any]:
        """Turn serialized `tf.Example` messages `(B,)` into features."""
        ...

    def example_features(self) -> dict[str, str]:
        """Return the type of each feature of a message, by name, for a person."""
        ...

    def sample_lines(self, num_lines: int = 16) -> list[bytes]:
        """Make lines to compare two ways of serving them."""
        ...

    def to_examples(self, lines: list[bytes]) -> list[bytes]:
        """Make serialized messages of the same fields."""
        ...

    def export_files(self) -> Mapping[str, str]:
        """Return texts for `assets.extra`, by file name."""
        ...

    def for_serving(self) -> "Preprocessor":
        """Return an equal object to store in a SavedModel."""
        ...

    def close(self) -> None:
        """Remove temporary files of an object from `for_serving`, once it is stored."""
        ...


def lines_signature(preprocessor: Any) -> str | None:
    """Return the name of the signature of lines; `None` if there is none."""
    name: str | None = getattr(preprocessor, "lines_signature", DEFAULT_LINES)
    return name
