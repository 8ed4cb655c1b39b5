"""Optimizers by name or config, and row-sparse counterparts of Keras optimizers."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tf_dlrm.optimizers.base import LearningRate, SparseOptimizer
from tf_dlrm.optimizers.dense import DenseAdagrad, DenseAdam, DenseSGD
from tf_dlrm.optimizers.sparse_adagrad import RowWiseAdagrad, SparseAdagrad
from tf_dlrm.optimizers.sparse_adam import SparseAdam
from tf_dlrm.optimizers.sparse_ftrl import SparseFtrl
from tf_dlrm.optimizers.sparse_sgd import SparseSGD
from tf_dlrm.runtime.errors import UserError

_BY_NAME: dict[str, type[SparseOptimizer]] = {
    "sgd": SparseSGD,
    "sparse_sgd": SparseSGD,
    "adagrad": SparseAdagrad,
    "sparse_adagrad": SparseAdagrad,
    "row_wise_adagrad": RowWiseAdagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": SparseAdam,
    "sparse_adam": SparseAdam,
    "ftrl": SparseFtrl,
    "sparse_ftrl": SparseFtrl,
    "dense_sgd": DenseSGD,
    "dense_adagrad": DenseAdagrad,
    "dense_adam": DenseAdam,
}
# Options that would affect rows without a gradient, or all variables at once.
_NEVER = ("use_ema", "gradient_accumulation_steps", "loss_scale_factor")
CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")
_DENSE_ONLY = (
    "weight_decay",
    *CLIPPING,
    "momentum",
    "amsgrad",
    "l2_shrinkage_regularization_strength",
)
# Optimizers that scale the loss, evaluate with different weights, or assign variables
# to several optimizers.
_REFUSED = (
    keras.optimizers.LossScaleOptimizer,
    keras.optimizers.ScheduleFreeAdamW,
    keras.optimizers.MultiOptimizer,
)


def get(identifier: Any) -> SparseOptimizer:
    """Return the row-sparse optimizer for an object, name, config or Keras optimizer.

    Args:
        identifier: One of:
            a `SparseOptimizer`, which is returned unchanged;
            a name, `"sgd"`, `"adagrad"`, `"row_wise_adagrad"`, `"adam"` or `"ftrl"`,
            for an optimizer that follows the learning rate of the model's optimizer
            (`"sparse_sgd"` and so on and the class names are accepted too, and
            `"dense_adam"` and so on for the dense ones);
            a config from `keras.saving.serialize_keras_object`;
            a Keras `SGD`, `Adagrad`, `Adam` or `Ftrl` object, whose counterpart has the
            same learning rate.

    Raises:
        ValueError: If it is none of these, or if a Keras optimizer sets an option that
            has no row-sparse counterpart.
    """
    if isinstance(identifier, SparseOptimizer):
        return identifier
    if isinstance(identifier, dict):
        return get(keras.saving.deserialize_keras_object(identifier))
    if isinstance(identifier, keras.optimizers.Optimizer):
        check_dense_optimizer(identifier)
        rate = identifier.get_config()["learning_rate"]
        if isinstance(rate, dict):
            rate = keras.optimizers.schedules.deserialize(rate)
        return from_keras(identifier, learning_rate=rate)
    key = str(identifier).lower()
    if key in _BY_NAME:
        return _BY_NAME[key](learning_rate=None)
    names = {cls.__name__.lower(): cls for cls in _BY_NAME.values()}
    if key in names:
        return names[key](learning_rate=None)
    raise UserError(
        "`embedding_optimizer` must be a tf_dlrm.optimizers object, one of "
        f"{sorted(_BY_NAME)}, or a Keras SGD, Adagrad, Adam or Ftrl. Received: "
        f"{identifier!r}"
    )


def for_tables(
    identifier: Any, optimizer: keras.optimizers.Optimizer, tables: Iterable[str]
) -> SparseOptimizer | dict[str, SparseOptimizer]:
    """Return one optimizer for all tables, or a dict with one for each table.

    Args:
        identifier: The `embedding_optimizer` argument of a model's `compile`.
        optimizer: The Keras optimizer of the model; tables without an optimizer of
            their own use its counterpart.
        tables: Names of the trainable tables.

    Returns:
        A `SparseOptimizer`, or a dict that maps table names to optimizers.
    """
    names = list(tables)
    if identifier is None:  # without trainable tables, `optimizer` may be any
        return from_keras(optimizer) if names else {}
    if not isinstance(identifier, dict) or "class_name" in identifier:
        return get(identifier)
    # Tables with the same name share one object, so that one update serves them all.
    by_name = {name: get(name) for name in identifier.values() if isinstance(name, str)}
    optimizers = {
        table: by_name[own] if isinstance(own, str) else get(own)
        for table, own in identifier.items()
    }
    unnamed = [name for name in names if name not in optimizers]
    if unnamed:
        optimizers |= dict.fromkeys(unnamed, from_keras(optimizer))
    return optimizers


def from_keras(
    optimizer: keras.optimizers.Optimizer, learning_rate: LearningRate = None
) -> SparseOptimizer:
    """Return the row-sparse counterpart of a Keras `SGD`, `Adagrad`, `Adam` or `Ftrl`.

    Args:
        optimizer: The Keras optimizer.
        learning_rate: A float or a Keras schedule. Default: follow the learning rate of
            `optimizer`.

    Raises:
        ValueError: If the optimizer, or an option that it sets, has no exact row-sparse
            counterpart.
    """
    kind = type(optimizer)
    fix = (
        "Give the tables an optimizer of their own with "
        "compile(..., embedding_optimizer=tf_dlrm.optimizers...); the Keras optimizer "
        "then trains only the MLPs."
    )
    if kind not in (
        keras.optimizers.SGD,
        keras.optimizers.Adagrad,
        keras.optimizers.Adam,
        keras.optimizers.Ftrl,
    ):
        raise UserError(
            f"{kind.__name__} has no row-sparse counterpart (SGD, Adagrad, Adam and "
            f"Ftrl have one). {fix}"
        )
    for option in (*_NEVER, *_DENSE_ONLY):
        value = getattr(optimizer, option, None)
        if not _is_off(option, value):
            raise UserError(
                f"`{option}={value}` of {kind.__name__} affects rows that are not in "
                f"the batch, or all variables at once. {fix}"
            )
    if kind is keras.optimizers.SGD:
        return SparseSGD(learning_rate)
    if kind is keras.optimizers.Adagrad:
        return SparseAdagrad(
            learning_rate,
            initial_accumulator_value=optimizer.initial_accumulator_value,
            epsilon=optimizer.epsilon,
        )
    if kind is keras.optimizers.Ftrl:
        if optimizer.learning_rate_power != -0.5:
            raise UserError(
                "Ftrl has a row-sparse counterpart only with `learning_rate_power` "
                f"-0.5. Received: {optimizer.learning_rate_power}. {fix}"
            )
        return SparseFtrl(
            learning_rate,
            initial_accumulator_value=optimizer.initial_accumulator_value,
            l1_regularization_strength=optimizer.l1_regularization_strength,
            l2_regularization_strength=optimizer.l2_regularization_strength,
            beta=optimizer.beta,
        )
    return SparseAdam(
        learning_rate,
        beta_1=optimizer.beta_1,
        beta_2=optimizer.beta_2,
        epsilon=optimizer.epsilon,
    )


def check_dense_optimizer(
    optimizer: keras.optimizers.Optimizer, num_replicas: int = 1
) -> None:
    """Refuse options that dense and row-sparse updates cannot both honor.

    Args:
        optimizer: A Keras optimizer.
        num_replicas: Number of replicas that train the model.

    Raises:
        ValueError: For loss scaling, moving averages, gradient accumulation, a
            combination of optimizers or an Adafactor that divides by zero, and with
            several replicas for clipping; the message names the option.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, _REFUSED):
        raise UserError(
            f"{name} is not supported: it would treat the MLPs and the embedding "
            "tables differently. Use SGD, Adagrad, Adam or another plain optimizer."
        )
    if isinstance(optimizer, keras.optimizers.Adafactor):
        if np.float32(optimizer.epsilon_1) ** 2 < np.finfo(np.float32).tiny:
            raise UserError(
                f"`epsilon_1={optimizer.epsilon_1}` of {name} is not supported: its "
                "square is 0 in float32, so a weight between two units without "
                "gradients, such as two that ReLU switched off, becomes NaN. Use "
                "keras.optimizers.Adafactor(epsilon_1=1e-16)."
            )
    for option in _NEVER:
        value = getattr(optimizer, option, None)
        if not _is_off(option, value):
            raise UserError(
                f"`{option}={value}` of {name} is not supported: it would treat the "
                "MLPs and the embedding tables differently."
            )
    for option in CLIPPING if num_replicas > 1 else ():
        value = getattr(optimizer, option, None)
        if value is not None:
            raise UserError(
                f"`{option}={value}` of {name} is not supported with {num_replicas} "
                "replicas: Keras clips the gradients of each replica before it sums "
                "them, so the weights would differ from training on one device."
            )


def _is_off(option: str, value: Any) -> bool:
    if value == 0 and option not in CLIPPING:
        return True
    return value is None or value is False
