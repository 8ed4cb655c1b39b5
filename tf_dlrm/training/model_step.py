"""`ModelStep`: the training step of a compiled model and its parts under XLA."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_dlrm.runtime import accelerators, choices, xla
from tf_dlrm.runtime.deferred_checks import DeferredChecks
from tf_dlrm.training import keras_hooks, precision
from tf_dlrm.training.dense_update import DenseUpdate
from tf_dlrm.training.guard import StepGuard
from tf_dlrm.training.probes import LargestBatch, Probes
from tf_dlrm.training.step import CompiledTrainStep, TrainStep
from tf_dlrm.training.step_trial import PARTS, PROGRAM, StepTrial


class StepOptions(NamedTuple):
    """The arguments of `compile` that a step depends on.

    Attributes:
        jit_compile: `"auto"`, `True` or `False`.
        is_eager: Whether Keras runs steps eagerly.
        guard: The guard that decides which batches to apply, or `None` to apply all.
        is_cross_entropy: Whether the loss is binary cross-entropy.
    """

    jit_compile: bool | str
    is_eager: bool
    guard: StepGuard | None
    is_cross_entropy: bool


class ModelStep:
    """The training step of a model, whose kind may be chosen by a trial.

    The step is created again when probes or the use of XLA change.

    Args:
        model: The compiled `RowSparseModel`.
        options: The options of `compile`.
        probes: The probes that observe the step.
        checks: The deferred checks of the step.
    """

    def __init__(
        self,
        model: Any,
        options: StepOptions,
        probes: Probes,
        checks: DeferredChecks,
    ) -> None:
        self._model, self._options = model, options
        self._probes, self._checks = probes, checks
        self._is_xla_off = False
        wants_program = options.jit_compile is True or (
            options.jit_compile == "auto"
            and accelerators.are_visible()
            and self._can_be_program()
        )
        self._wants_program = wants_program and not options.is_eager
        self._trial: StepTrial | None = None
        self._begin_trial()
        self.make()

    @property
    def choice(self) -> str:
        """Extent to which XLA compiles the step: `"none"`, `"parts"` or `"program"`."""
        if self._is_xla_off or self._options.jit_compile is False:
            return "none"
        if self._wants_program:
            return PROGRAM
        if not xla.is_enabled_on_cpus():
            return "none"
        if self._trial is None or choices.is_deterministic():
            return PARTS
        return self._trial.kind

    @property
    def choice_is_final(self) -> bool:
        """True if no trial will change `choice`."""
        return self._trial is None or self._has_fixed_rule() or self._trial.is_over

    def use_xla(self, enabled: bool) -> None:
        """Set whether XLA may compile what `jit_compile` allows."""
        self._is_xla_off = not enabled
        self._begin_trial()
        self.make()

    def make(self) -> None:
        """Create the step again, with the current probes."""
        self._step = self._new(self._wants_program and not self._is_xla_off)

    def __call__(self, data: Any) -> dict[str, Any]:
        """Train on `(features, label[, sample_weight])`; return loss and metrics."""
        return self._run(self._step, data)

    def _run(self, step, data):
        with self._model.xla_settings(), self._checks.collecting():
            return step(data)

    def _new(self, is_program, num_rows=None):
        model, options = self._model, self._options
        step = CompiledTrainStep if is_program else TrainStep
        arguments: dict[str, Any] = {}
        if num_rows is not None:
            arguments = {"num_rows": num_rows, "update": DenseUpdate(model, False)}
        return step(
            model,
            options.guard,
            self._probes,
            DenseUpdate(model, is_program),
            self._checks,
            options.is_cross_entropy,
            **arguments,
        )

    # Choice of the step by measurement

    def _begin_trial(self):
        """Start a new trial if two kinds of step are possible."""
        options = self._options
        possible = (
            options.jit_compile == "auto"
            and not (options.is_eager or self._is_xla_off)
            and not (accelerators.are_visible() or _is_distributed(self._model))
            and self._can_be_program()
            and type(self._model).train_step is type(self._model)._own_train_step
            and keras_hooks.is_equal_under_xla(self._model)
        )
        self._trial = StepTrial(self._describe) if possible else None
        if possible:
            self._largest = self._probes.use(self._model, LargestBatch)
        else:
            self._probes.drop(LargestBatch)

    def _can_be_program(self):
        model = self._model
        is_own = type(model).call is type(model)._own_call and not model.has_own_loss
        return is_own and keras_hooks.is_compilable(model.optimizer)

    def chosen(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a train function that uses the faster kind of step.

        Args:
            function: Keras' train function for this step.
        """
        precision.warn_if_slow(self._model)
        if self._trial is None or self._has_fixed_rule():
            return function
        trial, functions = self._trial, {PARTS: function}

        def run(iterator):
            if trial.kind not in functions:
                if self._has_fixed_rule():
                    trial.stop()
                else:
                    functions[PROGRAM] = self._program_function()
            elif trial.is_over and trial.kind == PARTS:
                functions.pop(PROGRAM, None)
            call = functions[trial.kind]
            return trial.run(lambda: call(iterator))

        return run

    def _has_fixed_rule(self):
        """Return whether the choice must not depend on measured times."""
        if self._model.run_eagerly or not xla.enabled():
            return True
        return choices.is_deterministic()

    def _program_function(self):
        """Return Keras' train function for a step whose dense part is one program.

        The program is compiled only for batches of full size.
        """
        step = self._new(True, self._largest.num_rows)
        return self._model.function_of(lambda data: self._run(step, data))

    def _describe(self):
        """Return all that the times of both kinds of step depend on, JSON-safe."""
        model = self._model
        optimizers = model.embedding_optimizer
        if not isinstance(optimizers, dict):
            optimizers = {"": optimizers}
        names = {type(optimizer).__name__ for optimizer in optimizers.values()}
        return {
            "rows": self._largest.num_rows,
            "dense": [list(v.shape) for v in model.dense_variables],
            "pooled": [t.embedding_dim for t in model.spec.tables for _ in t.features],
            "dtype": model.compute_dtype,
            "optimizers": [type(model.optimizer).__name__, *sorted(names)],
            "guard": self._options.guard is not None,
            "steps_per_execution": model.steps_per_execution,
        }


def _is_distributed(model: keras.Model) -> bool:
    """Return whether a strategy runs the steps, even on a single device."""
    if tf.distribute.has_strategy():
        return True
    return model.distribute_strategy is not tf.distribute.get_strategy()
