"""The time of a run by activity: steps, input, validation, checkpoints, the rest."""

import dataclasses

from pipelines.reports.runs import Run

STEPS, WAITING, VALIDATION = "steps", "waiting for input", "validation"
CHECKPOINTS, REST = "checkpoints", "rest"


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a run, summed over its processes, including lost steps.

    A value is `None` if it is not known.

    Attributes:
        total: Seconds from building or restoring the model until it is saved, or until
            the last line of the log.
        trained: Seconds of training, including the wait for input and checkpoints
            within an epoch.
        waited: Seconds that steps waited for a batch.
        validated: Seconds of validation.
        saved: Seconds of checkpoints.
        saved_amid: Seconds of checkpoints within an epoch.
        samples_per_second: Throughput of training.
        num_processes: Number of times that the run was started or resumed; 0 without a
            log.
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
        """Share of the training time that steps waited for a batch."""
        if self.waited is None or not self.trained:
            return None
        return self.waited / self.trained

    def parts(self) -> dict[str, float]:
        """Return the total by activity; empty if it is not known."""
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
    """Return the times of a run, from its log or else from `metrics.json`.

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
