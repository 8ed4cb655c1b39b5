"""Options that suit the optimizer and the number of rows, where they are not given.

Chosen by measurement: see docs/results/defaults.md.
"""

import dataclasses
import math
from typing import Any

from pipelines.runs.config import RunConfig

# Of the MLPs, and of the tables.
LEARNING_RATES = {"sgd": (0.3, 10.0), "adagrad": (0.02, 0.1), "adam": (0.002, 0.004)}
COMPLETED = (
    "interaction",
    "batch_size",
    "epochs",
    "learning_rate",
    "embedding_learning_rate",
)
_SMALLEST_BATCH, _LARGEST_BATCH = 128, 1024
# Most rows for a concatenation, and for two epochs.
_MOST_ROWS_FOR_CAT, _MOST_ROWS_FOR_TWO_EPOCHS = 20_000, 100_000


def choose_batch_size(num_rows: int) -> int:
    """Return a power of two near the root of the number of rows, from 128 to 1,024.

    So few rows still make some hundred steps, and a million rows make a thousand.
    """
    power = int(math.log2(1.1 * math.sqrt(max(num_rows, 1))))
    return min(max(2**power, _SMALLEST_BATCH), _LARGEST_BATCH)


def choose_num_epochs(num_rows: int) -> int:
    """Return two for up to 100,000 rows, else one: a third pass overfits."""
    return 2 if num_rows <= _MOST_ROWS_FOR_TWO_EPOCHS else 1


def choose_interaction(num_rows: int) -> str:
    """Return "cat" for up to 20,000 rows, else "dot".

    Few rows do not show which pairs of features matter; the dot products of all pairs
    then add noise.
    """
    return "cat" if num_rows <= _MOST_ROWS_FOR_CAT else "dot"


def complete(config: RunConfig, num_rows: int) -> RunConfig:
    """Return a config with values for the options in `COMPLETED` that are `None`.

    Without `learning_rate` both rates are the optimizer's; a `learning_rate` without
    `embedding_learning_rate` is that of the tables, too.

    Args:
        config: The run.
        num_rows: Rows that it is trained on in an epoch.
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
    """Return a config with its optimizer's learning rates, where none is given."""
    if config.learning_rate is not None:
        return config
    dense_rate, table_rate = LEARNING_RATES[config.optimizer]
    if config.embedding_learning_rate is not None:
        table_rate = config.embedding_learning_rate
    return dataclasses.replace(
        config, learning_rate=dense_rate, embedding_learning_rate=table_rate
    )


def describe(config: RunConfig, completed: RunConfig, num_rows: int) -> str | None:
    """Return what was chosen, as a line, or `None` where all was given.

    For few rows a second line says what to expect of them.
    """
    words = {
        "interaction": "interaction {}",
        "batch_size": "batches of {:,} rows",
        "epochs": "epochs: {}",
        "learning_rate": "learning rate {:g}",
        "embedding_learning_rate": "of the tables {:g}",
    }
    chosen = [
        text.format(getattr(completed, name))
        for name, text in words.items()
        if getattr(config, name) != getattr(completed, name)
    ]
    if not chosen:
        return None
    line = f"Chosen for {num_rows:,} rows and {config.optimizer}: {', '.join(chosen)}."
    if num_rows <= _MOST_ROWS_FOR_CAT:
        line += (
            "\nSo few rows tell little about pairs of features: more rows help most, "
            "and a logistic regression may do as well."
        )
    return line
