"""The binary form of click logs: NumPy files of rows, a manifest, and fast readers.

It is a folder of shards that NumPy alone can read (see `layout`). The layout of
torchrec and MLPerf, which differs only in file names, can be read too. Names are
imported at first use, as preparing data does not need TensorFlow.
"""

import importlib

_MEMBERS = {
    "Manifest": "pipelines.records.layout",
    "Schema": "pipelines.records.layout",
    "Shard": "pipelines.records.layout",
    "Writer": "pipelines.records.writer",
    "read": "pipelines.records.record_batches",
    "read_npy": "pipelines.records.npy_files",
}

__all__ = [*_MEMBERS]


def __getattr__(name):
    if name in _MEMBERS:
        return getattr(importlib.import_module(_MEMBERS[name]), name)
    raise AttributeError(f"module 'pipelines.records' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
