"""Initial rows of tables: Keras' initializers, and rows that are given."""

import base64
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError

_MAX_BYTES = 16 << 20  # the rows are text in the model's config


@keras.saving.register_keras_serializable(package="tf_dlrm")
class GivenRows(keras.initializers.Initializer):
    """Rows that are known, such as pretrained vectors.

    Args:
        rows: float32 `(vocabulary_size, embedding_dim)`.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = np.array(rows, np.float32)

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        if tuple(shape) != self.rows.shape:
            raise UserError(f"The rows are {self.rows.shape}. Asked for: {shape}")
        return tf.cast(self.rows, dtype or "float32")

    def get_config(self) -> dict[str, Any]:
        """Return the rows as text: base64 of little-endian float32."""
        data = base64.b64encode(self.rows.astype("<f4").tobytes()).decode()
        return {"rows": data, "shape": list(self.rows.shape)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GivenRows":
        """Make an initializer from `get_config()`."""
        data = np.frombuffer(base64.b64decode(config["rows"]), "<f4")
        return cls(data.reshape(config["shape"]))


def get(identifier: Any, table: str, shape: tuple[int, int]) -> Any:
    """Return the initializer of a table, which a file can hold.

    Args:
        identifier: As the `initializer` of `EmbeddingTable`.
        table: The table's name, for messages.
        shape: The table's shape.

    Raises:
        ValueError: For rows of another shape, or too many.
        TypeError: For a function that no file can hold.
    """
    if identifier is None:
        return None
    kinds = (np.ndarray, tf.Tensor, tf.Variable, list, tuple)
    if isinstance(identifier, kinds) or type(identifier).__name__ == "DataFrame":
        try:
            identifier = GivenRows(identifier)
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"`initializer` of table '{table}' must be a matrix of numbers. {error}"
            ) from None
    if isinstance(identifier, GivenRows) or _is_config_of_rows(identifier):
        initializer = keras.initializers.get(identifier)
        if initializer.rows.shape != shape:
            raise UserError(
                f"`initializer` of table '{table}' must have its shape {shape}. "
                f"Received rows of shape: {initializer.rows.shape}"
            )
        if not np.isfinite(initializer.rows).all():
            raise UserError(
                f"`initializer` of table '{table}' must hold finite numbers. Received "
                f"{int((~np.isfinite(initializer.rows)).sum()):,} that are not"
            )
        if initializer.rows.nbytes > _MAX_BYTES:
            raise UserError(
                f"`initializer` of table '{table}' may hold at most {_MAX_BYTES >> 20} "
                f"MiB of rows. Received: {initializer.rows.nbytes:,} bytes. Set them "
                f"once the model is made: model.embedding.set_table('{table}', rows)"
            )
        return initializer
    initializer = keras.initializers.get(identifier)
    name = getattr(initializer, "__qualname__", "")
    has_config = isinstance(initializer, type) or hasattr(initializer, "get_config")
    if "<" in name or not (has_config or name):
        raise TypeError(
            f"`initializer` of table '{table}' is a function that a saved model cannot "
            "hold. Give the rows as an array, or a subclass of "
            "keras.initializers.Initializer with `get_config`. Received: "
            f"{identifier!r}"
        )
    return initializer


def _is_config_of_rows(identifier: Any) -> bool:
    return isinstance(identifier, dict) and identifier.get("class_name") == "GivenRows"
