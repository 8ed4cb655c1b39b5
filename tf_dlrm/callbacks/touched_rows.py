"""`TouchedRowLogger`: the share of each table's rows that are in use."""

from tf_dlrm.callbacks.watcher import TRAIN, Watcher
from tf_dlrm.runtime.types import Logs
from tf_dlrm.training.probes import RowMarks


class TouchedRowLogger(Watcher):
    """Write the shares of touched and dead rows of each table after each epoch.

    `rows_touched/<table>` is the share of rows that training batches of the epoch
    looked up. `rows_dead/<table>` is the share of rows that no batch has looked up
    since `fit` began (a resumed run starts counting again). The name `all` stands for
    all tables together. Rows that stay dead waste memory: raise `min_count`, or hash
    into fewer buckets.

    The callback uses one byte of host memory per row (10 MB for 10 million rows), and
    each step writes the bytes of its ids.

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
        counts["all"] = [sum(column) for column in zip(*counts.values())]
        values = {}
        for name, (num_rows, touched, never) in counts.items():
            values[f"rows_touched/{name}"] = touched / num_rows
            values[f"rows_dead/{name}"] = never / num_rows
        self._write(TRAIN, values)
