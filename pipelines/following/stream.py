"""`Stream`: the files of a growing folder as one dataset, one epoch of `fit` each.

A file is evaluated before the model is trained on it (progressive validation), and one
that cannot be read, or has too many bad rows, is refused before it trains anything.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.following.growing_folder import Arrival, GrowingFolder
from pipelines.formats.parser import Parser
from pipelines.formats.reading import read
from pipelines.formats.scanning import ChunkReader
from pipelines.pipeline_errors import clear_errors
from pipelines.quarantine import Quarantine
from pipelines.runs.config import RunConfig
from pipelines.runtime import UserError
from pipelines.schema import Schema
from tf_dlrm.training.checkpoints import Position, ResumableInput

_METRICS = ("auc", "log_loss", "normalized_entropy", "calibration")


def event_time(path: str, schema: Schema) -> float:
    """Return the median event time of the first block of a file, or infinity."""
    reader = ChunkReader(schema)
    chunk = reader.read(path, 0)
    rows = reader.take_apart(path, chunk.content) if chunk.size else None
    if rows is None or not len(rows.times):
        return float("inf")
    return float(np.median(rows.times))


class Stream(keras.callbacks.Callback):
    """The files as a dataset, and the callback that moves from one to the next.

    List it in `fit` after the callbacks that save and publish: at the end of a file it
    waits for the next one.

    Args:
        source: The folder.
        parser: The parser.
        config: Config of the run.
        record: Function that is called with the facts of each file.
        while_waiting: Function that is called while it waits in a `fit`; it may raise
            to end the run.

    Attributes:
        current: The file that the model is trained on, or `None`.
    """

    def __init__(
        self,
        source: GrowingFolder,
        parser: Parser,
        config: RunConfig,
        record: Callable[[dict[str, Any]], None],
        while_waiting: Callable[[], None] = lambda: None,
    ):
        super().__init__()
        self._source, self._parser, self._config = source, parser, config
        self._record, self._while_waiting = record, while_waiting
        self.current: Arrival | None = None
        self.quarantine = self._new_quarantine()
        self._facts: dict[str, Any] = {}
        self._start, self._is_fitting = 0.0, False

    # State in checkpoints

    def get_state(self) -> dict[str, Any]:
        """Return the state that a resumed run continues from, JSON-safe."""
        current = None if self.current is None else list(self.current)
        return {**self._source.get_state(), "current": current, "facts": self._facts}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Set the state that `get_state` returned."""
        self._source.set_state(state)
        self._facts = dict(state["facts"])
        if state["current"] is not None:
            path, name, key, is_late = state["current"]
            self.current = Arrival(path, name, tuple(key), is_late)

    # The dataset

    def dataset(self) -> tf.data.Dataset:
        """Return the rows of the current file, at each iteration."""
        description = {
            "follow": str(self._source.folder),
            "batch_size": self._config.batch_size,
            "shuffle": self._config.shuffle,
            "seed": self._config.seed,
        }
        resumable = ResumableInput(
            description, self._config.seed, self._make, epochs_differ=True
        )
        return resumable.attach(self._make(Position(), self._config.seed))

    def _make(self, position: Position, seed: int) -> tf.data.Dataset:
        def batches():
            own = Position()
            own.epoch, own.batch = position.epoch, position.batch
            yield from self._read(self.quarantine, True).resumable_input.make(own, seed)

        spec = self._read(self._new_quarantine(), False).element_spec
        dataset = tf.data.Dataset.from_generator(batches, output_signature=spec)
        return dataset.prefetch(2)

    def _read(self, quarantine: Quarantine, trains: bool) -> Any:
        assert self.current is not None
        return read(
            self.current.path,
            self._parser,
            self._config.batch_size,
            shuffle=trains and self._config.shuffle,
            seed=self._config.seed,
            quarantine=quarantine,
        )

    def _new_quarantine(self) -> Quarantine:
        return Quarantine(max_bad_share=self._config.max_bad_share)

    # From file to file

    def begin(self, model: keras.Model | None) -> bool:
        """Wait for the next file, unless one is being trained on.

        Args:
            model: The model to evaluate on it first; `None`: it has not been trained.

        Returns:
            False if no file came in time.
        """
        while self.current is None:
            self.current = self._wait()
            if self.current is None:
                return False
            self._facts = {}
            fault = "" if model is None else self._evaluate(model)
            if fault:
                self._source.take(self.current, "refused")
                self._record({"file": self.current.name, "refused": fault})
                self.current = None
        self.quarantine = self._new_quarantine()
        return True

    def _wait(self) -> Arrival | None:
        start, limit = time.monotonic(), self._source.arrivals.idle_seconds
        while True:
            if self._is_fitting:
                self._while_waiting()
            arrival = self._source.next()
            if arrival is not None:
                return arrival
            if limit is not None and time.monotonic() - start >= limit:
                return None
            time.sleep(self._source.arrivals.poll_seconds)

    def _evaluate(self, model: keras.Model) -> str:
        """Evaluate on the current file; return why it is refused, or ""."""
        quarantine = self._new_quarantine()
        try:
            with clear_errors(quarantine):
                rows = self._read(quarantine, False)
                results = model.evaluate(rows, verbose=0, return_dict=True)
        except (UserError, OSError) as error:
            return str(error)
        self._facts["rows"] = quarantine.num_rows - quarantine.num_bad
        names = [name for name in _METRICS if name in results]
        self._facts |= {f"val_{name}": float(results[name]) for name in names}
        return ""

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._is_fitting = time.monotonic(), True

    def finish(self, logs: Mapping[str, float] | None) -> None:
        """Note that the current file is done with, before a checkpoint is saved."""
        assert self.current is not None
        self._source.take(self.current)
        rows = self.quarantine.num_rows - self.quarantine.num_bad
        self._facts |= {
            "file": self.current.name,
            "late": self.current.is_late,
            "rows": self._facts.get("rows", rows),
            "bad_rows": self.quarantine.num_bad,
            "loss": float((logs or {}).get("loss", float("nan"))),
            "step": int(self.model.optimizer.iterations.numpy()),
            "seconds": round(time.monotonic() - self._start, 3),
        }
        self._record(self._facts)
        self.current, self._facts = None, {}

    def on_epoch_end(self, epoch, logs=None):
        if not self.begin(self.model):
            print("No new file came in time; training ends.", flush=True)
            self.model.stop_training = True


class Finish(keras.callbacks.Callback):
    """Callback that notes the end of a file; list it before those that save."""

    def __init__(self, stream: Stream):
        super().__init__()
        self._stream = stream

    def on_epoch_end(self, epoch, logs=None):
        self._stream.finish(logs)
