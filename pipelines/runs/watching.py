"""`Watching`: optional logs of a training run for TensorBoard."""

import dataclasses

from pipelines.runtime import UserError
from pipelines.schema import Schema

_SHOWN = (
    "batch_size",
    "embedding_learning_rate",
    "interaction",
    "learning_rate",
    "optimizer",
)
_MOST_ROWS = 100_000  # of a table in the projector, which a browser must draw


@dataclasses.dataclass(frozen=True)
class Watching:
    """Logs in addition to metrics, speed, row norms, PR curve and hyperparameters.

    Raises:
        ValueError: If a value is out of range; the message names it.
    """

    gradient_norms: bool = True
    """Log the norms of gradients; adds about 1% to the time of a step."""
    touched_rows: bool = True
    """Log the numbers of touched and dead rows; takes a byte of memory per row and, for
    one-hot ids, about 1% of the time of a step."""
    histograms: bool = False
    """Log histograms of weights and rows after each epoch."""
    projector_tables: tuple[str, ...] = ()
    """Tables for the embedding projector, such as C1 C3, with values as labels."""
    projector_rows: int = 10_000
    """Maximum number of rows of a table in the projector: those of the most frequent
    values."""
    profile_steps: str | None = None
    """Steps to profile, FIRST:LAST, such as 100:110; default: none."""

    def __post_init__(self):
        self.profiled()
        if not 1 <= self.projector_rows <= _MOST_ROWS:
            raise UserError(
                f"`projector_rows` must be 1 to {_MOST_ROWS:,}. Received: "
                f"{self.projector_rows}"
            )

    def profiled(self) -> tuple[int, int] | None:
        """Return the first and the last step to profile.

        Raises:
            ValueError: If `profile_steps` is not a valid range.
        """
        if self.profile_steps is None:
            return None
        first, _, last = self.profile_steps.partition(":")
        steps = None
        if first.isdecimal() and last.isdecimal():
            steps = int(first), int(last)
        if steps is None or not 1 <= steps[0] <= steps[1] < steps[0] + 1000:
            raise UserError(
                "`profile_steps` must be FIRST:LAST, such as 100:110, with FIRST at "
                "least 1 and at most 1,000 steps. Received: "
                f"{self.profile_steps}"
            )
        return steps

    def check_tables(self, schema: Schema) -> None:
        """Check that the tables for the projector exist.

        Raises:
            ValueError: If a table does not exist; the message names those that do.
        """
        tables = list(schema.tables)
        unknown = [t for t in self.projector_tables if t not in tables]
        if unknown:
            raise UserError(
                f"`projector_tables`: there is no table {', '.join(unknown)}. Tables: "
                f"{', '.join(tables[:50])}"
            )

    def callbacks(self, log_dir, config, vocabulary, shown=_SHOWN) -> list:
        """Return the callbacks of a run.

        Args:
            log_dir: Folder to write the logs to.
            config: The `RunConfig` of the run.
            vocabulary: Vocabulary of the run; its values are labels in the projector.
            shown: Up to five options that TensorBoard's HParams page shows by default.
        """
        from tf_dlrm import callbacks

        self.check_tables(vocabulary.schema)
        loggers = [
            callbacks.TensorBoardLogger(log_dir, config.batch_size),
            callbacks.RowNormLogger(log_dir),
            callbacks.PRCurveLogger(log_dir),
            callbacks.HyperparameterLogger(log_dir, dataclasses.asdict(config), shown),
        ]
        if vocabulary.schema.has_growing:
            loggers.append(callbacks.GrowingTableLogger(log_dir))
        if self.gradient_norms:
            loggers.append(callbacks.GradientNormLogger(log_dir))
        if self.touched_rows:
            loggers.append(callbacks.TouchedRowLogger(log_dir))
        if self.histograms:
            loggers.append(callbacks.HistogramLogger(log_dir))
        if self.projector_tables:
            labels = {t: self._labels(vocabulary, t) for t in self.projector_tables}
            loggers.append(
                callbacks.EmbeddingProjector(
                    log_dir, self.projector_tables, labels, self.projector_rows
                )
            )
        steps = self.profiled()
        if steps is not None:
            loggers.append(callbacks.StepProfiler(log_dir, *steps))
        return loggers

    def _labels(self, vocabulary, table):
        if not hasattr(vocabulary, "values"):
            return []  # with hashing, many values share a row
        number = list(vocabulary.schema.tables).index(table)
        values = vocabulary.numberings[number].values()[: self.projector_rows]
        if not values:
            return []
        return ["(empty or rare)", *(v.decode("utf-8", "replace") for v in values)]
