"""Training with row-sparse tables inside stock Keras: compile, the step, serialization.

The step looks rows up outside of the tape, watches the pooled vectors, and hands their
gradient to the embedding layer. So no gradient of a table's shape ever exists, and a
layer whose tables live elsewhere works in the same way.
"""

import inspect

import keras
import tensorflow as tf

from tf_dlrm import gradients, optimizers, xla
from tf_dlrm.inputs import refuse_frame, standardize_labels
from tf_dlrm.training import keras_hooks
from tf_dlrm.training.guard import Restorable
from tf_dlrm.training.guarded_steps import GuardedSteps, check_limit
from tf_dlrm.training.step_probes import Probed


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
        if _has_replicas():
            _check_reduction(loss)
        check_limit(max_skipped_batches)
        optimizer = keras.optimizers.get(optimizer)
        optimizers.check_dense_optimizer(optimizer)
        self._check_overrides()
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
        self._make_guard(max_skipped_batches)
        if not goes_on:
            self.embedding_optimizer = self._resolve(embedding_optimizer, optimizer)
            self.embedding.build_optimizer(self.embedding_optimizer)
        # Now, not at the first step: Keras would build it for the tables as well.
        self.optimizer.build(self.dense_variables)
        self._compiles_dense_step = whole
        self._make_dense_step()
        self._apply_kernel = xla.Kernel(self._apply_dense, "dense_optimizer")

    def _make_dense_step(self):
        self._compiled_dense_step = None
        if self._compiles_dense_step:
            self._compiled_dense_step = tf.function(
                self._dense_step, jit_compile=True, reduce_retracing=True
            )

    def _check_overrides(self):
        """A `call` of the user's would be evaluated, but not trained."""
        own = next(c for c in type(self).__mro__ if RowSparseTraining in c.__bases__)
        kind = type(self)
        if kind.call is not own.call and kind.train_step is own.train_step:
            raise ValueError(
                f"{kind.__name__} overrides `call`, which `fit` does not run: override "
                "`score(dense, pooled, training)` instead, or `train_step` too."
            )

    def _resolve(self, embedding_optimizer, optimizer):
        if embedding_optimizer is None:
            return optimizers.from_keras(optimizer)
        if not isinstance(embedding_optimizer, dict) or _is_config(embedding_optimizer):
            return optimizers.get(embedding_optimizer)
        # One object for all tables of a name: what has one optimizer is one update.
        by_name = {
            name: optimizers.get(name)
            for name in embedding_optimizer.values()
            if isinstance(name, str)
        }
        named = {
            table: by_name[each] if isinstance(each, str) else optimizers.get(each)
            for table, each in embedding_optimizer.items()
        }
        tables = [table.name for table in self.spec.tables]
        unnamed = [name for name in tables if name not in named]
        if unnamed:
            named.update(dict.fromkeys(unnamed, optimizers.from_keras(optimizer)))
        return named

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
        batch = self.standardize(x)
        y = standardize_labels(y)
        self._probes.see_batch(data, batch.ids)
        pooled = self.embedding(batch.ids, weights=batch.weights)
        arguments = (batch.dense, pooled, y, sample_weight, _share_of_rows(y))
        # What changes variables waits for a batch whose ids are in range. At the end
        # of a dataset of unknown length there is none, and a step begun all the same
        # would count. Without such layers the bottom MLP runs beside the lookup.
        checked = tf.nest.flatten(pooled)
        with tf.control_dependencies(checked if self._changes_in_forward() else []):
            learning_rate = tf.convert_to_tensor(self.optimizer.learning_rate)
            # XLA cannot compile a sum over replicas.
            if self._compiled_dense_step is not None and not _has_replicas():
                step = self._compiled_dense_step
                arguments += (x if self._has_own_loss() else None,)
            else:
                step = self._dense_step
                arguments += (x,)
            loss, y_pred, pooled_gradients, applies = step(*arguments)
        with tf.control_dependencies(checked):
            if self.embedding.trainable:
                self._apply_to_tables(pooled_gradients, batch, learning_rate, applies)
        return self._update_metrics(x, y, y_pred, sample_weight, loss, applies)

    def _apply_to_tables(self, pooled_gradients, batch, learning_rate, applies):
        arguments = {"weights": batch.weights, "learning_rate": learning_rate}
        if applies is not None:
            taken = inspect.signature(self.embedding.apply_gradients).parameters
            if "applies" in taken:
                arguments["applies"] = applies
            else:  # an embedding layer of the user's
                pooled_gradients = tf.nest.map_structure(
                    lambda g: tf.where(applies, g, tf.zeros_like(g)), pooled_gradients
                )
        self.embedding.apply_gradients(pooled_gradients, batch.ids, **arguments)

    def _has_own_loss(self) -> bool:
        """Whether a subclass computes the loss, perhaps from the features."""
        return type(self).compute_loss is not keras.Model.compute_loss

    def _dense_step(self, dense, pooled, y, sample_weight, share, x):
        """Everything between the lookup and the update of the tables.

        `share` is this replica's part of the rows of the global batch, or `None` for
        all; `x` is for a `compute_loss` of the user's.
        """
        variables = self.dense_variables
        statistics = Restorable(self._statistics if self._guard is not None else [])
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            y_pred = self.score(dense, pooled, training=True)
            loss = self.compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            )
            # Gradients are summed over replicas: those of the global batch's mean.
            loss = keras_hooks.unscale_loss(loss)
            differentiated = loss if share is None else loss * share
        pooled_gradients, dense_gradients = tape.gradient(
            differentiated, (pooled, [variable.value for variable in variables])
        )
        # A `score` of the user's may leave features out.
        pooled_gradients = tf.nest.map_structure(
            lambda vectors, g: tf.zeros_like(vectors) if g is None else g,
            pooled,
            pooled_gradients,
        )
        self._probes.see_gradients(dense_gradients, pooled_gradients)
        applies = None
        if self._guard is not None:
            observed = loss
            if share is not None:  # without a row there is no mean
                observed = tf.where(share > 0, loss, tf.zeros_like(loss))
            applies = self._guard.admit(
                (dense, y, sample_weight, pooled, observed),
                (pooled_gradients, dense_gradients),
            )
            statistics.restore_unless(applies)
        with tf.control_dependencies(tf.nest.flatten(pooled)):
            self._apply_where(applies, dense_gradients)
        return loss, y_pred, pooled_gradients, applies

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
        plain_sgd = isinstance(self.optimizer, keras.optimizers.SGD)
        return not (plain_sgd and not self.optimizer.momentum)

    def _apply_dense(self, *dense_gradients):
        with gradients.freed_with_graph():
            self.optimizer.apply(list(dense_gradients), self.dense_variables)

    def test_step(self, data):
        """Loss and metrics of `(features, label[, sample_weight])`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y = standardize_labels(y)
        y_pred = self(x, training=False)
        loss = self.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=False
        )
        self._track_loss(keras_hooks.unscale_loss(loss), y)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """As `keras.Model.compute_metrics`."""
        with self._kernels():
            return super().compute_metrics(x, y, y_pred, sample_weight)

    def _has_own_metrics(self) -> bool:
        return type(self).compute_metrics is not RowSparseTraining.compute_metrics

    def get_metrics_result(self):
        """As `keras.Model.get_metrics_result`."""
        with self._kernels():
            return super().get_metrics_result()

    def _track_loss(self, loss, y):
        tracker = keras_hooks.loss_tracker(self)
        num_rows = tf.shape(y)[0]
        if _has_replicas():  # one may have no row, and so no mean
            loss = tf.where(num_rows > 0, loss, tf.zeros_like(loss))
        tracker.update_state(loss, sample_weight=num_rows)

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`; refuses a DataFrame, naming the way to go.

        Raises:
            tf_dlrm.training.NotFiniteError: After `max_skipped_batches` (of `compile`)
                in a row; they were not applied.
        """
        validation = kwargs.get("validation_data")
        for part in (x, *(validation if isinstance(validation, tuple) else ())):
            refuse_frame(part)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`; refuses a DataFrame, naming the way to go."""
        refuse_frame(x)
        return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`; refuses a DataFrame, naming the way to go."""
        refuse_frame(x)
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


def _has_replicas() -> bool:
    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def _check_reduction(loss):
    """A mean over the global batch is made of replicas' means; other sums are not."""
    reduction = getattr(loss, "reduction", "sum_over_batch_size")
    if reduction not in ("sum_over_batch_size", "mean"):
        raise ValueError(
            "Under several replicas the loss must be a mean over the batch, with the "
            f"reduction 'sum_over_batch_size'. Received: reduction={reduction!r}"
        )


def _share_of_rows(y):
    """This replica's part of the rows of the global batch; `None` without others.

    Replicas may have different numbers of rows, also none: the mean of their means
    is not the mean of all rows.
    """
    if not _has_replicas():
        return None
    num_rows = tf.cast(tf.shape(y)[0], tf.float32)
    context = tf.distribute.get_replica_context()
    return num_rows / context.all_reduce(tf.distribute.ReduceOp.SUM, num_rows)


def _is_config(mapping) -> bool:
    return "class_name" in mapping
