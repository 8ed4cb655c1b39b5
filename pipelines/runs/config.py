"""`RunConfig`: everything that determines a training run, apart from its data."""

import dataclasses
import itertools
import json
import math
import os
import reprlib
import typing
from typing import Literal

from pipelines.runtime import UserError, disk
from pipelines.sampling import check_rate
from pipelines.value_types import check_types

# Values of options in configs written before the option existed, where the default
# differs.
_BEFORE = {"saved_model": "last"}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a training run, apart from its data.

    Raises:
        ValueError: If a value is out of range or two values do not fit together; the
            message names it.
    """

    embedding_dim: int = 16
    """Width of the embedding tables."""
    bottom_mlp_dims: tuple[int, ...] = (512, 256, 64, 16)
    """Widths of the bottom MLP's layers; for dot interaction, the last one must equal
    the embedding dim, as by default."""
    top_mlp_dims: tuple[int, ...] = (512, 256, 1)
    """Widths of the top MLP's layers; the last one must be 1."""
    interaction: Literal["dot", "cat", "cross"] | None = "dot"
    """Interaction of the dense vector and the embeddings; None: cat (concatenation) for
    up to 20,000 training rows, otherwise dot."""
    compare_models: bool = False
    """For up to 40,000 training rows, without an interaction: train an additive model
    (interaction cat, top MLP 1, initial embeddings within 0.001, an L2 penalty) and one
    with interaction dot for up to four epochs, compare them on the validation rows or
    else on the last fifth of the training rows, and keep one."""
    dropout: float = 0.0
    """Dropout rate of the hidden layers of both MLPs."""
    initial_embedding_limit: float | None = None
    """Initial embeddings are uniform between -limit and limit; default: 1 / sqrt(rows),
    as in the paper."""
    min_count: int = 10
    """Number of times a value must occur in the training rows to get its own row."""
    max_vocabulary_size: int | None = None
    """Maximum number of rows in a table; default: no limit."""
    hash_buckets: int | None = None
    """Hash values into this many rows per table, instead of building a vocabulary."""
    optimizer: Literal["sgd", "adagrad", "adam"] = "adagrad"
    """Optimizer of MLPs and tables (row-sparse on the tables, unless `l2` is set)."""
    learning_rate: float | None = None
    """Learning rate; default: one that suits the optimizer."""
    embedding_learning_rate: float | None = None
    """Learning rate of the tables; default: same as the MLPs if theirs is set,
    otherwise one that suits the optimizer."""
    initial_accumulator_value: float = 1e-6
    """Initial value of Adagrad's accumulators."""
    l2: float = 0.0
    """L2 penalty on whole tables. With adagrad and adam, all rows then move at every
    step (the dense form of the optimizer), so tables may have up to 64 million values;
    with sgd, tables of any size are possible."""
    learning_rate_decay: Literal["none", "linear", "square", "epochs", "plateau"] = (
        "none"
    )
    """Decay of the learning rates; linear: to 0 over the run; square: with the square
    of the remaining steps, after a warm-up and a constant phase, as in MLPerf; epochs:
    to a tenth after each of `reduce_after_epochs`; plateau: to a tenth whenever a
    validation does not improve the monitored metric."""
    batch_size: int | None = None
    """Rows in a batch; default: 128 to 1,024, depending on the number of rows."""
    epochs: int | None = None
    """Passes over the training rows; default: two for up to 100,000 rows, otherwise
    one."""
    shuffle: bool = True
    """Shuffle the rows, differently in each epoch."""
    negative_sampling_rate: float = 1.0
    """Share of the training rows without a click to train on, chosen by the seed while
    reading. Predictions are corrected for it; validation rows are not sampled."""
    seed: int = 0
    """Random seed of initial values, shuffling, dropout and negative sampling."""
    dtype_policy: Literal["float32", "mixed_bfloat16"] = "float32"
    """Precision of the MLPs; tables and loss are float32."""
    jit_compile: Literal["auto", "on", "off"] = "auto"
    """Parts of a step that XLA compiles; auto: small parts (none for fewer than a
    million rows), and after 20 s everything between lookup and update if that
    measures faster; on: all of this from the start; off: nothing."""
    steps_per_execution: int = 1
    """Steps to run in one call, between callbacks."""
    deterministic: bool = False
    """Make runs with equal seeds bit-for-bit equal, also after a resume; slower."""
    max_skipped_batches: int | None = 10
    """Consecutive batches that may be skipped because their loss or gradients are not
    finite, before the run stops; None: do not check batches."""
    monitor: Literal["auc", "log_loss"] = "auc"
    """Validation metric that decides early stopping and the best model."""
    saved_model: Literal["best", "last"] = "best"
    """Model that the run saves as its model; best: that of the best validation, also
    within an epoch; last: that of the last step. The other one is saved next to it."""
    target_auc: float | None = None
    """Validation AUC at which the run ends; default: no limit."""
    patience: int | None = None
    """Consecutive validations without a better value of the monitored metric after
    which the run ends; default: no limit."""
    max_minutes: float | None = None
    """Minutes of training after which the run ends; default: no limit."""
    evaluate_every_steps: int | None = None
    """Steps between two validations within an epoch; default: only at its end."""
    max_bad_share: float = 1e-4
    """Largest share of bad rows; with more, the command stops."""

    # For published experiments
    bottom_dropout: float | None = None
    """Dropout rate of the bottom MLP; default: same as `dropout`."""
    batch_normalization: Literal["none", "before_activation", "after_activation"] = (
        "none"
    )
    """Position of batch normalization in the hidden layers of both MLPs."""
    cross_layers: int = 3
    """Number of layers of the cross interaction."""
    cross_rank: int | None = None
    """Rank of the matrices of the cross layers; default: full rank."""
    shared_table: bool = False
    """Let all features share one table of `hash_buckets` rows."""
    adagrad_epsilon: float = 1e-7
    """Value added to Adagrad's accumulators under the square root."""
    adam_epsilon: float | None = None
    """Value that Adam adds to the square root of the second moment, in torch's form on
    the tables if `l2` is set (torch's default is 1e-8); default: 1e-7, as in Keras."""
    warmup_steps: int = 0
    """Steps over which the learning rates rise from 0, for the square decay."""
    decay_start_step: int = 0
    """Step at which the square decay starts."""
    decay_steps: int = 0
    """Number of steps of the square decay; 0: no decay."""
    reduce_after_epochs: tuple[int, ...] = ()
    """Epochs after which the learning rates fall to a tenth, for the epochs decay."""

    def __post_init__(self):
        at_least = {
            "embedding_dim": 1,
            "min_count": 1,
            "max_vocabulary_size": 1,
            "hash_buckets": 2,
            "batch_size": 1,
            "epochs": 1,
            "steps_per_execution": 1,
            "max_skipped_batches": 1,
            "patience": 1,
            "evaluate_every_steps": 1,
            "seed": 0,
            "cross_layers": 1,
            "cross_rank": 1,
            "warmup_steps": 0,
            "decay_start_step": 0,
            "decay_steps": 0,
        }
        for name, minimum in at_least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                self._refuse(name, f"must be at least {minimum}")
        positive = ("learning_rate", "embedding_learning_rate")
        others = ("initial_embedding_limit", "initial_accumulator_value")
        for name in (*positive, *others, "adagrad_epsilon", "adam_epsilon", "l2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                self._refuse(name, "must be a finite number and not negative")
            if value == 0 and name in positive:
                self._refuse(name, "must be positive")
        if self.max_minutes is not None and not self.max_minutes > 0:
            self._refuse("max_minutes", "must be positive")
        if self.target_auc is not None and not 0 < self.target_auc <= 1:
            self._refuse("target_auc", "must be above 0 and at most 1")
        if self.target_auc is not None and self.monitor != "auc":
            self._refuse("target_auc", "requires monitor='auc'")
        check_rate(self.negative_sampling_rate)
        for name in ("dropout", "bottom_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                self._refuse(name, "must be at least 0 and below 1")
        if not 0 <= self.max_bad_share <= 1:
            self._refuse("max_bad_share", "must be a share from 0 to 1")
        for name in ("bottom_mlp_dims", "top_mlp_dims"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                self._refuse(name, "must be positive integers")
        if self.top_mlp_dims[-1] != 1:
            self._refuse("top_mlp_dims", "must end in 1, the click logit")
        may_be_dot = self.interaction in ("dot", None)
        if may_be_dot and self.bottom_mlp_dims == RunConfig.bottom_mlp_dims:
            dims = (*self.bottom_mlp_dims[:-1], self.embedding_dim)
            object.__setattr__(self, "bottom_mlp_dims", dims)
        if may_be_dot and self.bottom_mlp_dims[-1] != self.embedding_dim:
            self._refuse(
                "bottom_mlp_dims",
                f"must end in embedding_dim ({self.embedding_dim}) for dot interaction",
            )

        self._check_experiments()

    def _check_experiments(self):
        """Refuse options that have no effect without another one."""
        if self.shared_table and self.hash_buckets is None:
            self._refuse("shared_table", "requires hash_buckets")
        if self.optimizer != "adam":
            self._refuse_unless("optimizer", "adam", "adam_epsilon")
        if self.interaction != "cross":
            self._refuse_unless("interaction", "cross", "cross_layers", "cross_rank")
        decay, square = self.learning_rate_decay, ("warmup_steps", "decay_start_step")
        if decay != "square":
            names = (*square, "decay_steps")
            self._refuse_unless("learning_rate_decay", "square", *names)
        elif self.decay_start_step < self.warmup_steps and self.decay_steps:
            self._refuse(
                "decay_start_step",
                f"must be at least warmup_steps ({self.warmup_steps})",
            )
        if decay != "epochs":
            self._refuse_unless("learning_rate_decay", "epochs", "reduce_after_epochs")
        else:
            ends = (0, *self.reduce_after_epochs, self.epochs or 1)
            if len(ends) < 3 or any(a >= b for a, b in itertools.pairwise(ends)):
                rule = "must be one or more increasing epochs below epochs"
                self._refuse("reduce_after_epochs", f"{rule} ({self.epochs or 1})")

    def _refuse_unless(self, option, value, *names):
        for name in names:
            if getattr(self, name) != getattr(type(self), name):
                self._refuse(name, f"requires {option}={value!r}")

    def _refuse(self, name, rule):
        raise UserError(f"`{name}` {rule}. Received: {name}={getattr(self, name)}")

    def with_optimizer(self, optimizer: str) -> "RunConfig":
        """Return this config with another optimizer and its default learning rates."""
        names = ("learning_rate", "embedding_learning_rate")
        names += ("initial_accumulator_value", "adagrad_epsilon", "adam_epsilon")
        defaults = {name: getattr(RunConfig, name) for name in names}
        return dataclasses.replace(self, optimizer=optimizer, **defaults)

    def to_json(self) -> str:
        """Return the config as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Make a config from the text of `to_json`, also of an earlier version.

        Raises:
            ValueError: If an option is unknown, or a value has the wrong type or is
                out of range; the message names it.
        """
        values = {**_BEFORE, **json.loads(text)}
        hints = typing.get_type_hints(cls)
        unknown = [name for name in values if name not in hints]
        if unknown:
            raise UserError(
                f"There is no option {reprlib.repr(unknown[0])}. The config may come "
                "from a newer version of tf_dlrm."
            )
        check_types(values, hints)
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RunConfig":
        """Read the config in a JSON file.

        Args:
            path: The `config.json` of a run, the `best.json` of `tf-dlrm tune`, or
                another file with the form `{"config": {"epochs": 2, ...}}`. Options
                that are missing have their defaults.

        Raises:
            ValueError: If the file contains no config or an option is wrong; the
                message names it.
        """
        config = disk.read_json(path).get("config")
        if not isinstance(config, dict):
            raise UserError(f"{path} is not the config of a run: it has no `config`.")
        try:
            return cls.from_json(json.dumps(config))
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from None
