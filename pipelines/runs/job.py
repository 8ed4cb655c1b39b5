"""The whole job as functions: vocabulary, training, evaluation, export of a run."""

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterator

import keras
import tensorflow as tf

import tf_dlrm
from pipelines.criteo import Parser, read
from pipelines.files import BlockReader, Paths, expand_paths
from pipelines.progress import bar
from pipelines.progress.fit import EvaluateProgress, FitProgress
from pipelines.quarantine import Quarantine
from pipelines.runs import assembly
from pipelines.runs.config import RunConfig
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

    Returns:
        The folder and the results: final metrics, rows, seconds.

    Raises:
        FileExistsError: If `out` holds a finished run.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    train_paths = expand_paths(train_paths)
    valid_paths = expand_paths(valid_paths) if valid_paths else None
    folder = RunFolder(out)
    folder.start()
    keras.utils.set_random_seed(config.seed)
    quarantine = Quarantine(folder.bad_rows_path, config.max_bad_share)
    if vocabulary is None:
        vocabulary = _make_vocabulary(config, train_paths, quarantine)
    num_rows = getattr(vocabulary, "num_rows", 0) or _count_rows(train_paths)
    parser = Parser(vocabulary)
    model = assembly.make_model(config, parser.spec(config.embedding_dim))
    num_steps = math.ceil(num_rows / config.batch_size) * config.epochs
    assembly.compile_model(model, config, num_steps)
    folder.describe(config, _data(train_paths, valid_paths, num_rows), vocabulary)
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
        valid_quarantine = Quarantine(max_bad_share=config.max_bad_share)
        valid = read(
            valid_paths, parser, config.batch_size, quarantine=valid_quarantine
        )
    start = time.perf_counter()
    with clear_errors(quarantine):
        history = model.fit(
            dataset,
            validation_data=valid,
            epochs=config.epochs,
            verbose=0,
            shuffle=False,
            callbacks=[
                FitProgress(config.batch_size, num_rows),
                TensorBoardLogger(folder.log_dir, config.batch_size),
                *callbacks,
            ],
        ).history
    seconds = time.perf_counter() - start
    model.save(folder.model_path)
    results = {
        "metrics": {name: values[-1] for name, values in history.items()},
        "num_rows": num_rows,
        "num_bad_rows": quarantine.num_bad,
        "seconds": seconds,
        "samples_per_second": num_rows * config.epochs / seconds,
    }
    folder.write_results(history, results)
    return folder, results


def evaluate(model, parser, paths: Paths, batch_size: int = 4096, max_bad_share=1e-4):
    """Returns the metrics of a model on labelled files, as a dict.

    Args:
        model: A compiled `DLRM`.
        parser: The parser with its vocabulary.
        paths: Labelled files.
        batch_size: Rows in a step.
        max_bad_share: Largest share of bad rows.
    """
    quarantine = Quarantine(max_bad_share=max_bad_share)
    dataset = read(paths, parser, batch_size, quarantine=quarantine)
    rows = _estimate_rows(paths)
    shown = EvaluateProgress(batch_size, rows, lambda: quarantine.num_rows)
    with clear_errors(quarantine):
        results = model.evaluate(
            dataset, verbose=0, return_dict=True, callbacks=[shown]
        )
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


@contextlib.contextmanager
def clear_errors(quarantine: Quarantine) -> Iterator[None]:
    """Raises what went wrong in the input pipeline as itself.

    An exception in there reaches `fit` as a TensorFlow error with a traceback in its
    text. The quarantine knows whether too many bad rows were behind it.
    """
    try:
        with warnings.catch_warnings():
            # Keras says so at the end of every dataset of unknown length.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            yield
    except tf.errors.OpError as error:
        quarantine.check()
        text = error.message or ""
        for line in text.splitlines():
            kind, _, message = line.partition(": ")
            if kind.endswith(("ValueError", "FileNotFoundError", "BadRowsError")):
                raise ValueError(message) from error
        raise


def _make_vocabulary(config, paths, quarantine):
    if config.hash_buckets is not None:
        return HashVocabulary(config.hash_buckets)
    return build_vocabulary(
        paths, config.min_count, config.max_vocabulary_size, quarantine
    )


def _data(train_paths, valid_paths, num_rows):
    return {
        "train": [os.path.abspath(path) for path in train_paths],
        "valid": [os.path.abspath(path) for path in valid_paths or []],
        "num_train_rows": num_rows,
    }


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
