"""Start a run, or resume an interrupted run with the same options."""

import dataclasses
import os
import warnings
from typing import Any

from pipelines.runs.config import RunConfig
from pipelines.runs.defaults import is_open
from pipelines.runs.folder import RunFolder
from pipelines.runs.run_files import file_names
from pipelines.runtime import UserError
from tf_dlrm.training.checkpoints import changed_files

# The parameter of `train` that sets each part of a run's data.
_PARAMETERS = {
    "records": "train_paths",
    "train": "train_paths",
    "valid": "valid_paths",
    "warm_start": "warm_start",
}

# The parts of a step that XLA compiles, by `xla_choice` of the model.
_XLA = {"none": "nothing", "parts": "small parts", "program": "the whole dense part"}


class NewRun:
    """A new run, whose folder is made and described before training.

    Args:
        folder: The folder of the run.
        config: Config of the run.
        inputs: The `RunInputs` of the run.
        options: Further options to record in `config.json`.

    Attributes:
        config: Config of the run.
        vocabulary: The vocabulary of the inputs, or `None`.
        rows_by_epoch: Number of rows of each epoch, if known.
        first_step: Number of steps of the run that it starts from, if known.
    """

    is_resumed = False

    def __init__(self, folder: RunFolder, config: RunConfig, inputs, options: dict):
        self._folder, self._options = folder, options
        self.config, self.vocabulary = config, inputs.vocabulary
        self.rows_by_epoch: list[int] | None = None
        self.first_step: int | None = None

    def open_folder(self) -> None:
        """Make the folder.

        Raises:
            FileExistsError: If the folder already contains a run.
        """
        self._folder.start()

    def check_start(self, start, vocabulary) -> None:
        """Check that a warm start can map its rows, before the model is built."""
        start.map_rows(vocabulary)

    def describe(self, data, origin: dict[str, Any], start: dict[str, Any]) -> None:
        """Write the description of the run that is known before training.

        Args:
            data: The `TrainingData`.
            origin: Further facts to record.
            start: Facts about the warm start.
        """
        content = {
            **data.origin,
            "negative_sampling_rate": data.negative_sampling_rate,
            "comparison": data.comparison,
            **origin,
            **self._options,
            **start,
            "rows_by_epoch": data.rows_by_epoch,
        }
        self._folder.describe(data.config, content, data.vocabulary, data.expander)


class ResumedRun(NewRun):
    """An interrupted run that resumes with the options in its folder.

    Raises:
        ValueError: If options or data differ from those of the run.
    """

    is_resumed = True

    def __init__(self, folder: RunFolder, config: RunConfig, inputs, options: dict):
        super().__init__(folder, config, inputs, options)
        check_same(folder, config, inputs.describe() | options, inputs.vocabulary)
        self.vocabulary, self.config = folder.read_vocabulary(), folder.read_config()
        data = folder.read_data()
        self.rows_by_epoch = data.get("rows_by_epoch")
        self.first_step = data.get("first_step")
        self._xla = data.get("xla")

    def open_folder(self) -> None:
        """Do nothing: the folder already exists."""

    def check_start(self, start, vocabulary) -> None:
        """Do nothing: the check was made when the run started."""

    def describe(self, data, origin, start) -> None:
        """Warn if results may not be bit-equal to those without the interruption."""
        before, now = self._xla, origin.get("xla")
        if before is not None and now is not None and before != now:
            warnings.warn(
                f"{self._folder.path} was trained with XLA compiling {_XLA[before]} "
                f"and resumes with XLA compiling {_XLA[now]}: results agree up to "
                "rounding but are not bit-equal.",
                RuntimeWarning,
                stacklevel=2,
            )


def begin(
    folder: RunFolder,
    config: RunConfig,
    inputs,
    warm_start: str | os.PathLike | None = None,
    resume: bool = False,
) -> NewRun:
    """Return the run to resume in a folder, or a new run if there is none.

    Args:
        folder: The folder.
        config: The config passed now.
        inputs: The `RunInputs` passed now.
        warm_start: Folder of the run that this run starts from, or `None`.
        resume: Whether to resume.

    Raises:
        ValueError: If options or data differ from those of the run to resume.
    """
    options = {"progressive": inputs.progressive}
    if warm_start is not None:
        options["warm_start"] = os.path.abspath(warm_start)
    can_resume = folder.is_described and not folder.is_finished
    kind = ResumedRun if resume and can_resume else NewRun
    return kind(folder, config, inputs, options)


def check_same(
    folder: RunFolder, config: RunConfig, data: dict, vocabulary=None
) -> None:
    """Check that a run resumes with the same options and the same data.

    Files are compared by name without folder, as they may have been moved, and by the
    fingerprint of their content (`tf_dlrm.runtime.disk.fingerprints`), which runs of
    earlier versions did not record. The number of devices may differ.

    Args:
        folder: The folder of the run.
        config: The config passed now.
        data: The data passed now, as `RunInputs.describe` returns it.
        vocabulary: The vocabulary passed now, or `None`.

    Raises:
        ValueError: If something differs; the message names each difference.
    """
    stored = folder.read_data()
    differing = list_differences(folder.read_config(), stored, config, data)
    if bool(stored.get("progressive")) != bool(data.get("progressive")):
        words = ["on" if d.get("progressive") else "off" for d in (stored, data)]
        differing.append(f"`progressive` was {words[0]}, now {words[1]}")
    if vocabulary is not None:
        if vocabulary.digest != folder.read_vocabulary().digest:
            differing.append("`vocabulary` differs")
    if differing:
        raise UserError(
            f"{folder.path} contains a run with different options: "
            f"{'; '.join(differing)}. Leave them out (`resume=True` uses those of "
            "the run), or choose another `out`."
        )
    check_content(folder.path, stored, data)


def list_differences(
    config: RunConfig, data: dict, new_config: RunConfig, new_data: dict
) -> list[str]:
    """Return each option and each file name that differs, as text.

    Options that a run chooses itself may be left out in `new_config`.
    """
    before, now = dataclasses.asdict(config), dataclasses.asdict(new_config)
    differing = [
        f"`{name}` was {before[name]}, now {now[name]}"
        for name in before
        if before[name] != now[name] and not is_open(name, new_config, before[name])
    ]
    for name in _PARAMETERS:
        before, now = file_names(data.get(name)), file_names(new_data.get(name))
        if before != now:
            words = [" ".join(paths) or "nothing" for paths in (before, now)]
            differing.append(f"`{_PARAMETERS[name]}` was {words[0]}, now {words[1]}")
    return differing


def check_content(path, data: dict, new_data: dict) -> None:
    """Check that the content of files is the same as before.

    Args:
        path: The folder to resume, for the message.
        data: The data before, as `RunInputs.describe` returns it.
        new_data: The data now.

    Raises:
        ValueError: If the content of a file has changed; the message names it.
    """
    before, now = (facts.get("content") or {} for facts in (data, new_data))
    changed = [
        f"{file} of `{_PARAMETERS.get(name, name)}`"
        for name in before
        for file in changed_files(before[name], now.get(name, before[name]))
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{path} cannot be resumed: the content of these files has changed since "
            f"it was started: {', '.join(changed[:3])}{more}. Restore them, or choose "
            "another `out`."
        )
