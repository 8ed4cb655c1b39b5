"""What of a training run is watched in TensorBoard, beyond what always is."""

import dataclasses

from pipelines.criteo.format import SPARSE_FEATURES

_SHOWN = (
    "batch_size",
    "embedding_learning_rate",
    "interaction",
    "learning_rate",
    "optimizer",
)
_MOST_ROWS = 100_000  # of a table in the projector: a browser draws them


@dataclasses.dataclass(frozen=True)
class Watching:
    """What is watched beside metrics, speed, norms of rows, PR curve and HParams.

    Raises:
        ValueError: If a value is out of range; it is named.
    """

    gradient_norms: bool = True
    """Whether norms of gradients are written: a percent of a step."""
    touched_rows: bool = True
    """Whether touched and dead rows are counted: a byte of memory for each row, and a
    percent of a step of one-hot ids."""
    histograms: bool = False
    """Whether histograms of weights and of rows are written, after each epoch."""
    projector_tables: tuple[str, ...] = ()
    """Tables for the embedding projector, such as C1 C3, with values as labels."""
    projector_rows: int = 10_000
    """Most rows of a table there: those of the most frequent values."""
    profile_steps: str | None = None
    """Steps to profile, FIRST:LAST, such as 100:110; None: none."""

    def __post_init__(self):
        self.profiled()
        unknown = [t for t in self.projector_tables if t not in SPARSE_FEATURES]
        if unknown:
            raise ValueError(
                f"--projector-tables: there is no table {', '.join(unknown)}. Tables: "
                f"{SPARSE_FEATURES[0]} to {SPARSE_FEATURES[-1]}"
            )
        if not 1 <= self.projector_rows <= _MOST_ROWS:
            raise ValueError(
                f"--projector-rows must be 1 to {_MOST_ROWS:,}. Received: "
                f"{self.projector_rows}"
            )

    def profiled(self) -> tuple[int, int] | None:
        """The first and the last step to profile.

        Raises:
            ValueError: If they are no range.
        """
        if self.profile_steps is None:
            return None
        first, _, last = self.profile_steps.partition(":")
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first)):
            found = None
        else:
            found = int(first), int(last)
        if found is None or not found[0] <= found[1] < found[0] + 1000:
            raise ValueError(
                "--profile-steps must be FIRST:LAST, at most 1,000 steps from 1 on, "
                f"such as 100:110. Received: {self.profile_steps}"
            )
        return found

    def callbacks(self, log_dir, config, vocabulary) -> list:
        """The callbacks of a run.

        Args:
            log_dir: Folder of its logs.
            config: The `RunConfig`.
            vocabulary: Its vocabulary, whose values are labels in the projector.
        """
        from tf_dlrm import callbacks

        found = [
            callbacks.TensorBoardLogger(log_dir, config.batch_size),
            callbacks.RowNormLogger(log_dir),
            callbacks.PRCurveLogger(log_dir),
            callbacks.HyperparameterLogger(log_dir, dataclasses.asdict(config), _SHOWN),
        ]
        if self.gradient_norms:
            found.append(callbacks.GradientNormLogger(log_dir))
        if self.touched_rows:
            found.append(callbacks.TouchedRowLogger(log_dir))
        if self.histograms:
            found.append(callbacks.HistogramLogger(log_dir))
        if self.projector_tables:
            labels = {t: self._labels(vocabulary, t) for t in self.projector_tables}
            found.append(
                callbacks.EmbeddingProjector(
                    log_dir, self.projector_tables, labels, self.projector_rows
                )
            )
        steps = self.profiled()
        if steps is not None:
            found.append(callbacks.StepProfiler(log_dir, *steps))
        return found

    def _labels(self, vocabulary, feature):
        if not hasattr(vocabulary, "values"):
            return []  # hashed: many values share a row
        values = vocabulary.values(feature)[: self.projector_rows]
        return ["(empty or rare)", *(v.decode("utf-8", "replace") for v in values)]
