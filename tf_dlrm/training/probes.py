"""Probes, which observe the steps of a training run.

A probe is traced into the step only while a `fit` uses it, and never changes the
training.
"""

import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.embedding.recording import Lookup
from tf_dlrm.runtime import replicas
from tf_dlrm.runtime.types import Ids


class Probe:
    """Base class of observers of the steps of one model.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model) -> None:
        pass

    def on_batch(self, data: Any) -> None:
        """Observe a batch; called in each replica while the step is traced.

        Args:
            data: The batch, as the dataset yields it.
        """

    def on_ids(self, ids: Ids) -> None:
        """Observe the ids of a lookup; called in each replica while the step is traced.

        Args:
            ids: The ids, in any form that `tf_dlrm.embedding.standardize_ids` accepts.
        """

    def on_gradients(self, dense: Sequence[tf.Tensor | None], pooled: Any) -> None:
        """Observe the gradients; called in each replica while the step is traced.

        The gradients are those of this replica's share of the loss.

        Args:
            dense: Gradients of the dense variables; `None` for a variable without one.
            pooled: Gradients of the pooled vectors, in the structure of the vectors.
        """

    def release(self) -> None:
        """Free the memory of the probe when nothing uses it anymore."""


class Probes:
    """The probes of a model: all that exist, those in use, and those traced."""

    def __init__(self) -> None:
        self._made: dict[type[Probe], Any] = {}
        self._wanted: tuple[type[Probe], ...] = ()
        self._traced: tuple[type[Probe], ...] = ()

    def use(self, model: keras.Model, kind: type[Probe]) -> Any:
        """Return the probe of a kind, and trace it into the steps of the next `fit`."""
        if kind not in self._made:
            self._made[kind] = kind(model)
        if kind not in self._wanted:
            self._wanted += (kind,)
        return self._made[kind]

    def drop(self, kind: type[Probe]) -> None:
        """Remove the probe of a kind from the steps of the next `fit`."""
        if kind in self._wanted:
            self._wanted = tuple(other for other in self._wanted if other is not kind)
            self._made[kind].release()

    def take_change(self) -> bool:
        """Make the probes in use the traced ones; return whether they have changed."""
        changed = set(self._wanted) != set(self._traced)
        self._traced = self._wanted
        return changed

    def see_batch(self, data: Any) -> None:
        """Call `on_batch` of all traced probes."""
        for kind in self._traced:
            self._made[kind].on_batch(data)

    def see_lookups(self, lookups: Sequence[Lookup]) -> None:
        """Call `on_ids` of all traced probes for each lookup of a step."""
        for kind in self._traced:
            for lookup in lookups:
                self._made[kind].on_ids(lookup.ids)

    def see_gradients(self, dense: Sequence[tf.Tensor | None], pooled: Any) -> None:
        """Call `on_gradients` of all traced probes."""
        for kind in self._traced:
            self._made[kind].on_gradients(dense, pooled)


class InputClock(Probe):
    """Arrival time of the last step's batch at the last replica.

    Attributes:
        num_traces: Number of times a step was traced, which takes seconds before the
            step begins.
    """

    def __init__(self, model: keras.Model) -> None:
        self.num_traces = 0
        self._arrived = [0.0] * model.distribute_strategy.num_replicas_in_sync

    def on_batch(self, data: Any) -> None:
        if not tf.executing_eagerly():
            self.num_traces += 1
        replica = replicas.number()

        def note():  # op determinism forbids tf.timestamp
            self._arrived[replica] = time.time()

        with tf.control_dependencies(tf.nest.flatten(data, expand_composites=True)):
            tf.numpy_function(note, [], [])

    def seconds_since(self, begin: float) -> float:
        """Return the seconds from `begin`, a `time.time()`, to the batch's arrival."""
        return min(max(max(self._arrived) - begin, 0.0), time.time() - begin)


class LargestBatch(Probe):
    """Number of rows of the largest batch so far, for a model without a strategy."""

    def __init__(self, model: keras.Model) -> None:
        self._num_rows = tf.Variable(0, trainable=False, dtype=tf.int32)

    @property
    def num_rows(self) -> int:
        """Number of rows of the largest batch so far."""
        return int(self._num_rows.numpy())

    def on_batch(self, data: Any) -> None:
        _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        self._num_rows.assign(tf.maximum(self._num_rows, tf.shape(y)[0]))


class GradientNorms(Probe):
    """Global norms of the gradients of the dense variables and of the pooled vectors.

    The gradients are those of the mean loss of the global batch, before any clipping.
    """

    _STEPS, _SUMS, _LARGEST = range(3)

    def __init__(self, model: keras.Model) -> None:
        with model.distribute_strategy.scope():
            device = replicas.device_names()[0]
        self._state = replicas.on_device(
            device, lambda: tf.Variable(tf.zeros((3, 2)), trainable=False)
        )

    def on_gradients(self, dense: Sequence[tf.Tensor | None], pooled: Any) -> None:
        dense = [tf.convert_to_tensor(g) for g in dense if g is not None]
        pooled = _sum_of_squares(tf.nest.flatten(pooled))
        if replicas.count() > 1:
            total = tf.distribute.ReduceOp.SUM
            context = tf.distribute.get_replica_context()
            dense, pooled = context.all_reduce(total, [dense, pooled])
        norms = tf.sqrt(tf.stack([_sum_of_squares(dense), pooled]))
        if replicas.local_number():
            return  # all replicas have the same norms
        state = self._state.read_value()
        self._state.assign(
            tf.stack(
                [
                    state[self._STEPS] + 1.0,
                    state[self._SUMS] + norms,
                    tf.maximum(state[self._LARGEST], norms),
                ]
            )
        )

    def take(self) -> dict[str, float]:
        """Return the mean and largest norms of the steps since the last call.

        Returns:
            Norms by name, or an empty dict if there were no steps.
        """
        state = self._state.numpy()
        self._state.assign(tf.zeros((3, 2)))
        if not state[self._STEPS, 0]:
            return {}
        means = state[self._SUMS] / state[self._STEPS]
        return {
            f"{part}_norm{suffix}": float(values[i])
            for i, part in enumerate(("dense", "pooled"))
            for suffix, values in (("", means), ("_max", state[self._LARGEST]))
        }

    def release(self) -> None:
        self.take()


def _sum_of_squares(tensors):
    # l2_loss is half of the sum, and does not keep the squares in memory.
    return 2.0 * tf.add_n([tf.nn.l2_loss(tf.cast(x, tf.float32)) for x in tensors])


class RowMarks(Probe):
    """Marks of the rows that were looked up, one byte per row in host memory.

    The byte is the number of the epoch that last looked up the row. NumPy marks the
    rows of a batch in O(values in the batch), in parallel to the rest of the step.
    """

    _LAST_EPOCH = 255  # the largest value of a byte

    def __init__(self, model: keras.Model) -> None:
        self._tables = model.spec.tables
        sizes = np.array([table.vocabulary_size for table in self._tables], np.int64)
        self._ends = np.cumsum(sizes)
        first = dict(zip((t.name for t in self._tables), self._ends - sizes))
        owners = [table for table in self._tables for _ in table.features]
        self._first = np.array([first[table.name] for table in owners])
        self._sizes = np.array([table.vocabulary_size for table in owners])
        self._marks: Any = None  # an array while the probe is in use
        self._epoch = 0

    def begin_epoch(self) -> None:
        """Start a new epoch, with whose number rows are marked from now on."""
        if self._marks is None:  # one more row, for missing ids
            self._marks = np.zeros(int(self._ends[-1]) + 1, np.uint8)
            self._epoch = 0
        if self._epoch == self._LAST_EPOCH:
            np.minimum(self._marks, 1, out=self._marks)
            self._epoch = 1
        self._epoch += 1

    def release(self) -> None:
        self._marks = None

    def count(self) -> dict[str, tuple[int, int, int]]:
        """Count the rows of each table that were looked up.

        Returns:
            For each table name, the number of rows, of rows looked up in this epoch,
            and of rows never looked up.

        Raises:
            RuntimeError: Before `begin_epoch`.
        """
        if self._marks is None:
            raise RuntimeError("No rows are marked. Call `begin_epoch` first.")
        counts, first = {}, 0
        for table, end in zip(self._tables, map(int, self._ends)):
            touched = never = 0
            for a in range(first, end, 1 << 20):  # in blocks: comparisons take memory
                marks = self._marks[a : min(a + (1 << 20), end)]
                touched += int(np.count_nonzero(marks == self._epoch))
                never += len(marks) - int(np.count_nonzero(marks))
            counts[table.name], first = (end - first, touched, never), end
        return counts

    def on_ids(self, ids: Ids) -> None:
        ids = bags.standardize_ids(ids, len(self._first))
        if isinstance(ids, tf.RaggedTensor):
            tf.numpy_function(self._mark_bags, [ids.values, ids.row_splits], [])
        else:
            tf.numpy_function(self._mark, [ids], [])

    def _mark(self, ids):
        if self._marks is None:
            return  # the probe was released
        shape = (1, -1) + (1,) * (ids.ndim - 2)
        rows = ids + self._first.reshape(shape)
        in_range = (ids >= 0) & (ids < self._sizes.reshape(shape))
        self._note(np.where(in_range, rows, len(self._marks) - 1).reshape(-1))

    def _mark_bags(self, values, splits):
        if self._marks is None:
            return
        lengths = np.diff(splits)
        first = np.tile(self._first, len(lengths) // len(self._first))
        # Ids out of range raise an error elsewhere, so all ids are in range here.
        rows = values + np.repeat(first, lengths)
        self._note(np.minimum(rows, len(self._marks) - 1))

    def _note(self, rows: np.ndarray) -> None:
        """Mark rows `(V,)`."""
        self._marks[rows] = self._epoch
