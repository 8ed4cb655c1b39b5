"""`DenseUpdate`: the update of the dense variables by the model's Keras optimizer."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dlrm.runtime import accelerators, gradients, xla
from tf_dlrm.training import keras_hooks
from tf_dlrm.training.guard import Restorable


class DenseUpdate:
    """Update of the dense variables of a model, as one XLA kernel where possible.

    XLA fuses the passes over each variable that an optimizer with state makes.

    Args:
        model: The compiled model, with `optimizer` and `dense_variables`.
        is_in_program: Whether the update is part of a larger XLA program.
    """

    def __init__(self, model: keras.Model, is_in_program: bool) -> None:
        self._model, self._is_in_program = model, is_in_program
        self._kernel = xla.Kernel(self._step, "dense_optimizer")

    def apply(
        self, dense_gradients: Sequence[tf.Tensor], applies: tf.Tensor | None
    ) -> None:
        """Apply the gradients.

        Args:
            dense_gradients: Gradients of the dense variables.
            applies: Bool scalar tensor: if `False`, nothing changes. `None` is `True`.
        """
        if applies is None:
            self._apply(dense_gradients)
        elif tf.distribute.has_strategy() or accelerators.are_visible():
            # Sums over replicas are impossible in a branch, and an accelerator would
            # have to wait for its condition.
            model = self._model
            state = Restorable([*model.dense_variables, *model.optimizer.variables])
            self._apply(dense_gradients)
            state.restore_unless(applies)
        else:

            def apply():
                self._apply(dense_gradients)
                return True

            tf.cond(applies, apply, lambda: False)

    def _apply(self, dense_gradients):
        if self._compiles():
            self._kernel(*dense_gradients)
        else:
            self._step(*dense_gradients)

    def _compiles(self) -> bool:
        if tf.distribute.has_strategy() or self._is_in_program:
            return False
        optimizer = self._model.optimizer
        if not keras_hooks.is_compilable(optimizer):
            return False
        is_sgd = isinstance(optimizer, keras.optimizers.SGD)
        return not (is_sgd and not optimizer.momentum)

    def _step(self, *dense_gradients):
        optimizer = self._model.optimizer
        if not dense_gradients:  # all MLPs are frozen: only count the step
            optimizer.iterations.assign_add(1)
            return
        with gradients.freed_with_graph():
            optimizer.apply(list(dense_gradients), self._model.dense_variables)
