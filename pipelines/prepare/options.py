"""`Options` of a preparation."""

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
    """The options of a preparation, apart from its files.

    Raises:
        ValueError: If a value is out of range or two do not fit; it is named.
    """

    min_count: int = 10
    """Times a value must occur in the training rows to have an id of its own."""
    max_vocabulary_size: int | None = None
    """Largest number of ids of a feature; None: no limit."""
    hash_buckets: int | None = None
    """Number ids by hashing into so many a feature, in place of a vocabulary."""
    shared_table: bool = False
    """All features read one table of HASH_BUCKETS rows."""
    split_by: Literal["time", "random"] = "time"
    """Rows that the shares below take: the last of the files, or random ones."""
    valid_share: float = 0.0
    """Share of the rows that are for validation."""
    test_share: float = 0.0
    """Share of the rows that are for the test."""
    negative_sampling_rate: float = 1.0
    """Share of the training rows without a click that is kept. A model of them serves
    probabilities that are corrected for it; the other splits stay whole."""
    rows_per_shard: int = DEFAULT_ROWS_PER_SHARD
    """Rows of a shard."""
    multi_hot: Literal["no", "uniform", "pareto"] = "no"
    """Expand one-hot rows to the bags of MLPerf DLRM-v2, drawn so."""
    seed: int = 0
    """Seed of random splits, of the negatives that are kept, and of the bags."""
    max_bad_share: float = 1e-4
    """Largest share of rows that may be bad before the run stops."""
    memory_bytes: int = 512 << 20
    """Memory for counts; what does not fit goes to files."""

    def __post_init__(self):
        check_limits(self.min_count, self.max_vocabulary_size)
        if self.hash_buckets is not None and self.hash_buckets < 2:
            self._refuse("hash_buckets", "must be at least 2")
        if self.shared_table and self.hash_buckets is None:
            self._refuse("shared_table", "goes with hash_buckets")
        for name in ("valid_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                self._refuse(name, "must be at least 0 and below 1")
        if self.valid_share + self.test_share >= 1:
            self._refuse("test_share", "must leave rows to train on, with valid_share")
        check_rate(self.negative_sampling_rate)
        for name in ("rows_per_shard", "memory_bytes"):
            if getattr(self, name) < 1:
                self._refuse(name, "must be positive")
        if not 0 <= self.max_bad_share <= 1:
            self._refuse("max_bad_share", "must be a share from 0 to 1")
        if self.seed < 0:
            self._refuse("seed", "must not be negative")

    def check_schema(self, schema: Schema) -> None:
        """Check what depends on the columns, before anything is read.

        Raises:
            ValueError: If an option cannot be applied to rows of these columns.
        """
        check_labels(self.negative_sampling_rate, schema.label.soft)
        if self.multi_hot == "no":
            return
        from pipelines.multi_hot import MLPERF_HOTNESS  # which imports TensorFlow

        num_features, num_expanded = len(schema.sparse), len(MLPERF_HOTNESS)
        if num_features != num_expanded:
            self._refuse(
                "multi_hot",
                f"makes the bags of MLPerf DLRM-v2 for {num_expanded} categories; the "
                f"schema has {num_features}",
            )
        for feature in schema.sparse:
            if feature.weight_separator is not None:
                self._refuse("multi_hot", f"makes no weights, as {feature.name} has")
            if feature.table != feature.name:
                self._refuse(
                    "multi_hot",
                    f"needs a table for each category; {feature.name} reads "
                    f"{feature.table}",
                )

    def _refuse(self, name, rule):
        raise UserError(f"`{name}` {rule}. Received: {name}={getattr(self, name)}")
