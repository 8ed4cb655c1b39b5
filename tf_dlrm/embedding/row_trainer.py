"""`RowTrainer`: the optimizers of tables and the step that updates their rows."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.embedding import bags, penalties
from tf_dlrm.embedding.engines.engine import Step
from tf_dlrm.embedding.global_batch import join, pack
from tf_dlrm.embedding.recording import Lookup
from tf_dlrm.embedding.scaled_rows import ScaledOptimizer
from tf_dlrm.embedding.table_store import TableStore
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime import accelerators, replicas
from tf_dlrm.runtime.types import Ids


class RowTrainer:
    """Trainer of the rows of a `TableStore`, with one step for all replicas.

    Args:
        store: The tables.

    Attributes:
        optimizers: Names of the trainable tables to their optimizers.
        iterations: Number of updates so far, int64; `None` before `build`.
    """

    def __init__(self, store: TableStore) -> None:
        self._store = store
        self.optimizers: dict[str, SparseOptimizer] = {}
        self._own: dict[str, SparseOptimizer] = {}  # those of the stored rows
        self.iterations: tf.Variable | None = None

    def build(
        self,
        layer: keras.layers.Layer,
        optimizer: SparseOptimizer | dict[str, SparseOptimizer],
    ) -> None:
        """Create the state of an optimizer and discard that of an earlier one.

        Args:
            layer: The layer, which holds the state for checkpoints.
            optimizer: A `SparseOptimizer` for all tables, or a dict by table name.

        Raises:
            ValueError: If a dict names an unknown table or omits one, or an optimizer
                cannot train its tables.
        """
        names = [table.name for table in self._store.tables if table.trainable]
        if not isinstance(optimizer, dict):
            optimizer = dict.fromkeys(names, optimizer)
        _check_names(optimizer, names)
        distinct = list({id(o): o for o in optimizer.values()}.values())
        for own in distinct:
            own.check_tables(
                [t for t in self._store.tables if optimizer.get(t.name) is own]
            )
        self.optimizers = optimizer = dict(optimizer)
        self._store.settle()
        penalized = penalties.penalize(optimizer, self._store.tables)

        def make_scalars():
            for own in distinct:
                own.build()
            made = {
                id(own): ScaledOptimizer(own) if own.shrinks_all_rows else own
                for own in penalized.values()
            }
            self._own = {name: made[id(own)] for name, own in penalized.items()}
            return tf.Variable(0, dtype=tf.int64, trainable=False, name="iterations")

        # Not one per replica: each step is made for all replicas at once.
        self.iterations = replicas.on_device(self._store.devices[0], make_scalars)
        # Attributes of a module, so that tf.train.Checkpoint finds them.
        held = tf.Module()
        held.iterations = self.iterations
        for i, own in enumerate(distinct):
            for variable in own.variables:
                setattr(held, f"learning_rate_{i}", variable)
        own_optimizers = {id(o): o for o in self._own.values()}.values()
        self._store.scaled = [
            own for own in own_optimizers if isinstance(own, ScaledOptimizer)
        ]
        if self._store.scaled:
            held.settling = _Settling(self._store)
        self._store.build_slots(layer, self._own, held)

    def apply(
        self,
        gradients: Any,
        ids: Ids,
        weights: tf.Tensor | None,
        learning_rate: tf.Tensor | None = None,
        applies: tf.Tensor | None = None,
        penalty_gradient: tf.Tensor | None = None,
    ) -> None:
        """Update the rows that a batch looked up, in O(values in the batch).

        Dense optimizers also update all other rows of their tables.

        Args:
            gradients: Gradients of the pooled vectors, in the structure of the vectors.
            ids: Standardized ids.
            weights: Standardized weights of the ids, or `None`.
            learning_rate: Float scalar for optimizers that follow the learning rate of
                the model, or `None`.
            applies: Bool scalar tensor: if `False`, nothing changes. `None` is `True`.
            penalty_gradient: Derivative of this replica's share of the loss with
                respect to the penalty on the rows. Default: that of the loss is 1.

        Raises:
            RuntimeError: Before `build`.
        """
        self._counter()  # raises before `build`
        arguments = pack(ids, weights)
        for i, tensor in enumerate(self._store.gradient_tensors(gradients)):
            arguments[f"gradient_{i}"] = tf.cast(tensor, tf.float32)
        if learning_rate is not None:
            arguments["learning_rate"] = tf.cast(learning_rate, tf.float32)
        if applies is not None:
            arguments["applies"] = applies
        if penalty_gradient is not None:
            arguments["penalty_gradient"] = penalty_gradient
        self._store.run_for_all(self._step, arguments)

    def _counter(self) -> tf.Variable:
        """Return `iterations`; raise an error before `build`."""
        if self.iterations is None:
            raise RuntimeError(
                "The tables have no optimizer. Call `build_optimizer`, or `compile` a "
                "DLRM, which calls it."
            )
        return self.iterations

    def _step(self, batches):
        applies = batches[0].get("applies")
        if applies is None:
            number = self._apply_step(batches)
        elif accelerators.are_visible() and len(batches) == 1:
            number = self._apply_step([_masked(batches[0], applies)], applies)
        else:
            number = tf.cond(
                applies,
                lambda: self._apply_step(batches),
                lambda: tf.identity(self.iterations),
            )
        return [number] * len(batches)

    def _apply_step(self, batches, applies=None):
        distinct, iterations = {id(o): o for o in self._own.values()}, self._counter()
        rates = {
            key: self._rate(own, batches, applies) for key, own in distinct.items()
        }
        one = 1 if applies is None else tf.cast(applies, tf.int64)
        number = tf.identity(iterations.assign_add(one))
        if applies is not None:  # 0 if the very first batch is not applied
            number = tf.maximum(number, tf.ones_like(number))
        self._store.update(batches, Step(number, rates, applies))
        return number

    def _rate(self, optimizer, batches, applies):
        """Return the learning rate that an optimizer of stored rows expects."""
        if isinstance(optimizer, ScaledOptimizer):
            rate = self._rate(optimizer.optimizer, batches, applies)
            settle = functools.partial(self._store.scale_rows, optimizer)
            return optimizer.advance(rate, applies, settle)
        followed = batches[0].get("learning_rate")
        rate = optimizer.current_learning_rate(self._counter(), followed)
        if isinstance(optimizer, penalties.PenalizedOptimizer):
            return tf.stack([rate, _penalty_gradient(batches)])
        return rate


class _Settling(tf.Module):
    """Part of a checkpoint of tables, whose rows are settled before they are saved."""

    def __init__(self, store: TableStore) -> None:
        super().__init__()
        self._store = store

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        self._store.settle()
        return {"is_settled": tf.constant(True)}

    def _restore_from_tensors(self, restored_tensors: dict[str, tf.Tensor]) -> None:
        for own in self._store.scaled:
            own.scale.assign(tf.ones_like(own.scale))


def _penalty_gradient(batches):
    """Return the derivative of the loss with respect to the penalty on the rows."""
    if "penalty_gradient" not in batches[0]:
        return 1.0
    return tf.add_n([batch["penalty_gradient"] for batch in batches])


def _masked(batch, applies):
    """Return a batch whose ids and gradients are masked unless `applies`."""
    masked = dict(batch, ids=tf.where(applies, batch["ids"], -1))
    for name, tensor in batch.items():
        if name.startswith("gradient_"):
            masked[name] = tf.where(applies, tensor, tf.zeros_like(tensor))
    return masked


def join_lookups(
    lookups: Sequence[Lookup], gradients: Sequence[Any], num_features: int
) -> tuple[Any, Ids, tf.Tensor | None]:
    """Return gradients, ids and weights of several lookups, joined into one lookup.

    Args:
        lookups: The lookups.
        gradients: Gradients of the pooled vectors, one structure for each lookup.
        num_features: Number of features, F.

    Raises:
        ValueError: If the ids are not all one-hot, all padded or all ragged.
    """
    ids = same_form([lookup.ids for lookup in lookups], num_features)
    weights = [
        bags.standardize_weights(lookup.weights, i) for lookup, i in zip(lookups, ids)
    ]
    if any(w is not None for w in weights):
        weights = [
            tf.ones_like(getattr(i, "values", i), tf.float32) if w is None else w
            for w, i in zip(weights, ids)
        ]
    joined = join(list(zip(ids, weights)))
    flat = [tf.nest.flatten(structure) for structure in gradients]
    vectors = [tf.concat(tensors, 0) for tensors in zip(*flat, strict=True)]
    return tf.nest.pack_sequence_as(lookups[0].pooled, vectors), *joined


def same_form(lookups: Sequence[Ids], num_features: int) -> list[Ids]:
    """Return the ids of lookups, standardized, with one form and dtype.

    Raises:
        ValueError: If the ids are not all one-hot, all padded or all ragged.
    """
    ids = [bags.standardize_ids(own, num_features) for own in lookups]
    forms = {(isinstance(i, tf.RaggedTensor), len(i.shape)) for i in ids}
    if len(forms) > 1:
        raise ValueError(
            "The ids of all lookups of a step must have the same form: one-hot, padded "
            f"or ragged. Received shapes: {[str(i.shape) for i in ids]}"
        )
    dtype = tf.int64 if len({i.dtype for i in ids}) > 1 else ids[0].dtype
    return [tf.cast(i, dtype) for i in ids]


def _check_names(optimizers: dict, tables: Sequence[str]) -> None:
    """Raise an error unless a dict of optimizers names exactly the tables."""
    unknown = sorted(set(optimizers) - set(tables))
    missing = sorted(set(tables) - set(optimizers))
    if unknown or missing:
        raise ValueError(
            "A dict of optimizers must name each trainable table. Received unknown or "
            f"frozen tables: {unknown}, no optimizer for: {missing}"
        )
