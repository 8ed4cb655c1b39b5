"""The options of `tf-dlrm prepare`, apart from its files."""

import dataclasses
from typing import Literal

from pipelines.records.writer import DEFAULT_ROWS_PER_SHARD
from pipelines.runtime import UserError
from pipelines.sampling import check_labels, check_rate
from pipelines.schema import Schema
from pipelines.vocabulary.vocabularies import check_limits

SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `tf-dlrm prepare`, apart from its files.

    Raises:
        ValueError: If a value is out of range or two values do not fit together; the
            message names it.
    """

    min_count: int = 10
    """Number of times a value must occur in the training rows to get its own id."""
    max_vocabulary_size: int | None = None
    """Maximum number of ids of a feature; default: no limit."""
    hash_buckets: int | None = None
    """Hash values into this many ids per feature, instead of building a vocabulary."""
    shared_table: bool = False
    """Let all features share one table of `hash_buckets` rows."""
    split_by: Literal["time", "random"] = "time"
    """Rows that `valid_share` and `test_share` take; time: the latest rows by the
    schema's time column, or without one, the last rows of the input; random: random
    rows."""
    valid_share: float = 0.0
    """Share of the input rows to use for validation."""
    test_share: float = 0.0
    """Share of the input rows to use for the test."""
    negative_sampling_rate: float = 1.0
    """Share of the training rows without a click to keep. A model trained on them
    corrects its predictions for it; the other splits are not sampled."""
    rows_per_shard: int = DEFAULT_ROWS_PER_SHARD
    """Rows in a shard."""
    multi_hot: Literal["no", "uniform", "pareto"] = "no"
    """Expand one-hot rows to the bags of MLPerf DLRM-v2, with ids drawn from this
    distribution."""
    seed: int = 0
    """Random seed of random splits, negative sampling and bags."""
    max_bad_share: float = 1e-4
    """Largest share of bad rows; with more, the command stops."""
    memory_bytes: int = 512 << 20
    """Memory for counts, in bytes; counts that do not fit are written to temporary
    files."""

    def __post_init__(self):
        check_limits(self.min_count, self.max_vocabulary_size)
        if self.hash_buckets is not None and self.hash_buckets < 2:
            self._refuse("hash_buckets", "must be at least 2")
        if self.shared_table and self.hash_buckets is None:
            self._refuse("shared_table", "requires hash_buckets")
        for name in ("valid_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                self._refuse(name, "must be at least 0 and below 1")
        if self.valid_share + self.test_share >= 1:
            rule = f"and valid_share ({self.valid_share}) must add up to less than 1"
            self._refuse("test_share", rule)
        check_rate(self.negative_sampling_rate)
        for name in ("rows_per_shard", "memory_bytes"):
            if getattr(self, name) < 1:
                self._refuse(name, "must be positive")
        if not 0 <= self.max_bad_share <= 1:
            self._refuse("max_bad_share", "must be a share from 0 to 1")
        if self.seed < 0:
            self._refuse("seed", "must not be negative")

    def check_schema(self, schema: Schema) -> None:
        """Check the options that depend on the columns, before anything is read.

        Args:
            schema: Schema of the files.

        Raises:
            ValueError: If an option cannot be applied to these columns.
        """
        check_labels(self.negative_sampling_rate, schema.label.soft)
        if self.multi_hot == "no":
            return
        from pipelines.multi_hot import MLPERF_HOTNESS  # which imports TensorFlow

        num_features, num_expanded = len(schema.sparse), len(MLPERF_HOTNESS)
        if num_features != num_expanded:
            self._refuse(
                "multi_hot",
                f"needs a schema with {num_expanded} sparse features, as MLPerf "
                f"DLRM-v2 has; this schema has {num_features}",
            )
        for feature in schema.sparse:
            if feature.weight_separator is not None:
                self._refuse(
                    "multi_hot",
                    f"cannot be used with weights, which {feature.name} has",
                )
            if feature.table != feature.name:
                self._refuse(
                    "multi_hot",
                    f"needs a separate table for each sparse feature; {feature.name} "
                    f"reads {feature.table}",
                )

    def _refuse(self, name, rule):
        raise UserError(f"`{name}` {rule}. Received: {name}={getattr(self, name)}")
