"""The whole job as functions: vocabulary, training, evaluation, export of a run."""

import contextlib
import math
import time

import keras
import tensorflow as tf

import tf_dlrm
from pipelines import records
from pipelines.criteo import Parser, read
from pipelines.files import Paths
from pipelines.progress.fit import EvaluateProgress, FitProgress
from pipelines.quarantine import Quarantine
from pipelines.records.layout import Manifest
from pipelines.runs import assembly, resuming
from pipelines.runs.config import RunConfig
from pipelines.runs.data import (
    LogData,
    RecordData,
    describe_data,
    estimate_rows,
    expander_of,
    find_records,
    no_rows,
    rate_of,
)
from pipelines.runs.errors import clear_errors
from pipelines.runs.folder import RunFolder
from pipelines.runs.watching import Watching
from pipelines.whole_files import write_text
from tf_dlrm.training import ResumableTraining


def train(
    config: RunConfig,
    train_paths: Paths,
    valid_paths: Paths | None,
    out,
    vocabulary=None,
    callbacks=(),
    origin: dict | None = None,
    strategy=None,
    placement="auto",
    resume: bool = False,
    checkpoints: dict | None = None,
    watching: Watching | None = None,
) -> tuple[RunFolder, dict]:
    """Trains a run from files of Criteo lines into a folder of its own.

    Args:
        config: The run.
        train_paths: Labelled files to train on, or one folder of records that
            `prepare` wrote, with its vocabulary and validation rows.
        valid_paths: Labelled files for validation after each epoch, or `None`.
        out: The run's folder; must not hold a finished run.
        vocabulary: `Vocabulary` or `HashVocabulary`; `None` makes one as the
            config says, from the training files.
        callbacks: Further Keras callbacks.
        origin: What else is worth recording in the run's `config.json`.
        strategy: A `tf.distribute.MirroredStrategy` to train under, or `None`. Tables
            are then spread over its devices, and the plan is printed.
        placement: How, as `strategy` of `tf_dlrm.sharding.plan`.
        resume: Whether to go on with a run that was cut. Where `out` holds none, one
            is begun.
        checkpoints: Arguments of `tf_dlrm.training.ResumableTraining`, such as
            `{"every_steps": 1000}`. They are removed when the run is done, but for
            the best one if a later epoch was worse.
        watching: What is written for TensorBoard; `None`: `Watching()`.

    Returns:
        The folder and the results: final metrics, rows, seconds.

    Raises:
        FileExistsError: If `out` holds a finished run, or one that can go on.
        OSError: If a checkpoint cannot be written.
        SystemExit: With code 143, after SIGTERM and a checkpoint.
        ValueError: If the run to go on with is another, no row is good, or the
            training diverged; no model is kept.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    watching = watching or Watching()
    folder = RunFolder(out)
    found = find_records(train_paths)
    goes_on = resume and folder.is_described and not folder.is_finished
    if goes_on:
        given = describe_data(train_paths, valid_paths)
        resuming.check_same(folder, config, given, vocabulary)
    else:
        folder.start()
    if found is None:
        num_rows = None
        if goes_on:
            vocabulary = folder.read_vocabulary()
            num_rows = folder.read_data()["num_rows"]
        data = LogData(config, train_paths, valid_paths, folder, vocabulary, num_rows)
    elif valid_paths or vocabulary is not None:
        raise ValueError(
            f"{found} holds records with a vocabulary and validation rows of their "
            "own: leave `valid` and `vocabulary` out."
        )
    else:
        data = RecordData(config, found)
    keras.utils.set_random_seed(config.seed)
    parser = Parser(data.vocabulary, expander=data.expander)
    num_steps = math.ceil(data.num_rows / config.batch_size) * config.epochs
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        spec = parser.spec(config.embedding_dim)
        model = assembly.make_model(
            config, spec, placement, data.negative_sampling_rate
        )
        assembly.compile_model(model, config, num_steps)
    if not goes_on:
        counted = {"num_rows": data.num_rows}
        sampled = {"negative_sampling_rate": data.negative_sampling_rate}
        origin = {**data.origin, **sampled, **(origin or {}), **counted}
        folder.describe(config, origin, data.vocabulary, data.expander)
    plan = getattr(model.embedding, "plan", None)
    if plan is not None:
        print(plan, flush=True)
        write_text(folder.plan_path, plan.to_json() + "\n")
    checkpoint = ResumableTraining(
        folder.checkpoint_dir,
        **{"log_dir": folder.log_dir, "verbose": 0, **(checkpoints or {})},
    )
    checkpoint.how_to_go_on = "give the same command with --resume."
    shown = FitProgress(config.batch_size, data.num_rows, lambda: _saved(checkpoint))
    start = time.perf_counter()
    train_dataset = checkpoint.resume(model, data.train_dataset())
    shown.first_batch = checkpoint.initial_batch
    before = checkpoint.initial_epoch * data.num_rows
    before += checkpoint.initial_batch * config.batch_size
    with shown, clear_errors(*data.quarantines):
        history = model.fit(
            train_dataset,
            validation_data=data.valid_dataset(),
            initial_epoch=checkpoint.initial_epoch,
            epochs=config.epochs,
            verbose=0,
            shuffle=False,
            callbacks=[
                shown,
                *watching.callbacks(folder.log_dir, config, data.vocabulary),
                keras.callbacks.TerminateOnNaN(),
                *callbacks,
                checkpoint,
            ],
        ).history
        if checkpoint.initial_epoch >= config.epochs:
            for _ in data.train_dataset():  # all was trained on, but not counted here
                pass
    counts = data.count()
    try:
        _check_trained(history, counts["num_rows"])
    except ValueError:
        checkpoint.clear(keep_best=False)
        raise
    folder.save_model(model)
    trained = counts["num_rows"] * len(history["loss"]) - before
    results = {
        "metrics": {name: values[-1] for name, values in history.items()},
        **counts,
        "seconds": time.perf_counter() - start,
        "training_seconds": shown.seconds,
        "validation_seconds": shown.validation_seconds,
        "samples_per_second": trained / shown.seconds if shown.seconds else 0.0,
        "checkpoint_seconds": checkpoint.seconds,
    }
    folder.write_results(history, results)
    checkpoint.clear()
    return folder, results


def _saved(checkpoint):
    if not checkpoint.seconds:
        return ""
    return f"{checkpoint.num_saved} saved, last in {checkpoint.seconds[-1]:.2f} s"


def evaluate(
    model,
    parser,
    paths: Paths,
    batch_size: int = 4096,
    quarantine: Quarantine | None = None,
    split: str = "test",
) -> dict:
    """Returns the metrics of a model on labelled rows, as a dict.

    Args:
        model: A compiled `DLRM`.
        parser: The parser with its vocabulary.
        paths: Labelled files, or one folder of records.
        batch_size: Rows in a step.
        quarantine: Where bad rows of files go. `None`: `Quarantine()`.
        split: Which split of records.

    Raises:
        ValueError: If no row is good, the ids of records mean other values, or the
            negatives of the split were sampled.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    quarantine = Quarantine() if quarantine is None else quarantine
    folder = find_records(paths)
    if folder is not None:
        manifest = Manifest.load(folder)
        if manifest.vocabulary_digest != parser.vocabulary.digest:
            raise ValueError(
                f"{folder} was not prepared with the vocabulary of this model: its ids "
                "mean other values. Prepare it with --vocabulary of the run."
            )
        if _bags(expander_of(manifest)) != _bags(parser.expander):
            raise ValueError(
                f"{folder} was prepared with other bags (--multi-hot) than this model "
                "was trained on."
            )
        if split == "train" and rate_of(manifest) < 1:
            raise ValueError(
                f"The negatives of the split 'train' of {folder} were sampled (at "
                f"negative_sampling_rate={rate_of(manifest):g}): its metrics would not "
                "be those of all rows. The other splits are whole."
            )
        dataset = records.read(folder, batch_size, split=split)
        num_rows = manifest.num_rows(split)
        shown = EvaluateProgress(batch_size, num_rows, lambda: num_rows)
    else:
        dataset = read(paths, parser, batch_size, quarantine=quarantine)
        estimate = estimate_rows(paths)
        shown = EvaluateProgress(batch_size, estimate, lambda: quarantine.num_rows)
    with shown, clear_errors(quarantine):
        results = model.evaluate(
            dataset, verbose=0, return_dict=True, callbacks=[shown]
        )
    if folder is None:
        num_rows = quarantine.num_rows - quarantine.num_bad
    if not num_rows:
        raise ValueError(no_rows(paths) if folder is None else f"{folder} is empty.")
    return {k: float(v) for k, v in results.items()} | {
        "num_rows": num_rows,
        "num_bad_rows": quarantine.num_bad,
    }


def _bags(expander):
    return None if expander is None else expander.get_config()


def export(
    folder: RunFolder,
    base_dir,
    version: int | None = None,
    max_hotness=1,
    candidate_features=(),
    table_dtype: str = "float32",
) -> str:
    """Exports the model of a run, with its parser, and returns the version's path."""
    parser = folder.load_parser()
    model = folder.load_model(parser)
    return tf_dlrm.export_saved_model(
        model,
        base_dir,
        version,
        preprocessor=parser,
        max_hotness=max_hotness,
        candidate_features=candidate_features,
        table_dtype=table_dtype,
    )


def _check_trained(history, num_good):
    if not num_good:
        raise ValueError("No row to train on is good; no model is kept.")
    losses = history.get("loss", [])
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise ValueError(
            "The training diverged: the loss is not finite. Try a smaller "
            "--learning-rate. No model is kept."
        )
