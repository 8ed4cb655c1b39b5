"""Initial rows of tables: Keras' initializers, or arrays of rows."""

import base64
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError

_MAX_BYTES = 16 << 20  # the model's config contains the rows as text


@keras.saving.register_keras_serializable(package="tf_dlrm")
class GivenRows(keras.initializers.Initializer):
    """Initializer that returns given rows, such as pretrained vectors.

    Args:
        rows: The rows, float32 `(vocabulary_size, embedding_dim)`.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = np.array(rows, np.float32)

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        if tuple(shape) != self.rows.shape:
            raise UserError(
                f"The rows have shape {self.rows.shape}. Received: shape={shape}"
            )
        return tf.cast(self.rows, dtype or "float32")

    def get_config(self) -> dict[str, Any]:
        """Return the rows as text, base64 of little-endian float32."""
        data = base64.b64encode(self.rows.astype("<f4").tobytes()).decode()
        return {"rows": data, "shape": list(self.rows.shape)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GivenRows":
        """Create an initializer from the result of `get_config()`."""
        data = np.frombuffer(base64.b64decode(config["rows"]), "<f4")
        return cls(data.reshape(config["shape"]))


def get(identifier: Any, table: str, shape: tuple[int, int]) -> Any:
    """Return the initializer of a table in a form that a file can store.

    Args:
        identifier: The argument `initializer` of `EmbeddingTable`.
        table: Name of the table, for messages.
        shape: Shape of the table.

    Raises:
        ValueError: If rows have another shape, are not finite, or take too many bytes.
        TypeError: If the initializer is a function that a file cannot store.
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
    initializer = _interpret(identifier, table)
    if isinstance(initializer, GivenRows):
        if initializer.rows.shape != shape:
            raise UserError(
                f"`initializer` of table '{table}' must have its shape {shape}. "
                f"Received rows of shape: {initializer.rows.shape}"
            )
        if not np.isfinite(initializer.rows).all():
            raise UserError(
                f"`initializer` of table '{table}' must contain only finite numbers. "
                f"Received: {int((~np.isfinite(initializer.rows)).sum()):,} numbers "
                "that are not finite"
            )
        if initializer.rows.nbytes > _MAX_BYTES:
            raise UserError(
                f"`initializer` of table '{table}' may have at most {_MAX_BYTES >> 20} "
                f"MiB of rows. Received: {initializer.rows.nbytes:,} bytes. Set the "
                "rows after creating the model: "
                f"model.embedding.set_table('{table}', rows)"
            )
        return initializer
    name = getattr(initializer, "__qualname__", "")
    has_config = isinstance(initializer, type) or hasattr(initializer, "get_config")
    if "<" in name or not (has_config or name):
        raise TypeError(
            f"`initializer` of table '{table}' is a function that cannot be saved with "
            "a model. Pass an array of rows, or a subclass of "
            "keras.initializers.Initializer with `get_config`. Received: "
            f"{identifier!r}"
        )
    return initializer


def _interpret(identifier: Any, table: str) -> Any:
    """Return the initializer for an object, a name or a config."""
    try:
        return keras.initializers.get(identifier)
    except (ValueError, TypeError, KeyError) as error:
        problem = str(error).partition("\n")[0]
    raise UserError(
        f"`initializer` of table '{table}' must be a Keras initializer, its name or "
        f"its config, or an array of rows. {problem}"
    )
