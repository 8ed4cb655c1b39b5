"""`RowNormLogger`: norms of the vectors of each table."""

import numpy as np

from tf_dlrm.callbacks.watcher import TRAIN, Watcher
from tf_dlrm.embedding.contract import EmbeddingLayer
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.types import Logs


class RowNormLogger(Watcher):
    """Write the mean and largest Euclidean norm of each table's rows after each epoch.

    The entries are `row_norm_mean/<table>` and `row_norm_max/<table>`. The callback
    reads all rows, a few megabytes at a time, which takes about a second for 10 million
    rows of width 16.

    Args:
        log_dir: Folder of the run's logs.
    """

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        values = {}
        for table in self.model.spec.tables:
            mean, largest = row_norms(self.model.embedding, table)
            values[f"row_norm_mean/{table.name}"] = mean
            values[f"row_norm_max/{table.name}"] = largest
        self._write(TRAIN, values)


def row_norms(embedding: EmbeddingLayer, table: EmbeddingTable) -> tuple[float, float]:
    """Return the mean and the largest norm of the rows of a table.

    Args:
        embedding: The embedding layer.
        table: The `EmbeddingTable`.
    """
    total, largest = 0.0, 0.0
    own = None
    if table.growing is not None:  # not its empty rows
        own = np.flatnonzero(embedding.get_ids(table.name) >= 0)
        if not len(own):
            return 0.0, 0.0
    num_rows = table.vocabulary_size if own is None else len(own)
    for a, b in row_ops.block_ranges(num_rows, table.embedding_dim):
        places = np.arange(a, b) if own is None else own[a:b]
        rows = embedding.get_rows(table.name, places)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        total += float(norms.sum())
        largest = np.maximum(largest, norms.max())  # keeps NaN
    return total / num_rows, float(largest)
