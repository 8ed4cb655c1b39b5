"""Types that many signatures share; needs only the standard library."""

import os
from typing import Any, TypeAlias

PathLike = str | os.PathLike[str]
Logs = dict[str, float] | None  # what Keras passes to callbacks
Shape = tuple[int | None, ...]
# TensorFlow has no type hints: a tf.Tensor, a tf.RaggedTensor or, outside of the
# engine, a NumPy array.
Ids: TypeAlias = Any
