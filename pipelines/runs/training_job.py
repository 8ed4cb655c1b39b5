"""The whole job as functions: vocabulary, training, evaluation, export of a run."""

import contextlib
import dataclasses
import math
import os
import time

import keras
import tensorflow as tf

from pipelines.criteo import Parser
from pipelines.files import Paths
from pipelines.log_data import describe_data, find_records
from pipelines.pipeline_errors import clear_errors, explaining_logs
from pipelines.progress.fit import FitProgress
from pipelines.runs import build_model, defaults, resuming, saving, stopping
from pipelines.runs.config import RunConfig
from pipelines.runs.convergence import LossCurve
from pipelines.runs.data import LogData, RecordData
from pipelines.runs.folder import RunFolder
from pipelines.runs.previous_run import EarlierRun
from pipelines.runs.progressive import DayData
from pipelines.runs.watching import Watching
from pipelines.whole_files import disk, locks, write_text
from tf_dlrm.callbacks import ResumableTraining


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
    progressive: bool = False,
    warm_start=None,
) -> tuple[RunFolder, dict]:
    """Trains a run from files of Criteo lines into a folder of its own.

    Nobody else can write to the folder meanwhile: `tf_dlrm.runtime.locks.locked` says
    where that is safe.

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
        checkpoints: Arguments of `tf_dlrm.callbacks.ResumableTraining`, such as
            `{"every_steps": 1000}`. They are removed when the run is done.
        watching: What is written for TensorBoard; `None`: `Watching()`.
        progressive: Whether each of `train_paths` is a day, on which the model is
            evaluated before it is trained on it.
        warm_start: Folder of a finished run to go on from, with what its model has
            learned of the values that the vocabulary here has, too.

    Returns:
        The folder and the results: metrics of the saved model, best and last model,
        rows, seconds.

    Raises:
        FileExistsError: If `out` holds a finished run, or one that can go on.
        OSError: If a checkpoint cannot be written.
        SystemExit: With code 143, after SIGTERM and a checkpoint.
        ValueError: If the run to go on with is another, no row is good, the
            training diverged (no model is kept), or another process writes to `out`.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    arguments = dict(locals())
    kept = "Checkpoints that are there are as they were."
    with (
        disk.advising(kept, "resume the run"),
        locks.locked(out),
        explaining_logs(RunFolder(out).log_dir),
    ):
        return _train(**arguments)


def _train(
    config,
    train_paths,
    valid_paths,
    out,
    vocabulary,
    callbacks,
    origin,
    strategy,
    placement,
    resume,
    checkpoints,
    watching,
    progressive,
    warm_start,
):
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    watching = watching or Watching()
    is_prepared = find_records(train_paths) is not None
    stopping.check(config, bool(valid_paths) or progressive or is_prepared)
    folder = RunFolder(out)
    goes_on = resume and folder.is_described and not folder.is_finished
    options = {"progressive": progressive}
    if warm_start is not None:
        options["warm_start"] = os.path.abspath(warm_start)
    if goes_on:
        given = describe_data(train_paths, valid_paths) | options
        resuming.check_same(folder, config, given, vocabulary)
        vocabulary, config = folder.read_vocabulary(), folder.read_config()
    stored = folder.read_data() if goes_on else {}
    earlier = None
    if warm_start is not None:
        earlier = EarlierRun(warm_start, config, stored.get("first_step"))
    if not goes_on:
        folder.start()
    data = _open_data(
        config, train_paths, valid_paths, folder, vocabulary, options, stored
    )
    if progressive:
        config = dataclasses.replace(config, epochs=1)
    data.config = defaults.complete(config, data.num_rows)
    chosen = defaults.describe(config, data.config, data.num_rows)
    if chosen:
        print(chosen, flush=True)
    config = data.config
    row_maps = None
    if earlier and not goes_on:
        row_maps = earlier.row_maps(data.vocabulary)  # or it says why there are none
    first_step = earlier.iterations if earlier else 0
    keras.utils.set_random_seed(config.seed)
    parser = Parser(data.vocabulary, expander=data.expander)
    num_steps = sum(math.ceil(n / config.batch_size) for n in data.rows_by_epoch)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        spec = parser.spec(config.embedding_dim)
        model = build_model.make_model(
            config, spec, placement, data.negative_sampling_rate
        )
        build_model.compile_model(model, config, num_steps, first_step)
    _write_plan(model, folder)
    # Losses on different days say nothing of which model is best.
    monitor = None if progressive else f"val_{config.monitor}"
    checkpoint = _make_checkpoint(folder, monitor, checkpoints or {})
    shown = FitProgress(
        config.batch_size,
        data.rows_by_epoch,
        lambda: _saved(checkpoint),
        data.count_read,
    )
    valid_dataset = data.valid_dataset()
    stopping.check(config, valid_dataset is not None)
    watchers = watching.callbacks(folder.log_dir, config, data.vocabulary)
    early = stopping.Stopping(config, valid_dataset, [*watchers[:1], checkpoint])
    curve = LossCurve(num_steps)
    checkpoint.carry(**early.states, loss_curve=curve)
    start = time.perf_counter()
    train_dataset = checkpoint.resume(model, data.train_dataset())
    if earlier and not (checkpoint.initial_epoch or checkpoint.initial_batch):
        row_maps = row_maps or earlier.row_maps(data.vocabulary)
        report = earlier.start(model, row_maps)
        options |= {"first_step": first_step, "warm_started": report.describe()}
    if not goes_on:
        options["rows_by_epoch"] = data.rows_by_epoch
        sampled = {"negative_sampling_rate": data.negative_sampling_rate}
        origin = {**data.origin, **sampled, **(origin or {}), **options}
        folder.describe(config, origin, data.vocabulary, data.expander)
    shown.first_batch = checkpoint.initial_batch
    num_epochs = len(data.rows_by_epoch)
    if early.stop.reason is not None:  # it was to end where it was cut
        num_epochs = checkpoint.initial_epoch
    with shown, clear_errors(*data.quarantines):
        history = model.fit(
            train_dataset,
            validation_data=valid_dataset,
            validation_freq=data.validation_freq,
            initial_epoch=checkpoint.initial_epoch,
            epochs=num_epochs,
            verbose=0,
            shuffle=False,
            callbacks=[
                shown,
                *data.callbacks,
                *watchers,
                *early.callbacks,
                curve,
                *callbacks,
                checkpoint,
            ],
        ).history
        if checkpoint.initial_epoch >= num_epochs:
            for _ in data.train_dataset():  # all was trained on, but not counted here
                pass
    counts = data.count(history)
    try:
        _check_trained(history, counts["num_rows"])
    except ValueError:
        checkpoint.clear(keep_best=False)
        raise
    results = _describe(counts, shown, early, checkpoint)
    results["num_skipped_batches"] = model.num_skipped_batches
    last, epoch = _last_results(history), len(history["loss"])
    results |= saving.save_models(model, folder, config, checkpoint, last, epoch)
    results["not_converged"] = _judge_convergence(curve, results, config)
    results["seconds"] = time.perf_counter() - start
    if progressive:
        results["days"] = data.report(history)
    folder.write_results(history, results)
    checkpoint.clear(keep_best=False)
    return folder, results


def _write_plan(model, folder):
    plan = getattr(model.embedding, "plan", None)
    if plan is not None:
        print(plan, flush=True)
        write_text(folder.plan_path, plan.to_json() + "\n")


def _make_checkpoint(folder, monitor, arguments):
    options = {"monitor": monitor, "log_dir": folder.log_dir, "verbose": 0}
    checkpoint = ResumableTraining(folder.checkpoint_dir, **options | arguments)
    checkpoint.how_to_go_on = "give the same command with --resume."
    return checkpoint


def _judge_convergence(curve, results, config):
    """What `LossCurve.describe` says, where no validation says otherwise."""
    best = results["best"]
    if best is None and config.epochs > 1:  # rows seen again have a lower loss
        return None
    if best is not None:
        is_last = best["step"] == results["last"]["step"]
        if not is_last or (config.target_auc or math.inf) <= best[config.monitor]:
            return None
    return curve.describe()


def _last_results(history):
    return {
        name: values[-1]
        for name, values in history.items()
        if not name.removeprefix("val_").startswith("num_")
    }


def _describe(counts, shown, early, checkpoint):
    """The results of a training but for those of its models."""
    seconds = shown.seconds - early.seconds
    return {
        **counts,
        "training_seconds": seconds,
        "validation_seconds": shown.validation_seconds + early.seconds,
        "samples_per_second": shown.num_trained / seconds if seconds > 0 else 0.0,
        "checkpoint_seconds": checkpoint.seconds,
        **early.describe(),
    }


def _open_data(config, train_paths, valid_paths, folder, vocabulary, options, stored):
    """What is trained on; what a run to go on with has counted is not counted again."""
    rows = stored.get("rows_by_epoch")
    arguments = (config, train_paths, valid_paths, folder, vocabulary)
    if options["progressive"]:
        return DayData(*arguments, rows)
    found = find_records(train_paths)
    if found is None:
        return LogData(*arguments, rows[0] if rows else None)
    if valid_paths or (vocabulary is not None and not stored):
        raise ValueError(
            f"{found} holds records with a vocabulary and validation rows of their "
            "own: leave `valid` and `vocabulary` out."
        )
    return RecordData(config, found)


def _saved(checkpoint):
    if not checkpoint.seconds:
        return ""
    return f"{checkpoint.num_saved} saved, last in {checkpoint.seconds[-1]:.2f} s"


def _check_trained(history, num_good):
    if not num_good:
        raise ValueError("No row to train on is good; no model is kept.")
    losses = history.get("loss", [])
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise ValueError(
            "The training diverged: the loss is not finite. Try a smaller "
            "--learning-rate. No model is kept."
        )
