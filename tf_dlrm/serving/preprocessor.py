"""`Preprocessor`: the interface of objects that convert raw fields to features."""

from collections.abc import Mapping
from typing import Any, Protocol

import tensorflow as tf

from tf_dlrm.features import FeatureSpec

# Default name of the signature for lines.
DEFAULT_LINES = "serving_tsv"


class Preprocessor(Protocol):
    """Interface of objects, such as `pipelines.Parser`, that convert raw fields.

    An export requires only `spec`, `features` and `for_serving`. Without
    `features_of_examples` and `example_features`, it has no `serving_examples`. Without
    `sample_lines` and `to_examples`, it has no recorded requests and no example
    requests with raw fields.

    Attributes:
        lines_signature: Name of the signature that calls `features`, or `None` for no
            such signature. If the attribute is missing: `"serving_tsv"`.
        line_columns: Names of the columns of a line, without the label, for people.
        delimiter: Separator of the columns.
    """

    lines_signature: str | None
    line_columns: list[str]
    delimiter: str

    def spec(self, embedding_dim: int = 16) -> FeatureSpec:
        """Return the `FeatureSpec` of a model for these features."""
        ...

    def features(self, lines: tf.Tensor) -> dict[str, Any]:
        """Convert lines, string `(B,)`, to features in packed form."""
        ...

    def features_of_examples(self, examples: tf.Tensor) -> dict[str, Any]:
        """Convert serialized `tf.Example` messages, string `(B,)`, to features."""
        ...

    def example_features(self) -> dict[str, str]:
        """Return the types of a message's features by name, as text for people."""
        ...

    def sample_lines(self, num_lines: int = 16) -> list[bytes]:
        """Return example lines for recorded requests."""
        ...

    def to_examples(self, lines: list[bytes]) -> list[bytes]:
        """Return serialized `tf.Example` messages with the fields of lines."""
        ...

    def export_files(self) -> Mapping[str, str]:
        """Return the contents of further files for `assets.extra`, by file name."""
        ...

    def for_serving(self) -> "Preprocessor":
        """Return an equivalent object to store in a SavedModel."""
        ...

    def close(self) -> None:
        """Remove the temporary files of an object that `for_serving` returned."""
        ...


def lines_signature(preprocessor: Any) -> str | None:
    """Return the name of the signature for lines, or `None` if there is none."""
    name: str | None = getattr(preprocessor, "lines_signature", DEFAULT_LINES)
    return name
