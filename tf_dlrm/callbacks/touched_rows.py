"""`TouchedRowLogger`: the share of each table that is in use."""

from tf_dlrm.callbacks.watcher import TRAIN, Watcher
from tf_dlrm.runtime.types import Logs
from tf_dlrm.training.probes import RowMarks


class TouchedRowLogger(Watcher):
    """Write the share of touched and of dead rows of each table after each epoch.

    `rows_touched/<table>`: rows that a training batch of the epoch looked up;
    `rows_dead/<table>`: rows that no batch has looked up since `fit` began (a resumed
    run starts counting again). `all` stands for all tables. Rows that stay dead waste
    memory: raise `min_count`, or hash into fewer buckets.

    A byte for each row is kept in host memory (10 million rows: 10 MB), and a step
    writes those of its ids.

    Args:
        log_dir: Folder of the run's logs.

    Raises:
        TypeError: If the model is not a `DLRM`.
    """

    probe = RowMarks

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._probe.begin_epoch()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        counts = self._probe.count()
        counts["all"] = [sum(each) for each in zip(*counts.values())]
        values = {}
        for name, (num_rows, touched, never) in counts.items():
            values[f"rows_touched/{name}"] = touched / num_rows
            values[f"rows_dead/{name}"] = never / num_rows
        self._write(TRAIN, values)
