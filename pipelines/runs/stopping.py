"""Early stopping of a run, and evaluations within its epochs."""

from pipelines.runs.config import RunConfig
from pipelines.runtime import UserError
from tf_dlrm.callbacks import EarlyStopping, EvaluateWithinEpochs


def check(config: RunConfig, has_validation: bool) -> None:
    """Check that there are validation rows if the config needs them.

    Raises:
        ValueError: With the option's name.
    """
    if has_validation:
        return
    for name in ("target_auc", "patience", "evaluate_every_steps"):
        if getattr(config, name) is not None:
            raise UserError(
                f"`{name}` needs rows to validate on: name their files in "
                "`valid_paths`, or prepare records with a split for them."
            )


class Stopping:
    """The callbacks that end a run early, and their results.

    Args:
        config: The run.
        valid_dataset: Its rows for validation, or `None`.
        loggers: Callbacks that write down evaluations within epochs, too.

    Attributes:
        stop: The `EarlyStopping`.
        callbacks: All of them, in their order.
    """

    def __init__(self, config: RunConfig, valid_dataset, loggers):
        self.stop = EarlyStopping(
            f"val_{config.monitor}",
            target=config.target_auc,
            patience=config.patience,
            max_minutes=config.max_minutes,
        )
        self._within = None
        if config.evaluate_every_steps is not None:
            self._within = EvaluateWithinEpochs(
                valid_dataset, config.evaluate_every_steps, [self.stop, *loggers]
            )
        self.callbacks = [c for c in (self._within, self.stop) if c]

    @property
    def seconds(self) -> float:
        """Seconds that evaluations within epochs took."""
        return self._within.seconds if self._within else 0.0

    @property
    def states(self) -> dict:
        """Callbacks with a state to resume, for `ResumableTraining.carry`."""
        return {"early": self.stop} | ({"within": self._within} if self._within else {})

    def describe(self) -> dict:
        """Return the facts for the results of the run."""
        return {
            "stopped": self.stop.reason,
            "evaluations_within_epochs": self._within.results if self._within else [],
        }
