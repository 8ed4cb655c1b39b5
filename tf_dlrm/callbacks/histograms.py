"""`HistogramLogger`: distributions of weights."""

import numpy as np
import tensorflow as tf

from tf_dlrm.callbacks.watcher import TRAIN, Watcher
from tf_dlrm.runtime.types import Logs

_SAMPLED_ROWS = 4096


class HistogramLogger(Watcher):
    """Write histograms of the MLPs' weights and of each table after each epoch.

    Kernels and biases are under `weights/`. The values of up to 4,096 rows of each
    table are under `rows/`; these rows are evenly spread and the same in each epoch.

    Args:
        log_dir: Folder of the run's logs.
    """

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        with self._events(TRAIN):
            for variable in self.model.dense_variables:
                # Remove the name of the model from the path.
                name = variable.path.partition("/")[2] or variable.path
                tf.summary.histogram(f"weights/{name}", variable.numpy())
            for table in self.model.spec.tables:
                size = table.vocabulary_size
                sample = np.linspace(0, size - 1, min(size, _SAMPLED_ROWS)).astype(int)
                rows = self.model.embedding.get_rows(table.name, sample)
                tf.summary.histogram(f"rows/{table.name}", rows)
