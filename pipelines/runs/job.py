"""The whole job as functions: vocabulary, training, evaluation, export of a run."""

import math
import os
import time

import keras

import tf_dlrm
from pipelines.criteo import Parser, read
from pipelines.criteo import ops as criteo_ops
from pipelines.files import BlockReader, Paths, expand_paths
from pipelines.progress import bar
from pipelines.progress.fit import EvaluateProgress, FitProgress
from pipelines.quarantine import Quarantine
from pipelines.runs import assembly
from pipelines.runs.config import RunConfig
from pipelines.runs.errors import clear_errors
from pipelines.runs.folder import RunFolder
from pipelines.vocabulary import HashVocabulary, Vocabulary
from tf_dlrm.training.callbacks import TensorBoardLogger


def build_vocabulary(
    paths: Paths, min_count: int = 10, max_size: int | None = None, quarantine=None
) -> Vocabulary:
    """Counts the values of labelled files, with progress.

    Args:
        paths: Files; see `pipelines.files.expand_paths`.
        min_count: Times a value must occur to have an id.
        max_size: Largest number of ids of a feature; `None`: no limit.
        quarantine: Where bad rows go.
    """
    with bar("Counting values") as update:
        return Vocabulary.build(paths, min_count, max_size, update, quarantine)


def train(
    config: RunConfig,
    train_paths: Paths,
    valid_paths: Paths | None,
    out,
    vocabulary=None,
    callbacks=(),
    origin: dict | None = None,
) -> tuple[RunFolder, dict]:
    """Trains a run from files of Criteo lines into a folder of its own.

    Args:
        config: The run.
        train_paths: Labelled files to train on.
        valid_paths: Labelled files for validation after each epoch, or `None`.
        out: The run's folder; must not hold a finished run.
        vocabulary: `Vocabulary` or `HashVocabulary`; `None` makes one as the
            config says, from the training files.
        callbacks: Further Keras callbacks.
        origin: What else is worth recording in the run's `config.json`.

    Returns:
        The folder and the results: final metrics, rows, seconds.

    Raises:
        FileExistsError: If `out` holds a finished run.
        ValueError: If no row is good, or the training diverged; no model is kept.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    train_paths = expand_paths(train_paths)
    valid_paths = expand_paths(valid_paths) if valid_paths else None
    folder = RunFolder(out)
    folder.start()
    quarantine = Quarantine(folder.bad_rows_path, config.max_bad_share)
    valid_quarantine = Quarantine(folder.bad_valid_rows_path, config.max_bad_share)
    if valid_paths:
        # Before hours of training, not after: a look at every validation row.
        _check_rows(valid_paths, valid_quarantine)
    if vocabulary is None:
        vocabulary = _make_vocabulary(config, train_paths, quarantine)
        num_rows = getattr(vocabulary, "num_rows", 0) or _count_rows(train_paths)
    else:
        num_rows = _count_rows(train_paths)
    keras.utils.set_random_seed(config.seed)
    parser = Parser(vocabulary)
    model = assembly.make_model(config, parser.spec(config.embedding_dim))
    num_steps = math.ceil(num_rows / config.batch_size) * config.epochs
    assembly.compile_model(model, config, num_steps)
    data = {"train": train_paths, "valid": valid_paths or []}
    data = {part: [os.path.abspath(p) for p in paths] for part, paths in data.items()}
    folder.describe(config, {**data, **(origin or {})}, vocabulary)
    dataset = read(
        train_paths,
        parser,
        config.batch_size,
        shuffle=config.shuffle,
        seed=config.seed,
        quarantine=quarantine,
    )
    valid = None
    if valid_paths:
        valid = read(
            valid_paths, parser, config.batch_size, quarantine=valid_quarantine
        )
    shown = FitProgress(config.batch_size, num_rows)
    start = time.perf_counter()
    with shown, clear_errors(quarantine, valid_quarantine):
        history = model.fit(
            dataset,
            validation_data=valid,
            epochs=config.epochs,
            verbose=0,
            shuffle=False,
            callbacks=[
                shown,
                TensorBoardLogger(folder.log_dir, config.batch_size),
                keras.callbacks.TerminateOnNaN(),
                *callbacks,
            ],
        ).history
    num_good = quarantine.num_rows - quarantine.num_bad
    _check_trained(history, num_good)
    model.save(folder.model_path)
    results = {
        "metrics": {name: values[-1] for name, values in history.items()},
        "num_rows": num_good,
        "num_bad_rows": quarantine.num_bad,
        "num_valid_rows": valid_quarantine.num_rows - valid_quarantine.num_bad,
        "num_bad_valid_rows": valid_quarantine.num_bad,
        "seconds": time.perf_counter() - start,
        "training_seconds": shown.seconds,
        "samples_per_second": num_good * len(history["loss"]) / shown.seconds,
    }
    folder.write_results(history, results)
    return folder, results


def evaluate(
    model,
    parser,
    paths: Paths,
    batch_size: int = 4096,
    quarantine: Quarantine | None = None,
) -> dict:
    """Returns the metrics of a model on labelled files, as a dict.

    Args:
        model: A compiled `DLRM`.
        parser: The parser with its vocabulary.
        paths: Labelled files.
        batch_size: Rows in a step.
        quarantine: Where bad rows go. `None`: `Quarantine()`.

    Raises:
        ValueError: If no row is good.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    quarantine = Quarantine() if quarantine is None else quarantine
    dataset = read(paths, parser, batch_size, quarantine=quarantine)
    rows = _estimate_rows(paths)
    shown = EvaluateProgress(batch_size, rows, lambda: quarantine.num_rows)
    with shown, clear_errors(quarantine):
        results = model.evaluate(
            dataset, verbose=0, return_dict=True, callbacks=[shown]
        )
    if quarantine.num_rows == quarantine.num_bad:
        raise ValueError(_no_rows(paths))
    return {k: float(v) for k, v in results.items()} | {
        "num_rows": quarantine.num_rows - quarantine.num_bad,
        "num_bad_rows": quarantine.num_bad,
    }


def export(
    folder: RunFolder, base_dir, version: int | None = None, max_hotness=1
) -> str:
    """Exports the model of a run, with its parser, and returns the version's path."""
    parser = folder.load_parser()
    model = folder.load_model(parser)
    return tf_dlrm.export_saved_model(
        model, base_dir, version, preprocessor=parser, max_hotness=max_hotness
    )


def _make_vocabulary(config, paths, quarantine):
    if config.hash_buckets is not None:
        return HashVocabulary(config.hash_buckets)
    return build_vocabulary(
        paths, config.min_count, config.max_vocabulary_size, quarantine
    )


def _check_rows(paths, quarantine):
    """Reads labelled rows once, for their faults alone."""
    reader, done = BlockReader(), 0
    with bar("Checking validation rows") as update:
        for path in paths:
            first = 0
            for block in reader.blocks(path):
                lines = block.removesuffix(b"\n").split(b"\n")
                bad = criteo_ops.find_bad(lines, first, labelled=True)
                quarantine.record(path, first, len(lines), bad)
                first, done = first + len(lines), done + len(lines)
                update(done)
    quarantine.check()
    if quarantine.num_rows == quarantine.num_bad:
        raise ValueError(_no_rows(paths))


def _check_trained(history, num_good):
    if not num_good:
        raise ValueError("No row to train on is good; no model is kept.")
    losses = history.get("loss", [])
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise ValueError(
            "The training diverged: the loss is not finite. Try a smaller "
            "--learning-rate. No model is kept."
        )


def _no_rows(paths):
    return f"No row is good in {', '.join(map(str, expand_paths(paths)))}."


def _count_rows(paths) -> int:
    reader = BlockReader()
    total = 0
    with bar("Counting rows") as update:
        for path in paths:
            for block in reader.blocks(path):
                total += block.count(b"\n") + (not block.endswith(b"\n"))
                update(total)
    return total


def _estimate_rows(paths) -> int | None:
    """Rows of plain files by a look at their size; `None` where that says nothing."""
    paths = expand_paths(paths)
    if any(path.endswith(".gz") for path in paths):
        return None
    with open(paths[0], "rb") as file:
        start = file.read(1 << 20)
    lines = max(start.count(b"\n"), 1)
    size = sum(os.path.getsize(path) for path in paths)
    return round(size / (max(start.rfind(b"\n") + 1, 1) / lines))
