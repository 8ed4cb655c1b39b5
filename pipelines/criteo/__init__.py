"""`Parser` and `read` of `pipelines`, under a name for Criteo's logs."""

import importlib

_MEMBERS = {"Parser": "pipelines.formats.parser", "read": "pipelines.formats.reading"}

__all__ = ["Parser", "read"]


def __getattr__(name):
    if name in _MEMBERS:
        return getattr(importlib.import_module(_MEMBERS[name]), name)
    raise AttributeError(f"module 'pipelines.criteo' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
