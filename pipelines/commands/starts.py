"""The defaults of `train` and `tune`: from a named run, a file or a folder."""

import dataclasses
import itertools

import tyro

from pipelines import runs
from pipelines.commands.following import Following
from pipelines.runs.config import RunConfig
from pipelines.runs.defaults import CHOSEN, LEARNING_RATES
from pipelines.runs.run_files import RunFiles
from pipelines.runtime import UserError


def start_train(kind: type, options: list[str]):
    """Return the defaults of `train`, which its other options change.

    They come from the file of --config or the named run; with --resume, from the run to
    resume; with --warm-start, from the previous run.

    Args:
        kind: The class of the command.
        options: The words after the name of the command.
    """
    config, out = _read_config(options), typed_value("out", options)
    if "--resume" in options and out is not None:
        if RunFiles(out).is_described:
            return _resume(kind, RunFiles(out), config)
        if typed_value("train", options) is None and not _follows(options):
            raise UserError(
                f"{out}: contains no run to resume. To start one, pass its --train "
                "files."
            )
    others = {"train": []} if _follows(options) else {}
    name = typed_value("run", options)
    warm_start = typed_value("warm-start", options)
    if name is None and config is None and warm_start is not None:
        previous = RunFiles(warm_start)
        name, config = previous.read_data().get("run"), previous.read_config()
        return _start(kind, name, config)
    config = _choose_optimizer(config or runs.get(name), options)
    if any(typed_value(option, options) is not None for option in CHOSEN):
        config = dataclasses.replace(config, compare_models=False)
    if _follows(options):  # a run without an end; what is typed still counts
        config = dataclasses.replace(
            config, learning_rate_decay="none", epochs=None, compare_models=False
        )
    return _start(kind, name, config, **others)


def _follows(options):
    """Return whether the training takes the files of a growing folder."""
    return typed_value("follow", options) is not None


def start_tune(kind: type, options: list[str]):
    """Return the defaults of `tune`, with the options that were typed, which it fixes.

    Args:
        kind: The class of the command.
        options: The words after the name of the command.
    """
    names = [field.name for field in dataclasses.fields(RunConfig)]
    fixed = [name for name in names if typed_value(name, options) is not None]
    name = typed_value("run", options)
    config = _choose_optimizer(_read_config(options) or runs.get(name), options)
    return _start(kind, name, config, fixed=tuple(fixed))


STARTS = {"train": start_train, "tune": start_tune}


def _start(kind, name, config, **others):
    return kind(
        out=tyro.MISSING,
        run_name=name,
        config=config,
        **{"train": tyro.MISSING, **others},
    )


def _read_config(options):
    """Return the config in the file of --config, or `None` without that option."""
    path = typed_value("config", options)
    if path is None:
        return None
    if typed_value("run", options) is not None:
        raise UserError("--config and --run both set the defaults: leave one out.")
    return RunConfig.load(path)


def _choose_optimizer(config, options):
    optimizer = typed_value("optimizer", options)
    if optimizer in LEARNING_RATES and optimizer != config.optimizer:
        return config.with_optimizer(optimizer)
    return config


def _resume(kind, files, config):
    """Return the options of the run in a folder."""
    data = files.read_data()
    if "follow" in data:
        following = Following(follow=data["follow"])
        return kind(
            train=[],
            out=tyro.MISSING,
            run_name=data.get("run"),
            devices=data.get("devices", 1),
            config=files.read_config() if config is None else config,
            following=following,
        )
    return kind(
        train=[data["records"]] if "records" in data else data["train"],
        out=tyro.MISSING,
        valid=data.get("valid", []),
        vocabulary=data.get("vocabulary"),
        progressive=data.get("progressive", False),
        warm_start=data.get("warm_start"),
        run_name=data.get("run"),
        devices=data.get("devices", 1),
        config=files.read_config() if config is None else config,
    )


def typed_value(name: str, options: list[str]) -> str | None:
    """Return the value of an option as typed, or `None` if it was not typed."""
    value = None
    for option, following in itertools.zip_longest(options, options[1:]):
        typed, has_value, after = option.partition("=")
        if typed.replace("_", "-") == f"--{name.replace('_', '-')}":
            value = after if has_value else following
    return value
