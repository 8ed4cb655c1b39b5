"""TensorBoard event files that the callbacks of this package share."""

import pathlib
import weakref
from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.runtime.types import Logs, PathLike

TRAIN, VALIDATION = "train", "validation"

# One writer per folder: if several files in one folder grow at the same time,
# TensorBoard follows only the last one.
_writers: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def writer_of(folder: pathlib.Path) -> tf.summary.SummaryWriter:
    """Return the writer of a folder, which all callbacks with this folder share."""
    key = str(folder.resolve())
    writer = _writers.get(key)
    if writer is None:
        writer = tf.summary.create_file_writer(key, flush_millis=5_000)
        _writers[key] = writer
    return writer


class Watcher(keras.callbacks.Callback):
    """Base class of callbacks that write for TensorBoard, with the step as x axis.

    Args:
        log_dir: Folder of the run's logs; several callbacks may share it.
    """

    probe: type | None = None
    """Class of the probe that this callback needs in the steps, or `None`."""
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
                f"{type(self).__name__} requires a tf_dlrm.DLRM. Received: "
                f"{type(model).__name__}"
            )
        self._probe = model.use_probe(self.probe)

    def _step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())

    def _events(self, part: str = "") -> Any:
        """Return a context in which `tf.summary` writes to a part of the logs."""
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
        """Flush and release the logs; called after a DLRM's `fit`, even if it fails."""
        if self.probe is not None and self.model is not None:
            self.model.drop_probe(self.probe)
        for writer in self._writers.values():
            writer.flush()
        self._writers = {}  # a writer closes when no callback uses it
