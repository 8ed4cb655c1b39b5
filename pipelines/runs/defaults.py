"""Defaults of options, chosen by the optimizer and the number of rows.

The choices rest on measurements: see docs/results/defaults.md.
"""

import dataclasses
import math
from typing import Any

from pipelines.runs.config import RunConfig

# Learning rates of the MLPs and of the tables.
LEARNING_RATES = {"sgd": (0.3, 10.0), "adagrad": (0.02, 0.1), "adam": (0.002, 0.004)}
COMPLETED = (
    "interaction",
    "batch_size",
    "epochs",
    "learning_rate",
    "embedding_learning_rate",
)
# Each feature adds its own term to the logit, as in a logistic regression. It also has
# a penalty, `l2`, if there are very few rows.
ADDITIVE = {
    "interaction": "cat",
    "top_mlp_dims": (1,),
    "initial_embedding_limit": 0.001,
}
CHOSEN = (*ADDITIVE, "l2")
_SMALLEST_BATCH, _LARGEST_BATCH = 128, 1024
# Largest numbers of rows for concatenation and for two epochs.
_MOST_ROWS_FOR_CAT, _MOST_ROWS_FOR_TWO_EPOCHS = 20_000, 100_000
# Largest numbers of rows and of their cells for a comparison of models.
_MOST_ROWS_TO_COMPARE, _MOST_CELLS_TO_COMPARE = 40_000, 20_000_000
# Penalty of an additive model on the sum of the losses of all rows.
_TOTAL_L2 = 2.0
# Largest tables whose rows may all move at every step of an additive model.
_MOST_VALUES_FOR_L2 = 2_000_000
# Largest number of rows for `_FEW_ROWS` of an additive model.
_MOST_ROWS_FOR_FOUR_EPOCHS = 4_000
_FEW_ROWS = {"epochs": 4, "batch_size": 64}


def choose_batch_size(num_rows: int) -> int:
    """Return a power of two near the square root of `num_rows`, from 128 to 1,024.

    Few rows then still make some hundred steps, and a million rows make a thousand.
    """
    power = int(math.log2(1.1 * math.sqrt(max(num_rows, 1))))
    return min(max(2**power, _SMALLEST_BATCH), _LARGEST_BATCH)


def choose_num_epochs(num_rows: int) -> int:
    """Return two for up to 100,000 rows, otherwise one: a third pass overfits."""
    return 2 if num_rows <= _MOST_ROWS_FOR_TWO_EPOCHS else 1


def choose_interaction(num_rows: int) -> str:
    """Return "cat" for up to 20,000 rows, otherwise "dot".

    From few rows a model cannot learn which pairs of features matter, and the dot
    products of all pairs add noise.
    """
    return "cat" if num_rows <= _MOST_ROWS_FOR_CAT else "dot"


def complete(config: RunConfig, num_rows: int) -> RunConfig:
    """Return a config with values for the options in `COMPLETED` that are `None`.

    If `learning_rate` is `None`, both rates are those of the optimizer; otherwise
    `embedding_learning_rate` defaults to `learning_rate`.

    Args:
        config: Config of the run.
        num_rows: Number of training rows in an epoch.
    """
    changes: dict[str, Any] = {}
    if config.interaction is None:
        changes["interaction"] = choose_interaction(num_rows)
    if config.batch_size is None:
        changes["batch_size"] = choose_batch_size(num_rows)
    if config.epochs is None:
        changes["epochs"] = choose_num_epochs(num_rows)
    return dataclasses.replace(complete_rates(config), **changes)


def compares(config: RunConfig) -> bool:
    """Return True if a run with few rows compares an additive model with its own."""
    return config.compare_models and config.interaction is None


def make_candidates(
    config: RunConfig, num_rows: int, num_features: int, num_values: int = 0
) -> dict[str, RunConfig]:
    """Return the models to choose from, complete, the simplest first.

    Args:
        config: Config of the run.
        num_rows: Number of training rows in an epoch.
        num_features: Number of features.
        num_values: Number of values in the tables.
    """
    may_compare = (
        compares(config)
        and num_rows <= _MOST_ROWS_TO_COMPARE
        and num_rows * num_features <= _MOST_CELLS_TO_COMPARE
    )
    interaction = config.interaction or choose_interaction(num_rows)
    if config.interaction is None and num_features == 1:
        interaction = "cat"  # no pairs for dot
    own = dataclasses.replace(config, interaction=interaction)
    if not may_compare:
        return {interaction: complete(own, num_rows)}
    additive: dict[str, Any] = dict(ADDITIVE)
    if num_rows <= _MOST_ROWS_FOR_FOUR_EPOCHS:
        left_out = {n: v for n, v in _FEW_ROWS.items() if getattr(config, n) is None}
        additive |= left_out
        if num_values <= _MOST_VALUES_FOR_L2:  # a constant of the sum of losses
            additive["l2"] = float(f"{_TOTAL_L2 / max(num_rows, 1):.1g}")
    rich = "cat" if num_features == 1 else "dot"
    candidates = {
        "additive": dataclasses.replace(config, **additive),
        rich: dataclasses.replace(config, interaction=rich),
    }
    return {name: complete(each, num_rows) for name, each in candidates.items()}


def is_open(name: str, config: RunConfig, value: Any) -> bool:
    """Return True if a run with a config may have chosen a value for an option.

    Args:
        name: Name of the option.
        config: Config of the run, before `complete` and a comparison of models.
        value: The value.
    """
    if name in COMPLETED and getattr(config, name) is None:
        return True
    return compares(config) and name in CHOSEN and ADDITIVE.get(name, value) == value


def complete_rates(config: RunConfig) -> RunConfig:
    """Return a config whose missing learning rates are those of its optimizer."""
    if config.learning_rate is not None:
        return config
    dense_rate, table_rate = LEARNING_RATES[config.optimizer]
    if config.embedding_learning_rate is not None:
        table_rate = config.embedding_learning_rate
    return dataclasses.replace(
        config, learning_rate=dense_rate, embedding_learning_rate=table_rate
    )


def describe(
    config: RunConfig, completed: RunConfig, num_rows: int, min_count: int | None = None
) -> str | None:
    """Return lines with the options of the run, or `None` if none was chosen.

    The first line has the options that were chosen, the second one the others that
    matter most. For few rows a third line says what to expect.

    Args:
        config: Config of the run, before `complete`.
        completed: The config that `complete` returned.
        num_rows: Number of training rows in an epoch.
        min_count: The `min_count` of the vocabulary; `None`: values are hashed.
    """
    words = {
        "interaction": "interaction {}",
        "batch_size": "batches of {:,} rows",
        "epochs": "epochs: {}",
        "learning_rate": "learning rate {:g}",
        "embedding_learning_rate": "learning rate of the tables {:g}",
    }
    chosen = [
        text.format(getattr(completed, name))
        for name, text in words.items()
        if getattr(config, name) != getattr(completed, name)
    ]
    if not chosen:
        return None
    line = f"Chosen for {num_rows:,} rows and {config.optimizer}: {', '.join(chosen)}."
    bottom, top = (
        "-".join(map(str, sizes))
        for sizes in (completed.bottom_mlp_dims, completed.top_mlp_dims)
    )
    limit = completed.initial_embedding_limit
    others = [
        f"learning rate decay: {completed.learning_rate_decay}",
        *([] if min_count is None else [f"least count of a value: {min_count}"]),
        f"embeddings of {completed.embedding_dim} values"
        + ("" if limit is None else f", initially within {limit:g}"),
        f"bottom MLP {bottom}, top MLP {top}",
        f"dropout {completed.dropout:g}, L2 penalty {completed.l2:g}",
    ]
    line += f"\nOther options: {', '.join(others)}."
    if num_rows <= _MOST_ROWS_FOR_CAT:
        line += (
            "\nSo few rows say little about pairs of features: more rows would help "
            "most, and a logistic regression may do as well."
        )
    return line
