"""`RunInputs`: the files, records or days that a run is trained on."""

import dataclasses

from pipelines.files import Paths
from pipelines.log_data import describe_data, find_records
from pipelines.runs.data import LogData, RecordData, TrainingData
from pipelines.runs.folder import RunFolder
from pipelines.runs.progressive import DayData
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.vocabulary import HashVocabulary, SharedHashVocabulary, Vocabulary


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """The data of a run, named but not yet opened.

    Attributes:
        train: Labelled files, or one folder of records.
        valid: Labelled files for validation, or `None`.
        vocabulary: Vocabulary to use; `None`: build one with the options of the config.
        progressive: Whether each file is a day, evaluated on before training on it.
        schema: The columns of the files; default: the schema of the vocabulary, or
            Criteo's.
    """

    train: Paths
    valid: Paths | None = None
    vocabulary: Vocabulary | HashVocabulary | SharedHashVocabulary | None = None
    progressive: bool = False
    schema: Schema | None = None

    @property
    def has_validation(self) -> bool:
        """True if there may be validation rows."""
        is_prepared = find_records(self.train) is not None
        return bool(self.valid) or self.progressive or is_prepared

    def describe(self) -> dict:
        """Return the facts that identify the data, for the run's `config.json`."""
        return describe_data(self.train, self.valid)

    def open(self, folder: RunFolder, run) -> TrainingData:
        """Check the data, and count rows and values unless they are known.

        Args:
            folder: The folder of the run, which also takes the bad rows.
            run: The `NewRun` or `ResumedRun`: config, vocabulary, rows of each epoch.

        Raises:
            ValueError: If the data do not fit the config.
        """
        arguments = (run.config, self.train, self.valid, folder, run.vocabulary)
        if self.progressive:
            return DayData(*arguments, run.rows_by_epoch, self.schema)
        records = find_records(self.train)
        if records is None:
            num_rows = run.rows_by_epoch and run.rows_by_epoch[0]
            return LogData(*arguments, num_rows, self.schema)
        given = (self.valid, run.vocabulary, self.schema)
        if any(given[:2] if not run.is_resumed else given[:1]) or given[2]:
            raise UserError(
                f"{records} contains records, which have their own vocabulary, schema "
                "and validation rows: leave `valid_paths`, `vocabulary` and `schema` "
                "out."
            )
        return RecordData(run.config, records)
