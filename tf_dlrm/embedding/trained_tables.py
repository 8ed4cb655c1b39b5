"""Optimizers of tables and the step that updates them, wherever the tables lie."""

import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.embedding.contract import EmbeddingLayer
from tf_dlrm.embedding.global_batch import join, pack
from tf_dlrm.embedding.logical_tables import LogicalTables, check_names
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime import replicas


class TrainedTables(LogicalTables, EmbeddingLayer):
    """An embedding layer's part of the contract that trains.

    The layer has `tables`, `num_features` and `devices`, and says how it is updated:
    `_build_slots(optimizers)` makes state for each table and returns it by name,
    `_gradient_tensors(gradients)` gives the tensors that cross to other replicas, and
    `_update(of_replicas, rates, step)` applies one step for all replicas at once.
    """

    _iterations = None
    _optimizers = {}

    def build_optimizer(self, optimizer) -> None:
        """Creates optimizer state; what an earlier optimizer had is dropped.

        Args:
            optimizer: A `tf_dlrm.optimizers` object for all tables, or a dict of
                table name to such an object, which must name every table that is
                trained.

        Raises:
            ValueError: If a dict names an unknown table or leaves one out.
        """
        names = [table.name for table in self.tables if table.trainable]
        if not isinstance(optimizer, dict):
            optimizer = dict.fromkeys(names, optimizer)
        check_names(optimizer, names)
        self._optimizers = optimizer
        distinct = list({id(each): each for each in optimizer.values()}.values())

        def make_scalars():
            for each in distinct:
                each.build()
            return tf.Variable(0, dtype=tf.int64, trainable=False, name="iterations")

        # One of each: every step is made for all replicas at once.
        self._iterations = replicas.on_device(self.devices[0], make_scalars)
        # Held by name, so that tf.train.Checkpoint finds all of it.
        held = tf.Module()
        held.iterations = self._iterations
        for i, each in enumerate(distinct):
            for variable in each.variables:
                setattr(held, f"learning_rate_{i}", variable)
        for name, slot in self._build_slots(optimizer).items():
            setattr(held, name, slot)
        self._hold_optimizer_state(held)

    def _hold_optimizer_state(self, held):
        self._optimizer_state = held

    @property
    def iterations(self):
        """Number of updates applied so far: int64 `tf.Variable`, `None` before
        `build_optimizer`."""
        return self._iterations

    def apply_gradients(
        self, gradients, ids, weights=None, learning_rate=None, applies=None
    ):
        """Updates the rows that a batch looked up. O(values in the batch).

        Args:
            gradients: Gradient of the loss with respect to what calling this layer
                with the same ids and weights returned, in the same structure. Under a
                strategy those of this replica; the replicas' are summed.
            ids: As in the call.
            weights: As in the call.
            learning_rate: For optimizers that follow the model's, float scalar.
            applies: Bool scalar tensor, the same in all replicas: with `False` nothing
                is changed. `None` is `True`.

        Raises:
            RuntimeError: Before `build_optimizer`.
        """
        ids = bags.standardize_ids(ids, self.num_features)
        weights = bags.standardize_weights(weights, ids)
        self._apply_standardized(gradients, ids, weights, learning_rate, applies)

    def _apply_standardized(self, gradients, ids, weights, learning_rate, applies):
        if self._iterations is None:
            raise RuntimeError(
                "The tables have no optimizer: call `build_optimizer` (a DLRM's "
                "`compile` does)."
            )
        arguments = pack(ids, weights)
        for i, each in enumerate(self._gradient_tensors(gradients)):
            arguments[f"gradient_{i}"] = tf.cast(each, tf.float32)
        if learning_rate is not None:
            arguments["learning_rate"] = tf.cast(learning_rate, tf.float32)
        if applies is not None:
            arguments["applies"] = applies
        replicas.run_for_all(self._step, arguments)

    def apply_lookups(self, lookups, gradients, learning_rate, applies) -> None:
        """As in `EmbeddingLayer`: rows that several lookups share are summed first."""
        ids = [bags.standardize_ids(each.ids, self.num_features) for each in lookups]
        forms = {(isinstance(i, tf.RaggedTensor), len(i.shape)) for i in ids}
        if len(forms) > 1:
            raise ValueError(
                "The ids of all lookups of a step must have one form: one-hot, padded "
                f"or ragged. Received shapes: {[str(i.shape) for i in ids]}"
            )
        weights = [
            bags.standardize_weights(each.weights, i) for each, i in zip(lookups, ids)
        ]
        if any(each is not None for each in weights):
            weights = [
                tf.ones_like(getattr(i, "values", i), tf.float32) if w is None else w
                for w, i in zip(weights, ids)
            ]
        dtype = tf.int64 if len({i.dtype for i in ids}) > 1 else ids[0].dtype
        ids, weights = join([(tf.cast(i, dtype), w) for i, w in zip(ids, weights)])
        gradients = [tf.nest.flatten(each) for each in gradients]
        structure = lookups[0].pooled
        joined = [tf.concat(each, 0) for each in zip(*gradients, strict=True)]
        joined = tf.nest.pack_sequence_as(structure, joined)
        self._apply_standardized(joined, ids, weights, learning_rate, applies)

    def _step(self, of_replicas):
        applies = of_replicas[0].get("applies")
        if applies is None:
            step = self._apply_step(of_replicas)
        else:
            step = tf.cond(
                applies,
                lambda: self._apply_step(of_replicas),
                lambda: tf.identity(self._iterations),
            )
        return [step] * len(of_replicas)

    def _apply_step(self, of_replicas):
        followed = of_replicas[0].get("learning_rate")
        rates = {
            id(o): o.current_learning_rate(self._iterations, followed)
            for o in self._optimizers.values()
        }
        step = tf.identity(self._iterations.assign_add(1))
        self._update(of_replicas, rates, step)
        return step

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        tables = [EmbeddingTable.from_config(table) for table in config.pop("tables")]
        return cls(tables, **config)
