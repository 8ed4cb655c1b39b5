"""The time of a run by use: steps, input, validation, checkpoints, the rest."""

import dataclasses

from pipelines.reports.runs import Run

STEPS, WAITING, VALIDATION = "steps", "waiting for input", "validation"
CHECKPOINTS, REST = "checkpoints", "rest"


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a run, the sums of its processes, lost steps included.

    `None` is not known.

    Attributes:
        total: From the model that is built, or restored, to the one that is saved, or
            to the last line of the log.
        trained: In training, with the wait for input and checkpoints amid an epoch.
        waited: In steps that stood without a batch.
        validated: In validation.
        saved: In checkpoints.
        saved_amid: In those of them that are amid an epoch.
        samples_per_second: Of the training.
        num_processes: How often it was begun and resumed; 0 if there is no log.
    """

    total: float | None = None
    trained: float | None = None
    waited: float | None = None
    validated: float | None = None
    saved: float | None = None
    saved_amid: float = 0.0
    samples_per_second: float | None = None
    num_processes: int = 0

    @property
    def input_wait_share(self) -> float | None:
        """Share of the training in which steps stood without a batch."""
        if self.waited is None or not self.trained:
            return None
        return self.waited / self.trained

    def parts(self) -> dict[str, float]:
        """The total in its parts; empty where it is not known."""
        if self.total is None or self.trained is None:
            return {}
        found = {
            STEPS: max(self.trained - (self.waited or 0.0) - self.saved_amid, 0.0),
            WAITING: self.waited or 0.0,
            VALIDATION: self.validated or 0.0,
            CHECKPOINTS: self.saved or 0.0,
        }
        return found | {REST: max(self.total - sum(found.values()), 0.0)}


def measure(run: Run) -> Times:
    """Find out where the time of a run went: by its log, or by `metrics.json` alone.

    Args:
        run: The run.
    """
    if not run.processes:
        results = run.results or {}
        return Times(
            results.get("seconds"),
            results.get("training_seconds"),
            None,
            results.get("validation_seconds"),
            sum(results.get("checkpoint_seconds", [])) if results else None,
            samples_per_second=results.get("samples_per_second"),
        )

    def add(name):
        return sum(process[name] or 0.0 for process in run.processes)

    trained = add("training_seconds")
    is_known = any(each["waiting_seconds"] is not None for each in run.processes)
    return Times(
        add("seconds"),
        trained,
        add("waiting_seconds") if is_known else None,
        add("validation_seconds"),
        add("checkpoint_seconds"),
        add("checkpoint_seconds_within_epochs"),
        add("num_rows") / trained if trained else None,
        len(run.processes),
    )
