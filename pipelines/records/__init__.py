"""The binary form of click logs: NumPy files of rows, a manifest, and fast readers.

It is a folder of shards that NumPy alone can read (see `layout`). The layout of
torchrec and MLPerf, which differs only in file names, can be read too. Names are
imported at first use, as preparing data does not need TensorFlow.
"""

from pipelines.lazy_names import import_lazily

_MEMBERS = {
    "Manifest": "pipelines.records.layout",
    "Schema": "pipelines.records.layout",
    "Shard": "pipelines.records.layout",
    "Writer": "pipelines.records.writer",
    "read": "pipelines.records.record_batches",
    "read_npy": "pipelines.records.npy_files",
}

__all__ = [*_MEMBERS]
__getattr__, __dir__ = import_lazily(__name__, _MEMBERS)
