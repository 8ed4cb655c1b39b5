"""`RunInputs`: the files, records or days that a run is trained on."""

import dataclasses

from pipelines.files import Paths
from pipelines.log_data import describe_data, find_records
from pipelines.runs.data import LogData, RecordData, TrainingData
from pipelines.runs.folder import RunFolder
from pipelines.runs.progressive import DayData
from pipelines.runtime import UserError
from pipelines.vocabulary import HashVocabulary, SharedHashVocabulary, Vocabulary


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """The data of a run, named but not yet opened.

    Attributes:
        train: Labelled files, or one folder of records.
        valid: Labelled files for validation, or `None`.
        vocabulary: Numbers the values; `None` makes one as the config says.
        progressive: Whether each file is a day, evaluated before it is trained on.
    """

    train: Paths
    valid: Paths | None = None
    vocabulary: Vocabulary | HashVocabulary | SharedHashVocabulary | None = None
    progressive: bool = False

    @property
    def has_validation(self) -> bool:
        """True if there may be rows to validate on."""
        is_prepared = find_records(self.train) is not None
        return bool(self.valid) or self.progressive or is_prepared

    def describe(self) -> dict:
        """Return what identifies the data, for the run's `config.json`."""
        return describe_data(self.train, self.valid)

    def open(self, folder: RunFolder, run) -> TrainingData:
        """Check the data, and count rows and values unless they are known.

        Args:
            folder: The folder of the run, for bad rows.
            run: The `NewRun` or `ResumedRun`: config, vocabulary, rows of each epoch.

        Raises:
            ValueError: If the data cannot be trained on as the config says.
        """
        arguments = (run.config, self.train, self.valid, folder, run.vocabulary)
        if self.progressive:
            return DayData(*arguments, run.rows_by_epoch)
        records = find_records(self.train)
        if records is None:
            return LogData(*arguments, run.rows_by_epoch and run.rows_by_epoch[0])
        if self.valid or (run.vocabulary is not None and not run.is_resumed):
            raise UserError(
                f"{records} holds records with a vocabulary and validation rows of "
                "their own: leave `valid_paths` and `vocabulary` out."
            )
        return RecordData(run.config, records)
