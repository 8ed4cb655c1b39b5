"""Training with row-sparse tables inside stock Keras: compile, the step, serialization.

The step looks rows up outside of the tape, watches the pooled vectors, and hands their
gradient to the embedding layer. So no gradient of a table's shape ever exists, and a
layer whose tables live elsewhere works in the same way.
"""

import keras
import tensorflow as tf

from tf_dlrm import optimizers
from tf_dlrm.embedding.contract import Lookup, recorded
from tf_dlrm.inputs import check_arrays, standardize_labels
from tf_dlrm.runtime import gradients, replicas, xla
from tf_dlrm.training import keras_hooks
from tf_dlrm.training.guard import Restorable
from tf_dlrm.training.guarded_steps import GuardedSteps, check_limit
from tf_dlrm.training.probes import Probed
from tf_dlrm.training.step import (
    StepResult,
    check_reduction,
    floats_of,
    has_replicas,
    is_cross_entropy,
    pooled_of,
    share_of_rows,
)


class RowSparseTraining(GuardedSteps, Probed, keras_hooks.FitsUnderStrategies):
    """Mix-in for a `keras.Model` that trains an embedding layer by row-sparse steps.

    The model has `embedding` (see the embedding contract at `EmbeddingCollection`),
    `standardize(features)` and `score(dense, pooled, training)`, and is built.
    """

    def compile(
        self,
        optimizer="adagrad",
        loss="binary_crossentropy",
        metrics=None,
        embedding_optimizer=None,
        jit_compile="auto",
        max_skipped_batches: int | None = 10,
        **kwargs,
    ):
        """Configures training, as `keras.Model.compile` does.

        Args:
            optimizer: Optimizer of the dense layers: name or Keras optimizer.
            loss: Loss of `(batch, 1)` probabilities.
            metrics: Keras metrics, such as `tf_dlrm.metrics.ClickAUC()`.
            embedding_optimizer: Optimizer of the tables: a `tf_dlrm.optimizers`
                object or name, or a dict of table name to such (tables not named
                get the default). `None` is the row-sparse counterpart of
                `optimizer`, which must then be a plain SGD, Adagrad or Adam, and
                follows its learning rate; but where `optimizer` is the object that
                the model was compiled with before, the tables too keep the optimizer
                and the state that they have. A float rate of an object keeps its
                ratio to that of `optimizer` when a callback of `fit` assigns that one,
                as `ReduceLROnPlateau` does. SGD and Adagrad equal their dense
                originals; `"adam"` is lazy on the tables
                (`tf_dlrm.optimizers.SparseAdam` says how it differs).
            jit_compile: What XLA compiles. `"auto"`: on CPUs the small parts where it
                wins (lookup and update of rows, the interaction's triangle, the
                update of the dense variables), while oneDNN computes the MLPs: the
                fastest. `True`: besides, all between lookup and update as one
                program (a `compute_loss` of your own is in it, and where it reads
                ragged `x` each new number of ids is compiled anew: use `"auto"`).
                `False`: nothing. The results agree to rounding, and range checks of
                ids hold, in all three.
            max_skipped_batches: A batch whose loss or gradients are not finite is
                not applied: weights, optimizers and metrics stay as they are. After
                so many in a row `fit` raises `tf_dlrm.training.NotFiniteError`, which
                says where; with fewer, it ends with a warning that counts them.
                `None`: batches are not looked at, as in Keras.
            **kwargs: As of `keras.Model.compile`.

        Raises:
            ValueError: If an optimizer, or one of its options, cannot train tables
                exactly; the message names it.
        """
        if self.compute_dtype == "float16":
            raise ValueError(
                "`mixed_float16` needs loss scaling, which the tables' row-sparse "
                "updates do not support. Use `mixed_bfloat16`, which needs none."
            )
        if self.distribute_strategy.num_replicas_in_sync > 1:
            check_reduction(loss)
        check_limit(max_skipped_batches)
        if tf.distribute.has_strategy():
            replicas.check_devices(self.embedding, "`compile`")
        optimizer = keras.optimizers.get(optimizer)
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        optimizers.check_dense_optimizer(optimizer, num_replicas)
        self._check_overrides(jit_compile)
        # Compiled again with the optimizer that it has: training goes on, as in Keras.
        goes_on = optimizer is getattr(self, "optimizer", None) and (
            embedding_optimizer is None
            or embedding_optimizer is getattr(self, "embedding_optimizer", None)
        )
        whole = jit_compile is True and not kwargs.get("run_eagerly", False)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            metrics=metrics,
            jit_compile=False,
            **kwargs,
        )
        self._jit_compile_argument = jit_compile
        self._labels_are_probabilities = is_cross_entropy(loss)
        self._make_guard(max_skipped_batches)
        if not goes_on:
            names = [table.name for table in self.spec.tables if table.trainable]
            self.embedding_optimizer = optimizers.for_tables(
                embedding_optimizer, optimizer, names
            )
            self.embedding.build_optimizer(self.embedding_optimizer)
        # Now, not at the first step: Keras would build it for the tables as well.
        self.optimizer.build(self.dense_variables)
        self._compiles_dense_step = whole
        self._make_dense_step()
        self._apply_kernel = xla.Kernel(self._apply_dense, "dense_optimizer")

    _labels_are_probabilities = False

    def _make_dense_step(self):
        self._compiled_dense_step = None
        if self._compiles_dense_step:
            self._compiled_dense_step = tf.function(
                self._dense_part, jit_compile=True, reduce_retracing=True
            )

    def _check_overrides(self, jit_compile):
        """A program compiled as a whole is told its lookups by the model's own call."""
        if jit_compile is True and type(self).call is not type(self)._own_call:
            raise ValueError(
                "`jit_compile=True` compiles the step of the model's own `call`, and "
                f"{type(self).__name__} overrides it. Use jit_compile='auto', or "
                "override `score(dense, pooled, training)` instead."
            )

    @property
    def dense_variables(self):
        """The trainable variables that `optimizer` updates: all but the tables."""
        tables = {id(variable) for variable in self.embedding.variables}
        return [v for v in self.trainable_variables if id(v) not in tables]

    def train_step(self, data):
        """One step on `(features, label[, sample_weight])`."""
        with self._kernels():
            return self._train_step(data)

    def _kernels(self):
        """Context in which XLA compiles what `jit_compile` says."""
        return xla.disabled(getattr(self, "_jit_compile_argument", "auto") is False)

    def _train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y = standardize_labels(y, self._labels_are_probabilities)
        self._probes.see_batch(data)
        # XLA cannot compile a sum over replicas.
        if self._compiled_dense_step is not None and not has_replicas():
            result = self._look_up_and_compile(x, y, sample_weight)
        else:
            result = self._dense_step(x, y, sample_weight, share_of_rows(y), x)
        for lookup in result.lookups:
            self._probes.see_ids(lookup.ids)
        # What changes variables waits for a batch whose ids are in range.
        with tf.control_dependencies(tf.nest.flatten(pooled_of(result.lookups))):
            if result.lookups and self.trainable and self.embedding.trainable:
                self.embedding.apply_lookups(
                    result.lookups,
                    result.pooled_gradients,
                    result.learning_rate,
                    result.applies,
                )
        return self._update_metrics(
            x, y, result.y_pred, sample_weight, result.loss, result.applies
        )

    def _look_up_and_compile(self, x, y, sample_weight):
        """A step whose part between lookup and update of the rows is one XLA program.

        The lookup comes first: its range check would vanish in there.
        """
        batch = self.standardize(x)
        pooled = self.embedding(batch.ids, weights=batch.weights)
        with tf.control_dependencies(tf.nest.flatten(pooled)):
            learning_rate = tf.convert_to_tensor(self.optimizer.learning_rate)
        no_ids = tf.zeros((tf.shape(y)[0], self.spec.num_sparse), tf.int32)
        features = {"dense_features": batch.dense, "sparse_features": no_ids}
        own_x = x if self._has_own_loss() else None
        loss, y_pred, pooled_gradients, applies = self._compiled_dense_step(
            features, y, sample_weight, own_x, pooled
        )
        lookups = [Lookup(batch.ids, batch.weights, pooled)]
        return StepResult(
            loss, y_pred, lookups, pooled_gradients, learning_rate, applies
        )

    def _dense_part(self, features, y, sample_weight, x, pooled):
        result = self._dense_step(features, y, sample_weight, None, x, pooled)
        return result.loss, result.y_pred, result.pooled_gradients, result.applies

    def _has_own_loss(self) -> bool:
        """Whether a subclass computes the loss, perhaps from the features."""
        return type(self).compute_loss is not keras.Model.compute_loss

    def _dense_step(self, features, y, sample_weight, share, x, pooled=None):
        """Forward and backward pass, and the update of the dense variables.

        Args:
            features: What the model is called with.
            y: Labels `(B, 1)`.
            sample_weight: Weights of the rows, or `None`.
            share: This replica's part of the rows of the global batch, or `None` for
                all.
            x: The features, for a `compute_loss` of the user's.
            pooled: What the lookup returns, if it was made before.
        """
        variables = self.dense_variables
        statistics = Restorable(self._statistics if self._guard is not None else [])
        with tf.GradientTape() as tape:
            with recorded(self.embedding, tape, pooled) as recording:
                y_pred = self(features, training=True)
                loss = keras_hooks.compute_loss(self, x, y, y_pred, sample_weight)
            # Gradients are summed over replicas: those of the global batch's mean.
            differentiated = loss if share is None else loss * share
        self._check_reads(tape)
        lookups = recording.lookups
        pooled_gradients, dense_gradients = tape.gradient(
            differentiated,
            (pooled_of(lookups), [variable.value for variable in variables]),
        )
        # A model of the user's may leave features out.
        pooled_gradients = tf.nest.map_structure(
            lambda vectors, g: tf.zeros_like(vectors) if g is None else g,
            pooled_of(lookups),
            pooled_gradients,
        )
        self._probes.see_gradients(dense_gradients, pooled_gradients)
        # What changes variables waits for a batch whose ids are in range. At the end
        # of a dataset of unknown length there is none, and a step begun all the same
        # would count.
        with tf.control_dependencies(tf.nest.flatten(pooled_of(lookups))):
            learning_rate = None
            if pooled is None:
                learning_rate = tf.convert_to_tensor(self.optimizer.learning_rate)
            applies = None
            if self._guard is not None:
                observed = loss
                if share is not None:  # without a row there is no mean
                    observed = tf.where(share > 0, loss, tf.zeros_like(loss))
                inputs = [floats_of(features), y, sample_weight, pooled_of(lookups)]
                applies = self._guard.admit(
                    (*inputs, observed), (pooled_gradients, dense_gradients)
                )
                statistics.restore_unless(applies)
            self._apply_where(applies, dense_gradients)
        return StepResult(
            loss, y_pred, lookups, pooled_gradients, learning_rate, applies
        )

    def _check_reads(self, tape):
        """Raises where a step read tables otherwise than by calling their layer."""
        if not (self.trainable and self.embedding.trainable):
            return
        tables = {id(variable) for variable in self.embedding.lookup_variables}
        if any(id(variable) in tables for variable in tape.watched_variables()):
            raise ValueError(
                "The training step read the embedding tables' variables directly: no "
                "gradient would reach the rows. Look them up by calling the layer, "
                "`self.embedding(ids)`, as often as you like."
            )

    def _apply(self, dense_gradients):
        if self._compiles_apply():
            self._apply_kernel(*dense_gradients)
        else:
            self._apply_dense(*dense_gradients)

    def _changes_in_forward(self) -> bool:
        """Whether a forward pass changes variables: seeds, batch statistics."""
        return bool(self.non_trainable_variables)

    def _compiles_apply(self) -> bool:
        """Whether XLA compiles the update of the dense variables, which fuses the
        several passes of an optimizer with state over each variable."""
        if tf.distribute.has_strategy() or self._compiled_dense_step is not None:
            return False
        if not keras_hooks.is_compilable(self.optimizer):
            return False
        plain_sgd = isinstance(self.optimizer, keras.optimizers.SGD)
        return not (plain_sgd and not self.optimizer.momentum)

    def _apply_dense(self, *dense_gradients):
        if not dense_gradients:  # all MLPs are frozen; the tables' steps count
            self.optimizer.iterations.assign_add(1)
            return
        with gradients.freed_with_graph():
            self.optimizer.apply(list(dense_gradients), self.dense_variables)

    def test_step(self, data):
        """Loss and metrics of `(features, label[, sample_weight])`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y = standardize_labels(y, self._labels_are_probabilities)
        y_pred = self(x, training=False)
        loss = keras_hooks.compute_loss(
            self, x, y, y_pred, sample_weight, training=False
        )
        self._track_loss(loss, y)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """As `keras.Model.compute_metrics`."""
        with self._kernels():
            return super().compute_metrics(x, y, y_pred, sample_weight)

    def _has_own_metrics(self) -> bool:
        return type(self).compute_metrics is not RowSparseTraining.compute_metrics

    def get_metrics_result(self):
        """As `keras.Model.get_metrics_result`; the loss of no row is not a number.

        So it is where every batch so far had a loss that is not finite.
        """
        with self._kernels():
            results = super().get_metrics_result()
        if "loss" in results:
            has_rows = keras_hooks.loss_tracker(self).count > 0
            results["loss"] = tf.where(has_rows, results["loss"], float("nan"))
        return results

    def _track_loss(self, loss, y):
        tracker = keras_hooks.loss_tracker(self)
        num_rows = tf.shape(y)[0]
        if has_replicas():  # one may have no row, and so no mean
            loss = tf.where(num_rows > 0, loss, tf.zeros_like(loss))
        tracker.update_state(loss, sample_weight=num_rows)

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`; refuses a DataFrame, naming the way to go.

        Raises:
            tf_dlrm.training.NotFiniteError: After `max_skipped_batches` (of `compile`)
                in a row; they were not applied.
        """
        validation = kwargs.get("validation_data")
        if tf.distribute.has_strategy():
            replicas.check_devices(self.embedding, "`fit`")
        check_arrays(x, y)
        if isinstance(validation, tuple):
            check_arrays(*validation[:2])
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`; refuses a DataFrame, naming the way to go."""
        check_arrays(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`; refuses a DataFrame, naming the way to go."""
        check_arrays(x)
        return super().predict(x, *args, **kwargs)

    # The compile arguments are saved with the model, the tables' optimizer too.

    def get_compile_config(self):
        if not self.compiled:
            return {}
        config = super().get_compile_config()
        config["jit_compile"] = self._jit_compile_argument
        config["max_skipped_batches"] = self._max_skipped_batches
        config["embedding_optimizer"] = keras.saving.serialize_keras_object(
            self.embedding_optimizer
        )
        return config

    def compile_from_config(self, config):
        arguments = keras.saving.deserialize_keras_object(config)
        self.compile(**arguments)
