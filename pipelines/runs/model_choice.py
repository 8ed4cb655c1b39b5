"""Choose the model of a run with few rows: train each candidate, keep the best one."""

import dataclasses
import math
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from pipelines.evaluation.permutation_importance import score
from pipelines.formats.parser import Parser
from pipelines.progress import bar
from pipelines.records.memory_store import MemoryStore
from pipelines.records.order import WINDOW_ROWS
from pipelines.records.record_batches import make_dataset
from pipelines.runs import build_model
from pipelines.runs.config import RunConfig
from pipelines.runs.data import TrainingData

# Rows of a validation that are read at most: their AUC is exact to 0.002.
_MOST_VALID_ROWS = 100_000
# Passes that tell the models apart, whatever early stopping would allow a run.
_MOST_EPOCHS = 4


@dataclasses.dataclass(frozen=True)
class Choice:
    """The result of a comparison of models.

    Attributes:
        chosen: Name of the best model.
        monitor: The metric that they were compared by.
        values: Its value for each name; `None` if it is not finite.
        num_rows: Number of rows that the models were trained on.
        num_held_out: Number of training rows that they were compared on; 0: validation
            rows.
        by_time: Whether these are the rows with the latest event times.
    """

    chosen: str
    monitor: str
    values: dict[str, float | None]
    num_rows: int
    num_held_out: int
    by_time: bool

    def describe(self) -> str:
        """Return a line with the values."""
        rows = "the validation rows"
        if self.num_held_out:
            place = "latest" if self.by_time else "last"
            rows = f"the {place} {self.num_held_out:,} of the training rows"
        values = ", ".join(
            f"{name} {'none' if value is None else format(value, '.4f')}"
            for name, value in self.values.items()
        )
        return (
            f"Compared models of {self.num_rows:,} rows by the {self.monitor} of "
            f"{rows}: {values}. Chosen: {self.chosen}."
        )


def choose(candidates: Mapping[str, RunConfig], data: TrainingData) -> Choice:
    """Train each candidate, and choose the best one.

    Without validation rows, the candidates are trained on the first four fifths of the
    training rows and compared on the others.

    Args:
        candidates: Complete configs by name, all with the same monitored metric.
        data: The data of the run.
    """
    rows, valid_dataset = data.load_rows(), data.dataset_to_compare()
    train, held_out, rate = rows.batch, None, data.negative_sampling_rate
    if valid_dataset is None:
        train, held_out = rows.split()
        rate = 1.0  # both parts are sampled alike
    schema = data.vocabulary.schema
    num_rows = len(train.labels)
    values: dict[str, float | None] = {}
    total = num_rows * sum(min(c.epochs, _MOST_EPOCHS) for c in candidates.values())
    with bar("Comparing models", total) as update:
        progress = _Progress(update, num_rows)
        for name, config in candidates.items():
            if held_out is None:
                num_batches = math.ceil(_MOST_VALID_ROWS / config.batch_size)
                valid_batches = valid_dataset.take(num_batches)
            else:
                valid_batches = _batches(held_out, config, schema)
            keras.utils.set_random_seed(config.seed)
            model = build_model.make_model(
                config,
                Parser(data.vocabulary).spec(config.embedding_dim),
                negative_sampling_rate=rate,
            )
            epochs = min(config.epochs, _MOST_EPOCHS)
            num_steps = epochs * math.ceil(num_rows / config.batch_size)
            build_model.compile_model(
                model, config, num_steps, schema=schema, with_metrics=False
            )
            model.fit(
                _batches(train, config, schema, config.shuffle),
                epochs=epochs,
                verbose=0,
                callbacks=[progress],
            )
            log_loss, auc = score(*_predict(model, valid_batches))
            value = auc if config.monitor == "auc" else log_loss
            values[name] = value if math.isfinite(log_loss + value) else None
    monitor = next(iter(candidates.values())).monitor
    return Choice(
        _best(values, monitor),
        monitor,
        values,
        num_rows,
        0 if held_out is None else len(held_out.labels),
        held_out is not None and rows.times is not None,
    )


def _batches(batch, config, schema, shuffle=False):
    """Return rows in memory as a dataset."""
    return make_dataset(
        MemoryStore(batch),
        (len(schema.dense), len(schema.sparse)),
        config.batch_size,
        shuffle,
        config.seed,
        WINDOW_ROWS,
        repeat=False,
        first_batch=0,
        drop_remainder=False,
        worker=0,
        num_workers=1,
    )


def _predict(model, dataset):
    """Return labels, predictions and weights of the rows of a dataset."""
    predict = tf.function(
        lambda features: model(features, training=False)[:, 0],
        input_signature=[dataset.element_spec[0]],
        autograph=False,
    ).get_concrete_function()
    pieces = []
    for features, label, *weight in dataset:
        label = tf.reshape(label, [-1])
        weight = tf.reshape(weight[0], [-1]) if weight else tf.ones_like(label)
        pieces.append((label, predict(features), weight))
    columns = zip(*pieces, strict=True)
    return [np.concatenate(column).astype(np.float64) for column in columns]


def _best(values: Mapping[str, float | None], monitor: str) -> str:
    """Return the name of the best value; the last one if none is finite."""
    sign = 1 if monitor == "auc" else -1
    finite = {name: sign * v for name, v in values.items() if v is not None}
    return max(finite, key=lambda name: finite[name]) if finite else [*values][-1]


class _Progress(keras.callbacks.Callback):
    """Show on how many rows the models were trained."""

    def __init__(self, update, num_rows):
        super().__init__()
        self._update, self._num_rows, self._done = update, num_rows, 0

    def on_epoch_end(self, epoch, logs=None):
        self._done += self._num_rows
        self._update(self._done)
