"""Choose the model of a run with few rows: train each candidate, keep the best one.

A comparison on few rows is noisy, and the simplest model is right more often than not,
so a model with more parameters must be better by more than one standard error.

Reference:
    Breiman et al. 1984, Classification and regression trees, section 3.4.3 (the rule of
    one standard error); DeLong et al. 1988, Comparing the areas under two or more
    correlated ROC curves.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

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
_EPSILON = 1e-7


@dataclasses.dataclass(frozen=True)
class Choice:
    """The result of a comparison of models.

    Attributes:
        chosen: Name of the model that was chosen.
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
            f"{rows}: {values}. Chosen, as the simplest within a standard error of the "
            f"best: {self.chosen}."
        )


def choose(candidates: Mapping[str, RunConfig], data: TrainingData) -> Choice:
    """Train each candidate, and choose the simplest one that is as good as the best.

    Without validation rows, the candidates are trained on the first four fifths of the
    training rows and compared on the others.

    Args:
        candidates: Complete configs by name, the simplest first, all with the same
            monitored metric.
        data: The data of the run.
    """
    rows, valid_dataset = data.load_rows(), data.dataset_to_compare()
    train, held_out, rate = rows.batch, None, data.negative_sampling_rate
    if valid_dataset is None:
        train, held_out = rows.split()
        rate = 1.0  # both parts are sampled alike
    schema = data.vocabulary.schema
    num_rows, scores = len(train.labels), {}
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
            scores[name] = Score.of(*_predict(model, valid_batches), config.monitor)
    monitor = next(iter(candidates.values())).monitor
    return Choice(
        _simplest(scores),
        monitor,
        {name: score.value for name, score in scores.items()},
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


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric of predictions, and what each row contributes to it.

    Attributes:
        value: The metric; `None` if it is not finite.
        parts: Pairs of contributions and weights of some rows, larger for better
            predictions. For log loss, all rows; for the AUC, the clicks (each with the
            share of other rows below it) and the other rows.
    """

    value: float | None
    parts: Sequence[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, labels, predictions, weights, monitor: str) -> "Score":
        """Return the score of float64 labels, predictions and weights `(n,)`."""
        if not np.isfinite(predictions).all():
            return cls(None, ())  # training diverged
        if monitor == "log_loss":
            p = np.clip(predictions, _EPSILON, 1 - _EPSILON)
            gains = labels * np.log(p) + (1 - labels) * np.log1p(-p)
            loss = -np.average(gains, weights=weights)
            return cls(float(loss), [(gains, weights)])
        is_click = labels > 0.5
        clicks, others = (
            (predictions[rows], weights[rows]) for rows in (is_click, ~is_click)
        )
        if not (clicks[1].sum() and others[1].sum()):
            return cls(None, ())
        below, above = _shares_below(*clicks, *others), _shares_below(*others, *clicks)
        parts = [(below, clicks[1]), (1.0 - above, others[1])]
        return cls(float(np.average(below, weights=clicks[1])), parts)

    def loss_against(self, other: "Score") -> tuple[float, float]:
        """Return how much better another model is on the same rows, and the error.

        Returns:
            The difference of the metrics, positive if the other model is better, and
            its standard error (for the AUC, that of DeLong et al. 1988).
        """
        difference, variance = 0.0, 0.0
        for (own, weights), (others, _) in zip(self.parts, other.parts, strict=True):
            share = weights / weights.sum()
            gains = others - own
            difference = float(share @ gains)  # the same for both parts of an AUC
            variance += float(share**2 @ (gains - difference) ** 2)
        return difference, math.sqrt(variance)


def _shares_below(values, weights, others, weights_of_others):
    """Return the share of other values below each value, ties counting half."""
    order = np.argsort(others)
    sums = np.append(0.0, np.cumsum(weights_of_others[order]))
    first, last = (
        sums[np.searchsorted(others[order], values, side)] for side in ("left", "right")
    )
    return (first + last) / (2.0 * sums[-1])


def _simplest(scores: Mapping[str, Score]) -> str:
    """Return the first model that is within one standard error of the best one.

    If no value is finite, it is the last one.
    """
    finite = {n: score for n, score in scores.items() if score.value is not None}
    if not finite:
        return [*scores][-1]
    best = next(iter(finite.values()))
    for score in finite.values():
        if best.loss_against(score)[0] > 0:
            best = score

    def is_as_good(score):
        difference, error = score.loss_against(best)
        return difference <= error

    return next(name for name, score in finite.items() if is_as_good(score))


class _Progress(keras.callbacks.Callback):
    """Show on how many rows the models were trained."""

    def __init__(self, update, num_rows):
        super().__init__()
        self._update, self._num_rows, self._done = update, num_rows, 0

    def on_epoch_end(self, epoch, logs=None):
        self._done += self._num_rows
        self._update(self._done)
