"""Optimizers by name or config, and the row-sparse counterpart of a Keras optimizer."""

from collections.abc import Iterable
from typing import Any

import keras

from tf_dlrm.optimizers.base import LearningRate, SparseOptimizer
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
}
# Options that would act on rows without a gradient, or on all variables at once.
_NEVER = ("use_ema", "gradient_accumulation_steps", "loss_scale_factor")
CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")
_DENSE_ONLY = (
    "weight_decay",
    *CLIPPING,
    "momentum",
    "amsgrad",
    "l2_shrinkage_regularization_strength",
)
# Optimizers that scale the loss, keep other weights for evaluation, or ask which
# variable goes to which of several.
_REFUSED = (
    keras.optimizers.LossScaleOptimizer,
    keras.optimizers.ScheduleFreeAdamW,
    keras.optimizers.MultiOptimizer,
)


def get(identifier: Any) -> SparseOptimizer:
    """Return the row-sparse optimizer of an object, name, config or Keras optimizer.

    Args:
        identifier: A `SparseOptimizer`; a name (`"sgd"`, `"adagrad"`,
            `"row_wise_adagrad"`, `"adam"`, `"ftrl"`; or with `sparse_` in front),
            which follows the learning rate of the model's optimizer; a config made by
            `keras.saving.serialize_keras_object`; or a Keras `SGD`, `Adagrad`, `Adam`
            or `Ftrl` object, whose counterpart keeps its learning rate.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(identifier, SparseOptimizer):
        return identifier
    if isinstance(identifier, dict):
        return get(keras.saving.deserialize_keras_object(identifier))
    if isinstance(identifier, keras.optimizers.Optimizer):
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
    """Return the optimizer of all tables, or one for each.

    Args:
        identifier: The `embedding_optimizer` of a model's `compile`.
        optimizer: The Keras optimizer of the model, whose counterpart is the default.
        tables: Names of the tables.

    Returns:
        A `SparseOptimizer`, or a dict of table name to one.
    """
    if identifier is None:
        return from_keras(optimizer)
    if not isinstance(identifier, dict) or "class_name" in identifier:
        return get(identifier)
    # One object for all tables of a name: what has one optimizer is one update.
    by_name = {name: get(name) for name in identifier.values() if isinstance(name, str)}
    chosen = {
        table: by_name[each] if isinstance(each, str) else get(each)
        for table, each in identifier.items()
    }
    unnamed = [name for name in tables if name not in chosen]
    if unnamed:
        chosen |= dict.fromkeys(unnamed, from_keras(optimizer))
    return chosen


def from_keras(
    optimizer: keras.optimizers.Optimizer, learning_rate: LearningRate = None
) -> SparseOptimizer:
    """Return the row-sparse counterpart of a Keras `SGD`, `Adagrad`, `Adam`, `Ftrl`.

    Args:
        optimizer: The Keras optimizer.
        learning_rate: A float or a Keras schedule. By default it follows `optimizer`.

    Raises:
        ValueError: If the optimizer, or an option that it sets, has no counterpart
            that is exact on rows.
    """
    kind = type(optimizer)
    fix = (
        "Give the tables an optimizer of their own with "
        "compile(..., embedding_optimizer=tf_dlrm.optimizers...); the Keras optimizer "
        "then trains the MLPs only."
    )
    if kind not in (
        keras.optimizers.SGD,
        keras.optimizers.Adagrad,
        keras.optimizers.Adam,
        keras.optimizers.Ftrl,
    ):
        raise UserError(
            f"{kind.__name__} has no row-sparse counterpart (SGD, Adagrad, Adam and "
            f"Ftrl have). {fix}"
        )
    for option in (*_NEVER, *_DENSE_ONLY):
        value = getattr(optimizer, option, None)
        if not _is_off(option, value):
            raise UserError(
                f"`{option}={value}` of {kind.__name__} acts on rows that are not in "
                f"the batch, or on all variables at once. {fix}"
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
                "`learning_rate_power` of Ftrl must be -0.5 to have a row-sparse "
                f"counterpart. Received: {optimizer.learning_rate_power}. {fix}"
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
    """Refuse options that dense and row-sparse updates cannot both honour.

    Args:
        optimizer: A Keras optimizer.
        num_replicas: Number of replicas that train.

    Raises:
        ValueError: For loss scaling, moving averages, gradient accumulation, several
            optimizers in one; with several replicas for clipping; by name.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, _REFUSED):
        raise UserError(
            f"{name} is not supported: it would treat the MLPs and the embedding "
            "tables differently. Use SGD, Adagrad, Adam or another plain optimizer."
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
                f"`{option}={value}` of {name} is not supported under {num_replicas} "
                "replicas: Keras clips the gradients of each before it sums them, "
                "which trains other weights than one device does."
            )


def _is_off(option: str, value: Any) -> bool:
    if value == 0 and option not in CLIPPING:
        return True
    return value is None or value is False
