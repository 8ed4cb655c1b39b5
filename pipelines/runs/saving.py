"""Save and export the models of a run, the best and the last."""

from collections.abc import Callable
from typing import Any

import tf_dlrm
from pipelines.runs.config import RunConfig
from pipelines.runs.folder import RunFolder
from pipelines.vocabulary.record_ids import RecordIds
from tf_dlrm.callbacks import ResumableTraining
from tf_dlrm.training import checkpoints


def save_models(
    model,
    folder: RunFolder,
    config: RunConfig,
    checkpoint: ResumableTraining,
    last: dict[str, float],
    epoch: int,
) -> dict:
    """Save the model that the config asks for, and the other one next to it.

    The best model comes from a checkpoint, so a resumed run has the same one. Without
    validation there is no best model, and the last one is saved.

    Args:
        model: The model at the end of training; it may have the best weights then.
        folder: The folder of the run.
        config: Config of the run.
        checkpoint: The callback that wrote the checkpoints of the run.
        last: The results of the last epoch.
        epoch: Number of the last epoch, from 1.

    Returns:
        Part of the results of the run: `saved_model`, `best` and `last` with epoch,
        step and value of the monitored metric, and `metrics` of the saved model.
    """
    monitor = f"val_{config.monitor}"
    step = int(model.optimizer.iterations.numpy())
    best = checkpoint.find_best()
    places = {"best": None, "last": _place(epoch, step, config, last.get(monitor))}
    if best is not None:
        places["best"] = _place(best.epoch, best.step, config, best.value)
    is_best = config.saved_model == "best" and best is not None
    saved = "best" if is_best else "last"
    if best is None or best.step == step:
        for path in (folder.last_model_path, folder.best_model_path):
            path.unlink(missing_ok=True)  # left by a run that was killed while saving
        folder.save_model(model)
    else:
        first, second = folder.model_path, folder.other_model_path(saved)
        folder.save_model(model, second if is_best else first)
        checkpoints.restore(model, best.path)
        folder.save_model(model, first if is_best else second)
    metrics = {**last, **best.results} if is_best else last
    return {"saved_model": saved, **places, "metrics": metrics}


def _place(epoch, step, config, value):
    return {"epoch": epoch, "step": step, config.monitor: value}


def describe(results: dict) -> str:
    """Return the last line of a run, on its best and its saved model."""
    if results["best"] is None:
        reason = "no validation to select the best"
        (metric,) = results["last"].keys() - {"epoch", "step"}
        if "days" in results:
            reason = "each day is a different validation"
        elif results["last"][metric] is not None:
            reason = f"the validation {metric} was never finite"
            if metric == "auc":
                reason += ": it needs rows with and without a click"
        return f"saved model: {results['saved_model']} ({reason})"
    line = f"best: {_words(results['best'])}"
    if results["best"]["step"] != results["last"]["step"]:
        line += f"; last: {_words(results['last'])}"
    return f"{line}; saved model: {results['saved_model']}"


def _words(place):
    (metric,) = place.keys() - {"epoch", "step"}
    text = f"epoch {place['epoch']}, step {place['step']:,}"
    value = place[metric]
    return text if value is None else f"{text}, {metric} {value:.4f}"


def export(
    folder: RunFolder,
    base_dir,
    version: int | None = None,
    max_hotness=1,
    candidate_features=(),
    table_dtype: str = "float32",
    which: str = "saved",
    fit: Callable[..., Any] | None = None,
    compact: bool = False,
) -> str:
    """Export a model of a run with its parser; return the path of the version.

    Args:
        folder: The folder of the run.
        base_dir: Folder of the exported versions.
        version: Version number; default: the next one.
        max_hotness: Length of the padded bags of `serving_default`.
        candidate_features: Features that differ between the items to rank.
        table_dtype: Data type of stored tables, see `tf_dlrm.export_saved_model`.
        which: `"saved"` for the run's model, `"best"` or `"last"`.
        fit: Function of the model and its parser that returns the correction of
            probabilities to store; default: none.
        compact: Whether growing tables hold only the rows of their ids.
    """
    parser = folder.load_parser()
    model = folder.load_model(parser, which)
    return tf_dlrm.export_saved_model(
        model,
        base_dir,
        version,
        preprocessor=None if isinstance(parser.vocabulary, RecordIds) else parser,
        max_hotness=max_hotness,
        candidate_features=candidate_features,
        table_dtype=table_dtype,
        calibration=None if fit is None else fit(model, parser),
        compact=compact,
    )
