"""Types that many signatures share. Needs the standard library only."""

import os
from typing import Any, TypeAlias

PathLike = str | os.PathLike[str]
Logs = dict[str, float] | None  # what Keras gives to callbacks
Shape = tuple[int | None, ...]
# TensorFlow has no types: what is meant is a tf.Tensor, a tf.RaggedTensor or, outside
# of the engine, a NumPy array.
Ids: TypeAlias = Any
