"""TensorBoard event files, which the callbacks of this package share."""

import pathlib
import weakref
from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.runtime.types import Logs, PathLike

TRAIN, VALIDATION = "train", "validation"

# One writer a folder: of several files in one folder that grow at the same time
# TensorBoard would follow the last alone.
_writers: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def writer_of(folder: pathlib.Path) -> tf.summary.SummaryWriter:
    """Return the writer of a folder; callbacks of one folder share it."""
    key = str(folder.resolve())
    writer = _writers.get(key)
    if writer is None:
        writer = tf.summary.create_file_writer(key, flush_millis=5_000)
        _writers[key] = writer
    return writer


class Watcher(keras.callbacks.Callback):
    """Base of the callbacks that write for TensorBoard. The x axis is the step.

    Args:
        log_dir: Folder of the run's logs; several callbacks share it.
    """

    probe: type | None = None
    """Kind of the probe in the step that this callback needs."""
    _probe: Any

    def __init__(self, log_dir: PathLike) -> None:
        super().__init__()
        self.log_dir = pathlib.Path(log_dir)
        self._writers: dict[str, Any] = {}

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if self.probe is None:
            return
        if not hasattr(model, "use_probe"):
            raise TypeError(
                f"{type(self).__name__} looks into the steps of a tf_dlrm.DLRM. "
                f"Received: {type(model).__name__}"
            )
        self._probe = model.use_probe(self.probe)

    def _step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())

    def _events(self, part: str = "") -> Any:
        """Context in which `tf.summary` writes to a part of the logs, at this step."""
        if part not in self._writers:
            self._writers[part] = writer_of(self.log_dir / part)
        return self._writers[part].as_default(step=self._step())

    def _write(self, part: str, values: dict) -> None:
        with self._events(part):
            for name, value in values.items():
                tf.summary.scalar(name, float(value))

    def on_train_end(self, logs: Logs = None) -> None:
        self.on_fit_exit()

    def on_fit_exit(self) -> None:
        """Flush and release; called at the end of a DLRM's `fit`, even if it fails."""
        if self.probe is not None and self.model is not None:
            self.model.drop_probe(self.probe)
        for writer in self._writers.values():
            writer.flush()
        self._writers = {}  # the last who had it closes it
