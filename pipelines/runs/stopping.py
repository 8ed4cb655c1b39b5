"""What ends a run early, and evaluates it within its epochs, as its config says."""

from pipelines.runs.config import RunConfig
from tf_dlrm.callbacks import EarlyStopping, EvaluateWithinEpochs


def check(config: RunConfig, has_validation: bool) -> None:
    """Refuses what needs rows for validation where there are none.

    Raises:
        ValueError: With the option's name.
    """
    if has_validation:
        return
    for name in ("target_auc", "patience", "evaluate_every_steps"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} needs rows to validate on: name files "
                "with --valid, or give `prepare` a split for them."
            )


class Stopping:
    """The callbacks of a run that end it early, and what they say of it.

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
        self.callbacks = [each for each in (self._within, self.stop) if each]

    @property
    def seconds(self) -> float:
        """What evaluations within epochs took."""
        return self._within.seconds if self._within else 0.0

    @property
    def states(self) -> dict:
        """What a resumed run goes on with, for `ResumableTraining.carry`."""
        return {"early": self.stop} | ({"within": self._within} if self._within else {})

    def describe(self) -> dict:
        """For the results of the run."""
        return {
            "stopped": self.stop.reason,
            "evaluations_within_epochs": self._within.results if self._within else [],
        }
