"""Criteo's click logs: text lines -> features, in training and in serving alike.

`Parser` is the definition of the format, in TensorFlow operations; `read` makes a
`tf.data.Dataset` of files with it.
"""

from pipelines.criteo.parser import Parser
from pipelines.criteo.reading import read

__all__ = ["Parser", "read"]
