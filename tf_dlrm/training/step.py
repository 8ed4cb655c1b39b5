"""The training step: look up, score, differentiate, update, report.

The step calls the model, which looks rows up and scores them, as in `predict`. The
lookups are recorded outside of the tape, which watches only the pooled vectors, and the
embedding layer receives their gradients. No gradient ever has the shape of a table, and
layers that store their tables elsewhere work in the same way.
"""

import functools
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_dlrm.embedding.recording import Lookup, recorded
from tf_dlrm.inputs import standardize_targets
from tf_dlrm.runtime import accelerators, replicas
from tf_dlrm.runtime.deferred_checks import DeferredChecks
from tf_dlrm.training import keras_hooks
from tf_dlrm.training.dense_update import DenseUpdate
from tf_dlrm.training.guard import Restorable, StepGuard
from tf_dlrm.training.probes import Probes


class Batch(NamedTuple):
    """The rows of a step.

    Attributes:
        features: The features that the model is called with.
        x: The unchanged features, for metrics and a user's `compute_loss`.
        y: Labels `(B, 1)`.
        sample_weight: Weights of the rows, or `None`.
        share: This replica's share of the rows of the global batch; `None` for all.
    """

    features: Any
    x: Any
    y: tf.Tensor
    sample_weight: tf.Tensor | None
    share: tf.Tensor | None = None


class Forward(NamedTuple):
    """Results of the forward pass.

    Attributes:
        loss: Mean over this replica's rows.
        y_pred: Click probabilities `(B, 1)`.
        lookups: The lookups, in the order of the calls.
        tape: The tape, which recorded everything but the lookups.
        statistics: The model's statistics, which the forward pass changed.
    """

    loss: tf.Tensor
    y_pred: tf.Tensor
    lookups: list[Lookup]
    tape: tf.GradientTape | None = None
    statistics: Restorable | None = None

    @property
    def pooled(self) -> list[Any]:
        """Pooled vectors of each lookup."""
        return [lookup.pooled for lookup in self.lookups]

    @property
    def penalties(self) -> list[tf.Tensor]:
        """Penalties on the rows of the lookups."""
        penalties = [lookup.penalty for lookup in self.lookups]
        return [penalty for penalty in penalties if penalty is not None]


class Gradients(NamedTuple):
    """Gradients of the loss of the global batch, from this replica's rows.

    Attributes:
        dense: Gradients of the dense variables.
        pooled: Gradients of the pooled vectors of each lookup.
        applies: Whether to apply the batch, bool scalar tensor; `None` is `True`.
        penalty: Derivative with respect to the penalty on rows; `None` without one.
    """

    dense: list[tf.Tensor]
    pooled: list[Any]
    applies: tf.Tensor | None
    penalty: tf.Tensor | None = None


class TrainStep:
    """Training step of a model with an `EmbeddingLayer`.

    Args:
        model: The compiled `RowSparseModel`.
        guard: The guard that decides which batches to apply, or `None` to apply all.
        probes: The probes that observe the step.
        dense_update: The update of the dense variables.
        checks: The deferred checks of the step.
        is_cross_entropy: Whether the loss is binary cross-entropy, which limits labels
            and weights.
    """

    def __init__(
        self,
        model: keras.Model,
        guard: StepGuard | None,
        probes: Probes,
        dense_update: DenseUpdate,
        checks: DeferredChecks,
        is_cross_entropy: bool,
    ) -> None:
        self._model, self._embedding = model, model.embedding
        self._guard, self._probes = guard, probes
        self._dense_update, self._checks = dense_update, checks
        self._is_cross_entropy = is_cross_entropy

    def __call__(self, data: Any) -> dict[str, Any]:
        """Train on `(features, label[, sample_weight])`; return loss and metrics."""
        batch = self._open(data)
        forward = self._look_up_and_score(batch)
        self._probes.see_lookups(forward.lookups)
        gradients = self._differentiate(batch, forward, self._checks.passed())
        self._update(forward, gradients)
        return self._report(batch, forward, gradients)

    def _open(self, data) -> Batch:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y, sample_weight = standardize_targets(y, sample_weight, self._is_cross_entropy)
        self._probes.see_batch(data)
        return Batch(x, x, y, sample_weight, _share_of_rows(y))

    def _look_up_and_score(self, batch: Batch, made: Lookup | None = None) -> Forward:
        """Call the model and its loss.

        Args:
            batch: The batch.
            made: The lookup, if it was made before.
        """
        may_undo = self._guard is not None or accelerators.are_visible()
        statistics = Restorable(self._model.statistics if may_undo else [])
        with tf.GradientTape() as tape:
            with recorded(
                self._embedding, tape, made, trains=self._trains_tables
            ) as recording:
                y_pred = self._model(batch.features, training=True)
                loss = keras_hooks.compute_loss(
                    self._model, batch.x, batch.y, y_pred, batch.sample_weight
                )
        self._check_reads(tape)
        return Forward(loss, y_pred, recording.lookups, tape, statistics)

    def _check_reads(self, tape):
        """Raise an error if the step read tables without calling their layer."""
        if not self._trains_tables:
            return
        tables = self._embedding.lookup_variables
        if any(read is table for read in tape.watched_variables() for table in tables):
            raise ValueError(
                "The training step read the embedding tables' variables directly, so "
                "no gradient would reach the rows. Call the layer to look rows up, "
                "`self.embedding(ids)`, as often as you need."
            )

    @property
    def _trains_tables(self):
        return self._model.trainable and self._embedding.trainable

    def _differentiate(
        self, batch: Batch, forward: Forward, passed: tf.Tensor | None
    ) -> Gradients:
        """Return the gradients, and whether to apply them.

        Args:
            batch: The batch.
            forward: The results of its forward pass.
            passed: Whether the batch passed the deferred checks; `None` without checks.
        """
        if forward.tape is None:
            raise RuntimeError("The forward pass was not recorded on a tape.")
        variables = [variable.value for variable in self._model.dense_variables]
        # Weighted by the share, so that the sum over replicas is the gradient of the
        # mean over the global batch.
        pooled, penalties, dense = forward.tape.gradient(
            forward.loss,
            (forward.pooled, forward.penalties, variables),
            output_gradients=batch.share,
        )
        # A user's model may ignore some features.
        pooled = tf.nest.map_structure(
            lambda vectors, gradient: (
                tf.zeros_like(vectors) if gradient is None else gradient
            ),
            forward.pooled,
            pooled,
        )
        self._probes.see_gradients(dense, pooled)
        applies = self._admit(batch, forward, pooled, dense)
        if passed is not None:
            applies = passed if applies is None else tf.logical_and(applies, passed)
        if applies is not None and forward.statistics is not None:
            forward.statistics.restore_unless(applies)
        return Gradients(dense, pooled, applies, _penalty_gradient(penalties))

    def _admit(self, batch, forward, pooled, dense):
        """Ask the guard whether the batch is applied."""
        if self._guard is None:
            return None
        observed = forward.loss
        if batch.share is not None:  # a replica without rows has no mean
            observed = tf.where(batch.share > 0, observed, tf.zeros_like(observed))
        inputs = [_floats(batch.features), batch.y, batch.sample_weight, forward.pooled]
        # Everything that changes variables waits for a batch with valid ids. At the end
        # of a dataset of unknown length, a step starts but gets no batch; it must not
        # count.
        with tf.control_dependencies(tf.nest.flatten(forward.pooled)):
            return self._guard.admit((*inputs, observed), (pooled, dense))

    def _update(self, forward: Forward, gradients: Gradients) -> None:
        """Update the dense variables and the rows that were looked up."""
        with tf.control_dependencies(tf.nest.flatten(forward.pooled)):
            # Read it before the dense update advances the schedule.
            rate = tf.convert_to_tensor(self._model.optimizer.learning_rate)
            self._dense_update.apply(gradients.dense, gradients.applies)
            self._update_rows(forward, gradients, rate)

    def _update_rows(self, forward, gradients, rate):
        if forward.lookups and self._trains_tables:
            own = () if gradients.penalty is None else (gradients.penalty,)
            self._embedding.apply_lookups(
                forward.lookups, gradients.pooled, rate, gradients.applies, *own
            )

    def _report(self, batch: Batch, forward: Forward, gradients: Gradients):
        """Return loss and metrics so far, which do not include skipped batches."""
        model, applies, loss = self._model, gradients.applies, forward.loss

        def update(x, y, y_pred, sample_weight):
            model.track_loss(loss, y)
            return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

        rows = batch.x, batch.y, forward.y_pred, batch.sample_weight
        if applies is None:
            return update(*rows)
        is_plain = not model.has_own_metrics and not tf.distribute.has_strategy()
        if is_plain and accelerators.are_visible():
            return self._report_masked(update, rows, applies)
        if is_plain:
            keras_hooks.build_metrics(model)  # a branch cannot create variables
            return tf.cond(applies, lambda: update(*rows), model.get_metrics_result)
        # Sums over replicas and user code may fail in a branch.
        loss = tf.where(applies, loss, tf.zeros_like(loss))
        num_rows = tf.where(applies, tf.shape(batch.y)[0], 0)
        return update(
            *tf.nest.map_structure(
                lambda tensor: None if tensor is None else tensor[:num_rows], rows
            )
        )

    def _report_masked(self, update, rows, applies):
        """Update the metrics, and restore them unless the batch is applied."""
        keras_hooks.build_metrics(self._model)
        state = Restorable(self._model.metrics_variables)
        update(*rows)
        state.restore_unless(applies)
        return self._model.get_metrics_result()


class CompiledTrainStep(TrainStep):
    """Training step with one XLA program between the lookup and update of the rows.

    The lookup stays outside, because XLA would remove its range check. With several
    replicas, whose sums XLA cannot compile, this is a plain `TrainStep`.

    Args:
        *arguments: Arguments of `TrainStep`.
        num_rows: Number of rows of the batches that use the program; default: any.
        update: The update of the dense variables for all other batches.
    """

    def __init__(
        self,
        *arguments: Any,
        num_rows: int | None = None,
        update: DenseUpdate | None = None,
    ) -> None:
        super().__init__(*arguments)
        self._num_rows, self._other_update = num_rows, update
        self._program = tf.function(
            functools.partial(self._run_program, self._dense_update),
            jit_compile=True,
            reduce_retracing=True,
            autograph=False,
        )

    def __call__(self, data: Any) -> dict[str, Any]:
        if replicas.count() > 1:
            return super().__call__(data)
        model, batch = self._model, self._open(data)
        inputs = model.standardize(batch.x)
        with recorded(self._embedding, trains=self._trains_tables) as recording:
            pooled = self._embedding(inputs.ids, weights=inputs.weights)
        (lookup,) = recording.lookups
        with tf.control_dependencies(tf.nest.flatten(pooled)):
            rate = tf.convert_to_tensor(model.optimizer.learning_rate)
        no_ids = tf.zeros((tf.shape(batch.y)[0], model.spec.num_sparse), tf.int32)
        features = {"dense_features": inputs.dense, "sparse_features": no_ids}
        loss, y_pred, gradients = self._compute(
            features,
            batch.y,
            batch.sample_weight,
            batch.x if model.has_own_loss else None,
            pooled,
            lookup.penalty,
            self._checks.passed(),
        )
        self._probes.see_lookups([lookup])
        forward = Forward(loss, y_pred, [lookup])
        with tf.control_dependencies(tf.nest.flatten(pooled)):
            self._update_rows(forward, gradients, rate)
        return self._report(batch, forward, gradients)

    def _compute(self, features, y, *others):
        """Run the program, or the same computation uncompiled for other batch sizes."""
        if self._num_rows is None or y.shape[0] == self._num_rows:
            return self._program(features, y, *others)
        other = functools.partial(self._run_program, self._other_update)
        if y.shape[0] is not None:
            return other(features, y, *others)
        return tf.cond(
            tf.equal(tf.shape(y)[0], self._num_rows),
            lambda: self._program(features, y, *others),
            lambda: other(features, y, *others),
        )

    def _run_program(
        self, update, features, y, sample_weight, x, pooled, penalty, passed
    ):
        batch = Batch(features, x, y, sample_weight)
        forward = self._look_up_and_score(batch, Lookup(None, None, pooled, penalty))
        gradients = self._differentiate(batch, forward, passed)
        with tf.control_dependencies(tf.nest.flatten(forward.pooled)):
            update.apply(gradients.dense, gradients.applies)
        return forward.loss, forward.y_pred, gradients._replace(dense=[])


def _share_of_rows(y) -> tf.Tensor | None:
    """Return this replica's share of the global batch's rows; `None` without replicas.

    Replicas may have different numbers of rows, or none, so that the mean of their
    means is not the mean of all rows.
    """
    if replicas.count() == 1:
        return None
    num_rows = tf.cast(tf.shape(y)[0], tf.float32)
    context = tf.distribute.get_replica_context()
    return num_rows / context.all_reduce(tf.distribute.ReduceOp.SUM, num_rows)


def _penalty_gradient(gradients):
    """Return the derivative with respect to the penalty on the rows of all lookups.

    Args:
        gradients: Derivatives with respect to the penalty of each lookup.
    """
    if not gradients:
        return None
    reached = [gradient for gradient in gradients if gradient is not None]
    if not reached:  # a user's loss ignores the penalty
        return tf.zeros(())
    if len(reached) < len(gradients):
        raise ValueError(
            "The loss includes the penalty of the tables' `regularizer` for only some "
            f"of the {len(gradients)} lookups of the step. Look up all rows in `call`, "
            "and let `compute_loss` add `sum(self.losses)`."
        )
    return reached[0]


def _floats(features):
    """Return the floating-point tensors of the features, which the guard checks."""
    tensors = tf.nest.flatten(features, expand_composites=True)
    return [x for x in map(tf.convert_to_tensor, tensors) if x.dtype.is_floating]
