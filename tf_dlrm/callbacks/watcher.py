"""Where the callbacks of this package write: TensorBoard's event files."""

import pathlib
import weakref

import keras
import tensorflow as tf

TRAIN, VALIDATION = "train", "validation"

# One writer a folder: of several files in one folder that grow at the same time
# TensorBoard would follow the last alone.
_writers = weakref.WeakValueDictionary()


def writer_of(folder: pathlib.Path):
    """The writer of a folder, which everybody who holds it shares."""
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

    probe = None
    """Kind of the probe in the step that this callback needs."""

    def __init__(self, log_dir):
        super().__init__()
        self.log_dir = pathlib.Path(log_dir)
        self._writers = {}

    def set_model(self, model):
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

    def _events(self, part: str = ""):
        """Context in which `tf.summary` writes to a part of the logs, at this step."""
        if part not in self._writers:
            self._writers[part] = writer_of(self.log_dir / part)
        return self._writers[part].as_default(step=self._step())

    def _write(self, part: str, values: dict) -> None:
        with self._events(part):
            for name, value in values.items():
                tf.summary.scalar(name, float(value))

    def on_train_end(self, logs=None):
        self.on_fit_exit()

    def on_fit_exit(self):
        """Called at the end of a DLRM's `fit`, also where it fails."""
        if self.probe is not None and self.model is not None:
            self.model.drop_probe(self.probe)
        for writer in self._writers.values():
            writer.flush()
        self._writers = {}  # the last who had it closes it
