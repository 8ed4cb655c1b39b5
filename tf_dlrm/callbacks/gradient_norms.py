"""`GradientNormLogger`: norms of gradients."""

from tf_dlrm.callbacks.watcher import TRAIN, Watcher
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Logs, PathLike
from tf_dlrm.training.probes import GradientNorms


class GradientNormLogger(Watcher):
    """Write the global norms of the gradients of the MLPs and of the pooled vectors.

    Entries are under `gradients/` and cover the steps since the last entry: the mean
    norms (`dense_norm`, `pooled_norm`) and the largest ones (`dense_norm_max`,
    `pooled_norm_max`). Gradients are those of the mean loss of the global batch. There
    is no norm for tables, because the gradient of a whole table is never computed.

    Args:
        log_dir: Folder of the run's logs.
        every_steps: Number of steps between two entries.

    Raises:
        TypeError: If the model is not a `DLRM`.
        ValueError: If `every_steps` is not positive.
    """

    probe = GradientNorms

    def __init__(self, log_dir: PathLike, every_steps: int = 50) -> None:
        super().__init__(log_dir)
        if every_steps < 1:
            raise UserError(
                f"`every_steps` must be at least 1. Received: {every_steps}"
            )
        self._every_steps = every_steps

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._is_first_batch = True

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        if self._is_first_batch:  # not 0 in a resumed epoch
            self._written, self._is_first_batch = batch, False

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if (batch + 1) // self._every_steps > self._written // self._every_steps:
            self._written = batch + 1
            self._write_norms()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._write_norms()

    def _write_norms(self) -> None:
        norms = self._probe.take()
        self._write(TRAIN, {f"gradients/{name}": norms[name] for name in norms})
