"""`RunConfig`: everything that decides a training run, but for its data."""

import dataclasses
import json
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run, but for its data."""

    embedding_dim: int = 16
    """Width of the embedding tables."""
    bottom_mlp_dims: tuple[int, ...] = (512, 256, 64, 16)
    """Dims of the bottom MLP; the last is the embedding dim (for dot)."""
    top_mlp_dims: tuple[int, ...] = (512, 256, 1)
    """Dims of the top MLP; the last is 1."""
    interaction: Literal["dot", "cat", "cross"] = "dot"
    """How dense vector and embeddings meet."""
    dropout: float = 0.0
    """Share of hidden values dropped in both MLPs, in training."""
    initial_embedding_limit: float | None = None
    """Embeddings start uniform in +-limit; None: the paper's 1 / sqrt(rows)."""
    min_count: int = 10
    """Times a value must occur in the training rows to have a row of its own."""
    max_vocabulary_size: int | None = None
    """Largest number of rows of a table; None: no limit."""
    hash_buckets: int | None = None
    """Number ids by hashing into so many rows a table, with no pass over the data."""
    optimizer: Literal["sgd", "adagrad", "adam"] = "adagrad"
    """Optimizer of MLPs and tables (row-sparse on the tables)."""
    learning_rate: float = 0.02
    """Learning rate."""
    embedding_learning_rate: float | None = None
    """Learning rate of the tables; None: as the MLPs'."""
    initial_accumulator_value: float = 0.1
    """What Adagrad's accumulators start at."""
    learning_rate_decay: Literal["none", "linear"] = "none"
    """Whether learning rates fall linearly to 0 over the run."""
    batch_size: int = 2048
    """Rows in a step."""
    epochs: int = 1
    """Passes over the training rows."""
    shuffle: bool = True
    """Whether rows are mixed, anew in each epoch."""
    seed: int = 0
    """Seed of initial values, shuffling and dropout."""
    dtype_policy: Literal["float32", "mixed_bfloat16"] = "float32"
    """Precision of the MLPs; tables and loss are float32."""
    jit_compile: bool = False
    """Whether the dense part of a step is compiled by XLA."""
    steps_per_execution: int = 1
    """Steps run at once between callbacks."""
    max_bad_share: float = 1e-4
    """Largest share of rows that may be bad before the run stops."""

    def to_json(self) -> str:
        """Returns the config as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Makes a config from `to_json()`."""
        values = json.loads(text)
        for name in ("bottom_mlp_dims", "top_mlp_dims"):
            values[name] = tuple(values[name])
        return cls(**values)
