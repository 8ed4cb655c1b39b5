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
    "top_mlp_dims",
    "initial_embedding_limit",
    "batch_size",
    "epochs",
    "learning_rate",
    "embedding_learning_rate",
)
_SMALLEST_BATCH, _LARGEST_BATCH = 128, 1024
_BATCH_OF_FEW_ROWS = 64
# Largest numbers of rows for a top MLP without hidden layers and for concatenation.
_MOST_ROWS_FOR_LINEAR, _MOST_ROWS_FOR_CAT = 20_000, 40_000
# Largest numbers of rows for four epochs of small batches and for two.
_MOST_ROWS_FOR_FOUR_EPOCHS, _MOST_ROWS_FOR_TWO_EPOCHS = 4_000, 100_000
_TOP_MLP_DIMS = (128, 64, 1)
_LIMIT_FOR_LINEAR = 0.001


def choose_batch_size(num_rows: int) -> int:
    """Return a power of two near the square root of `num_rows`, from 128 to 1,024.

    Up to 4,000 rows, batches have 64.

    Few rows then still make some hundred steps, and a million rows make a thousand.
    """
    if num_rows <= _MOST_ROWS_FOR_FOUR_EPOCHS:
        return _BATCH_OF_FEW_ROWS
    power = int(math.log2(1.1 * math.sqrt(max(num_rows, 1))))
    return min(max(2**power, _SMALLEST_BATCH), _LARGEST_BATCH)


def choose_num_epochs(num_rows: int) -> int:
    """Return four for up to 4,000 rows, two for up to 100,000, otherwise one."""
    if num_rows <= _MOST_ROWS_FOR_FOUR_EPOCHS:
        return 4
    return 2 if num_rows <= _MOST_ROWS_FOR_TWO_EPOCHS else 1


def choose_interaction(num_rows: int) -> str:
    """Return "cat" for up to 40,000 rows, otherwise "dot".

    From few rows a model cannot learn which pairs of features matter, and the dot
    products of all pairs add noise.
    """
    return "cat" if num_rows <= _MOST_ROWS_FOR_CAT else "dot"


def choose_top_mlp(num_rows: int, interaction: str) -> tuple[int, ...]:
    """Return the widths of the top MLP: no hidden layer for up to 20,000 rows.

    With concatenation, each feature then adds its own term to the logit, as in a
    logistic regression, and the bottom MLP makes one of the numbers.
    """
    is_linear = interaction == "cat" and num_rows <= _MOST_ROWS_FOR_LINEAR
    return (1,) if is_linear else _TOP_MLP_DIMS


def complete(config: RunConfig, num_rows: int) -> RunConfig:
    """Return a config with values for the options in `COMPLETED` that are `None`.

    If `learning_rate` is `None`, both rates are those of the optimizer; otherwise
    `embedding_learning_rate` defaults to `learning_rate`.

    Args:
        config: Config of the run.
        num_rows: Number of training rows in an epoch.
    """
    changes: dict[str, Any] = {}
    interaction = config.interaction or choose_interaction(num_rows)
    changes["interaction"] = interaction
    if config.top_mlp_dims is None:
        changes["top_mlp_dims"] = choose_top_mlp(num_rows, interaction)
        if changes["top_mlp_dims"] == (1,) and config.initial_embedding_limit is None:
            changes["initial_embedding_limit"] = _LIMIT_FOR_LINEAR
    if config.batch_size is None:
        changes["batch_size"] = choose_batch_size(num_rows)
    if config.epochs is None:
        changes["epochs"] = choose_num_epochs(num_rows)
    return dataclasses.replace(complete_rates(config), **changes)


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
        "top_mlp_dims": "top MLP {}",
        "initial_embedding_limit": "initial embeddings within {:g}",
        "batch_size": "batches of {:,} rows",
        "epochs": "epochs: {}",
        "learning_rate": "learning rate {:g}",
        "embedding_learning_rate": "learning rate of the tables {:g}",
    }
    chosen = [
        text.format(_to_text(getattr(completed, name)))
        for name, text in words.items()
        if getattr(config, name) != getattr(completed, name)
    ]
    if not chosen:
        return None
    line = f"Chosen for {num_rows:,} rows and {config.optimizer}: {', '.join(chosen)}."
    bottom, top = map(_to_text, (completed.bottom_mlp_dims, completed.top_mlp_dims))
    others = [
        f"learning rate decay: {completed.learning_rate_decay}",
        *([] if min_count is None else [f"least count of a value: {min_count}"]),
        f"embeddings of {completed.embedding_dim} values",
        f"bottom MLP {bottom}" + (f", top MLP {top}" if config.top_mlp_dims else ""),
        f"dropout {completed.dropout:g}, L2 penalty {completed.l2:g}",
    ]
    line += f"\nOther options: {', '.join(others)}."
    if num_rows <= _MOST_ROWS_FOR_LINEAR:
        line += (
            "\nSo few rows say little about pairs of features: more rows would help "
            "most, and a logistic regression may do as well."
        )
    return line


def _to_text(value):
    return "-".join(map(str, value)) if isinstance(value, tuple) else value
