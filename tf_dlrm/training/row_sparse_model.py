"""`RowSparseModel`: a Keras model whose tables are trained by row-sparse steps."""

import contextlib
import inspect
import types
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm import optimizers
from tf_dlrm.embedding.recording import recorded
from tf_dlrm.inputs import check_arrays, standardize_targets
from tf_dlrm.runtime import deferred_checks, disk, replicas, xla
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.training import fit_callbacks, keras_hooks, loops
from tf_dlrm.training.checkpoints.positions import weigh_classes
from tf_dlrm.training.guard import GuardCallback, NotFiniteError, StepGuard
from tf_dlrm.training.losses import check_reduction, is_cross_entropy
from tf_dlrm.training.model_step import ModelStep, StepOptions
from tf_dlrm.training.probes import Probe, Probes

# Inputs that have their own order of rows.
_Distributed = tf.distribute.DistributedDataset
_IN_ORDER = (tf.data.Dataset, _Distributed, types.GeneratorType)


class RowSparseModel(keras_hooks.KerasModelAdapter):
    """A `keras.Model` that trains an embedding layer with row-sparse steps.

    A subclass, built by its constructor, has `spec`, `embedding` (an `EmbeddingLayer`)
    and `standardize(features)`. `tf_dlrm.training.step.TrainStep` is the step itself.
    """

    _guard: StepGuard | None = None
    _max_skipped_batches: int | None = None
    _num_in_a_row = 0  # batches that `train_on_batch` skipped in a row
    _is_cross_entropy = False
    _jit_compile_argument: bool | str = "auto"
    _is_xla_off = False

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adagrad",
        loss: Any = "binary_crossentropy",
        metrics: Any = None,
        embedding_optimizer: Any = None,
        jit_compile: bool | str = "auto",
        max_skipped_batches: int | None = 10,
        **kwargs: Any,
    ) -> None:
        """Configure training, as `keras.Model.compile` does.

        Args:
            optimizer: Optimizer of the dense layers: a name or a Keras optimizer.
            loss: Loss of `(batch, 1)` probabilities. Binary cross-entropy requires
                labels in `[0, 1]` and refuses negative sample weights.
            metrics: Keras metrics, such as `tf_dlrm.metrics.ClickAUC()`.
            embedding_optimizer: Optimizer of the tables: a `tf_dlrm.optimizers` object
                or name, or a dict of table names to such values (other tables get the
                default). Default: the row-sparse counterpart of `optimizer`, which
                follows its learning rate; `optimizer` must then be a plain SGD,
                Adagrad, Adam or Ftrl. If `optimizer` is the object that the model was
                already compiled with, the default keeps the tables' optimizer and its
                state. If a callback of `fit`, such as `ReduceLROnPlateau`, changes the
                learning rate of `optimizer`, a float rate of the tables' optimizer
                changes by the same factor. SGD and Adagrad equal their dense
                originals; `"adam"` is lazy on the tables, see
                `tf_dlrm.optimizers.SparseAdam`.
            jit_compile: Extent to which XLA compiles a step. Results agree up to
                rounding, except for dropout, and ids are always checked.
                `"auto"` on CPUs: small parts (lookup and update of rows, the triangle
                of the dot interaction, the update of the dense variables), while oneDNN
                computes the MLPs. After 20 s of steps, some steps time an
                alternative, in which everything between lookup and update is one
                program, and the rest of the training uses the faster one (see
                `docs/how_to/speed_up.md`).
                `"auto"` with a GPU: everything between lookup and update as one
                program, unless the model overrides `call` or `compute_loss`.
                `True`: this program and the small parts, from the first step. It
                includes an overridden `compute_loss`; if that reads ragged `x`, use
                `"auto"`, since each new number of ids compiles the program again.
                `False`: nothing.
            max_skipped_batches: Number of skipped batches in a row after which `fit`
                raises `tf_dlrm.training.NotFiniteError`. A batch is skipped, changing
                nothing, if its loss or gradients are not finite; if there are fewer,
                `fit` ends with a warning that counts them. `None`: do not check.
            **kwargs: Other arguments of `keras.Model.compile`.

        Raises:
            ValueError: If an optimizer, or one of its options, cannot train tables
                exactly; the message names it.
        """
        if self.compute_dtype == "float16":
            raise UserError(
                "`mixed_float16` requires loss scaling, which the tables' row-sparse "
                "updates do not support. Use `mixed_bfloat16`, which does not need it."
            )
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        if num_replicas > 1:
            check_reduction(loss)
        if max_skipped_batches is not None and max_skipped_batches < 1:
            rule = "`max_skipped_batches` must be at least 1, or None."
            raise UserError(f"{rule} Received: {max_skipped_batches!r}")
        if tf.distribute.has_strategy():
            replicas.check_devices(self.embedding, "`compile`")
        if optimizer is None:
            raise UserError("`optimizer` must be a name or a Keras optimizer.")
        optimizer = keras.optimizers.get(optimizer)
        optimizers.check_dense_optimizer(optimizer, num_replicas)
        if jit_compile is True and type(self).call is not type(self)._own_call:
            raise UserError(
                "`jit_compile=True` compiles a step with the `call` of DLRM, which "
                f"{type(self).__name__} overrides. Use jit_compile='auto', or override "
                "`score(dense, pooled, training)` instead."
            )
        # Compiling again with the same optimizer continues training, as in Keras.
        continues = optimizer is self.__dict__.get("_last_optimizer") and (
            embedding_optimizer is None
            or embedding_optimizer is getattr(self, "embedding_optimizer", None)
        )
        super().compile(optimizer, loss, metrics=metrics, jit_compile=False, **kwargs)
        self._jit_compile_argument, self._is_xla_off = jit_compile, False
        self._is_cross_entropy = is_cross_entropy(loss)
        self._max_skipped_batches, self._guard = max_skipped_batches, None
        if max_skipped_batches is not None:
            with self.distribute_strategy.scope():
                self._guard = StepGuard(replicas.device_names()[0])
        self.embedding.use_xla(jit_compile is not False)
        if not continues:
            names = [table.name for table in self.spec.tables if table.trainable]
            self.embedding_optimizer = optimizers.for_tables(
                embedding_optimizer, optimizer, names
            )
            self.embedding.build_optimizer(self.embedding_optimizer)
        self.__dict__["_last_optimizer"] = optimizer  # `compile` did not fail
        # Build it now: at the first step, Keras would include the tables.
        self.optimizer.build(self.dense_variables)
        options = StepOptions(
            jit_compile, self.run_eagerly, self._guard, self._is_cross_entropy
        )
        # Hidden from the tracking by Keras and tf.train.Checkpoint.
        self.__dict__["_step"] = ModelStep(self, options, self._probes, self._checks)

    @property
    def _probes(self) -> Probes:
        return self.__dict__.setdefault("_probes_of_steps", Probes())

    @property
    def _checks(self) -> deferred_checks.DeferredChecks:
        new = deferred_checks.DeferredChecks()
        return self.__dict__.setdefault("_deferred", new)

    def raise_deferred(self) -> None:
        """Raise the first error that deferred checks have found in this `fit`.

        Raises:
            tf.errors.InvalidArgumentError: If an id or a label was out of range.
        """
        self._checks.raise_first()

    @property
    def xla_choice(self) -> str:
        """Extent to which XLA compiles a step: `"none"`, `"parts"` or `"program"`.

        With `jit_compile="auto"`, it may change during a long `fit`.
        """
        return self._step.choice if self.compiled else "none"

    @property
    def xla_choice_is_final(self) -> bool:
        """True if `xla_choice` changes no more; during a trial in `fit`, it may."""
        return not self.compiled or self._step.choice_is_final

    def xla_settings(self) -> contextlib.AbstractContextManager:
        """Return a context in which XLA compiles what `jit_compile` allows."""
        return xla.disabled(self._jit_compile_argument is False or self._is_xla_off)

    def use_xla(self, enabled: bool) -> None:
        """Set whether XLA may compile what `jit_compile` allows, until `compile`.

        Without XLA, a job with few rows ends sooner, because compiling takes seconds.
        Results agree up to rounding.
        """
        self._is_xla_off = not enabled
        self.embedding.use_xla(enabled and self._jit_compile_argument is not False)
        if self.compiled:
            self._step.use_xla(enabled)
        self.train_function = self.test_function = self.predict_function = None

    # Variables

    @property
    def dense_variables(self) -> list[keras.Variable]:
        """Trainable variables that `optimizer` updates: all but the tables."""
        return [v for v in self.trainable_variables if not self.embedding.owns(v)]

    @property
    def statistics(self) -> list[keras.Variable]:
        """Weights that a forward pass changes, such as batch statistics."""
        return [v for v in self.non_trainable_weights if not self.embedding.owns(v)]

    # Methods that Keras calls for each batch

    def train_step(self, data: Any) -> dict[str, Any]:
        """Train on `(features, label[, sample_weight])`; return loss and metrics."""
        return self._step(data)

    _own_train_step = train_step  # to see whether a subclass overrides it

    def test_step(self, data: Any) -> dict[str, Any]:
        """Return loss and metrics of `(features, label[, sample_weight])`."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with recorded(self.embedding):  # a penalty counts the rows of all lookups once
            with self._checks.collecting():
                y, weight = standardize_targets(y, weight, self._is_cross_entropy)
                y_pred = self(x, training=False)
            loss = keras_hooks.compute_loss(self, x, y, y_pred, weight, training=False)
        self.track_loss(loss, y)
        return self.compute_metrics(x, y, y_pred, sample_weight=weight)

    def predict_step(self, data: Any) -> Any:
        """Return click probabilities `(B, 1)` of features."""
        with recorded(self.embedding, penalizes=False), self._checks.collecting():
            return super().predict_step(data)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Update the metrics with a batch and return them, as Keras does."""
        with self.xla_settings():
            return super().compute_metrics(x, y, y_pred, sample_weight)

    @property
    def has_own_loss(self) -> bool:
        """True if a subclass overrides `compute_loss`, which may read the features."""
        return type(self).compute_loss is not keras.Model.compute_loss

    @property
    def has_own_metrics(self) -> bool:
        """True if a subclass overrides `compute_metrics`."""
        return type(self).compute_metrics is not RowSparseModel.compute_metrics

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the metrics so far.

        The loss is NaN if there were no rows, or if all batches so far were skipped.
        """
        with self.xla_settings():
            results = super().get_metrics_result()
        if "loss" in results:
            has_rows = keras_hooks.loss_tracker(self).count > 0
            results["loss"] = tf.where(has_rows, results["loss"], float("nan"))
        return results

    def track_loss(self, loss: tf.Tensor, y: tf.Tensor) -> None:
        """Add the mean loss of a batch to the loss that `fit` reports."""
        num_rows = tf.shape(y)[0]
        if replicas.count() > 1:  # a replica without rows has no mean
            loss = tf.where(num_rows > 0, loss, tf.zeros_like(loss))
        keras_hooks.loss_tracker(self).update_state(loss, sample_weight=num_rows)

    # Probes and skipped batches

    def use_probe(self, kind: type[Probe]) -> Any:
        """Return the probe of a kind, and trace it into the steps of the next `fit`."""
        return self._probes.use(self, kind)

    def drop_probe(self, kind: type[Probe]) -> None:
        """Remove the probe of a kind from the steps of the next `fit`."""
        self._probes.drop(kind)

    def make_train_function(self, force: bool = False) -> None:
        """Create the function that `fit` calls; trace it again if probes changed."""
        changed, before = self._probes.take_change(), self.train_function
        if changed:
            self._step.make()
        super().make_train_function(force or changed)
        if self.train_function is not before:
            self.train_function = self._step.chosen(self.train_function)

    @property
    def num_skipped_batches(self) -> int:
        """Number of batches since `compile` that were skipped as not finite."""
        return 0 if self._guard is None else self._guard.num_skipped

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch, as `keras.Model.train_on_batch` does.

        The loss of a skipped batch is NaN.

        Raises:
            tf_dlrm.training.NotFiniteError: After `max_skipped_batches` (an argument of
                `compile`) skipped batches in a row.
        """
        before = self.num_skipped_batches
        with self._checks.read_at_end():
            result = super().train_on_batch(*args, **kwargs)
        guard, limit = self._guard, self._max_skipped_batches
        if guard is None or limit is None or guard.num_skipped == before:
            self._num_in_a_row = 0
            return result
        self._num_in_a_row += 1
        if self._num_in_a_row >= limit:
            raise NotFiniteError(
                f"{self._num_in_a_row:,} batches in a row had a loss or gradients that "
                f"are not finite (not finite in the last one: {guard.describe()}). "
                "None of them was applied. Use a smaller learning rate, or check the "
                "data."
            )
        return result

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch, as `keras.Model.test_on_batch` does."""
        with self._checks.read_at_end():
            return super().test_on_batch(*args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Predict one batch, as `keras.Model.predict_on_batch` does."""
        with self._checks.read_at_end():
            return super().predict_on_batch(x)

    # Methods that users call

    def fit(
        self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """Train the model, as `keras.Model.fit` does.

        The callback that counts skipped batches runs before yours. Float learning rates
        of the tables' optimizers change in proportion to that of the model's optimizer.

        Raises:
            TypeError: If `x` is a DataFrame; the message says what to pass instead.
            ValueError: If `class_weight` is not a dict of weights of labels 0 and 1.
            tf_dlrm.training.NotFiniteError: After `max_skipped_batches` (an argument of
                `compile`) skipped batches in a row.
        """
        if tf.distribute.has_strategy():
            replicas.check_devices(self.embedding, "`fit`")
        call = inspect.signature(super().fit).bind(x, y, *args, **kwargs)
        options = call.arguments
        check_arrays(x, y, self.spec)
        if isinstance(validation := options.get("validation_data"), tuple):
            validation_x, validation_y = (*validation, None)[:2]
            check_arrays(validation_x, validation_y, self.spec)
        if isinstance(x, _IN_ORDER):
            options.setdefault("shuffle", False)  # Keras warns of its default
        weigh_classes(options)
        guard = None
        if self._guard is not None and self._max_skipped_batches is not None:
            guard = GuardCallback(self._guard, self._max_skipped_batches)
        with contextlib.ExitStack() as stack:
            stack.enter_context(disk.explaining_logs())
            stack.enter_context(loops.explaining_lost_workers(self))
            stack.callback(self.embedding.settle)
            options["callbacks"] = fit_callbacks.add(
                self, options.get("callbacks"), guard, stack
            )
            with self._checks.read_at_end():
                history = super().fit(*call.args, **call.kwargs)
        if guard is not None:
            guard.report()
        return history

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the model, as `keras.Model.evaluate` does; refuse a DataFrame."""
        check_arrays(x, y, self.spec)
        with loops.running(self, kwargs.get("steps")), self._checks.read_at_end():
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Return predictions, as `keras.Model.predict` does; refuse a DataFrame."""
        check_arrays(x, None, self.spec)
        with loops.running(self, kwargs.get("steps")), self._checks.read_at_end():
            return super().predict(x, *args, **kwargs)

    # Arguments of `compile` are saved with the model, including the tables' optimizer.

    def get_compile_config(self) -> dict[str, Any]:
        """Return the arguments of `compile` as JSON-safe values."""
        if not self.compiled:
            return {}
        config = super().get_compile_config()
        config["jit_compile"] = self._jit_compile_argument
        config["max_skipped_batches"] = self._max_skipped_batches
        config["embedding_optimizer"] = keras.saving.serialize_keras_object(
            self.embedding_optimizer
        )
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile the model with the arguments that `get_compile_config` returned."""
        self.compile(**keras.saving.deserialize_keras_object(config))
