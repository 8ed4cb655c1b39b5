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
_SMALLEST_BATCH, _LARGEST_BATCH = 128, 1024
# Largest numbers of rows for concatenation and for two epochs.
_MOST_ROWS_FOR_CAT, _MOST_ROWS_FOR_TWO_EPOCHS = 20_000, 100_000


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
    others = [
        f"learning rate decay: {completed.learning_rate_decay}",
        *([] if min_count is None else [f"least count of a value: {min_count}"]),
        f"embeddings of {completed.embedding_dim} values",
        f"bottom MLP {bottom}, top MLP {top}",
        f"dropout {completed.dropout:g}, L2 penalty {completed.l2:g}",
    ]
    line += f"\nOther options: {', '.join(others)}."
    if num_rows <= _MOST_ROWS_FOR_CAT:
        line += (
            "\nSo few rows say little about pairs of features: more rows would help "
            "most, and a logistic regression may do as well. Compare an additive model "
            "on validation rows: interaction cat, top MLP 1, initial embeddings within "
            "0.001."
        )
    return line
