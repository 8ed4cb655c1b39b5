"""Criteo's click logs: text lines -> features, in training and in serving alike.

`Parser` is the definition of the format, in TensorFlow operations; `read` makes a
`tf.data.Dataset` of files. `columns` is the same in NumPy, fast and without TensorFlow.
"""

import importlib

_MEMBERS = {"Parser": "pipelines.criteo.parser", "read": "pipelines.criteo.reading"}

__all__ = ["Parser", "read"]


def __getattr__(name):
    if name in _MEMBERS:
        return getattr(importlib.import_module(_MEMBERS[name]), name)
    raise AttributeError(f"module 'pipelines.criteo' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
