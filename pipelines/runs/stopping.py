"""Early stopping of a run, and validations within its epochs."""

from pipelines.runs.config import RunConfig
from pipelines.runtime import UserError
from tf_dlrm.callbacks import EarlyStopping, EvaluateWithinEpochs, ReduceLROnPlateau


def check(config: RunConfig, has_validation: bool) -> None:
    """Check that there are validation rows if the config needs them.

    Raises:
        ValueError: If there are none; the message names the option that needs them.
    """
    if has_validation:
        return
    for name in ("target_auc", "patience", "evaluate_every_steps"):
        if getattr(config, name) is not None:
            raise UserError(
                f"`{name}` needs validation rows: name their files in "
                "`valid_paths`, or prepare records with a validation split."
            )
    if config.learning_rate_decay == "plateau":
        raise UserError(
            "`learning_rate_decay` = 'plateau' needs validation rows: name their files "
            "in `valid_paths`, or prepare records with a validation split."
        )


class Stopping:
    """The callbacks that end a run early, and their results.

    Args:
        config: Config of the run.
        valid_dataset: Validation rows, or `None`.
        loggers: Callbacks that also log the validations within epochs.

    Attributes:
        stop: The `EarlyStopping` callback.
        callbacks: All callbacks, in order.
    """

    def __init__(self, config: RunConfig, valid_dataset, loggers):
        self.stop = EarlyStopping(
            f"val_{config.monitor}",
            target=config.target_auc,
            patience=config.patience,
            max_minutes=config.max_minutes,
        )
        self._plateau = None
        if config.learning_rate_decay == "plateau":
            self._plateau = ReduceLROnPlateau(f"val_{config.monitor}")
        self._within = None
        listeners = [c for c in (self._plateau, self.stop) if c]
        if config.evaluate_every_steps is not None:
            self._within = EvaluateWithinEpochs(
                valid_dataset, config.evaluate_every_steps, [*listeners, *loggers]
            )
        self.callbacks = [c for c in (self._within, *listeners) if c]

    @property
    def seconds(self) -> float:
        """Seconds spent on validations within epochs."""
        return self._within.seconds if self._within else 0.0

    @property
    def states(self) -> dict:
        """Callbacks whose state a resumed run needs, for `ResumableTraining.carry`."""
        states = {"early": self.stop, "within": self._within, "plateau": self._plateau}
        return {name: callback for name, callback in states.items() if callback}

    def describe(self) -> dict:
        """Return facts about early stopping, for the results of the run."""
        return {
            "stopped": self.stop.reason,
            "num_rate_reductions": self._plateau.num_reductions if self._plateau else 0,
            "evaluations_within_epochs": self._within.results if self._within else [],
        }
