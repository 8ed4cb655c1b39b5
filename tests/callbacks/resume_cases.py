"""Runs in a process of its own: `python resume_cases.py NUM_KILLS FOLDER [CASE ...]`.

Children train the same run and are killed with SIGKILL, by turns after a random step
and in the middle of a save; one more gets a SIGTERM. The last one ends. All that is
left must be bit-equal to what a child leaves that was not killed.
"""

import math
import mmap
import os
import pathlib
import random
import signal
import sys
import time
import warnings

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras  # before the forks; no operation is run in this process
import numpy as np
import pandas
import tensorflow as tf

import tf_dlrm
from pipelines import criteo, records, runs
from pipelines.runs.config import RunConfig
from pipelines.vocabulary import HashVocabulary
from tf_dlrm import callbacks
from tf_dlrm.callbacks import ResumableTraining
from tf_dlrm.training.checkpoints import files as checkpoint_files

NUM_ROWS, BATCH_SIZE, EPOCHS, EVERY_STEPS = 1000, 50, 2, 3
STEPS = EPOCHS * NUM_ROWS // BATCH_SIZE
DAYS = 3
DAY_STEPS = DAYS * math.ceil(NUM_ROWS / DAYS / BATCH_SIZE)
# input, optimizer, steps per execution, arguments of fit, where the SIGTERM comes
CASES = {
    "records": ("records", "adagrad", 1, {}, "test"),
    "text": ("text", "adam", 1, {}, "batch"),
    "executions": ("text", "adagrad", 2, {}, "test"),
    "endless": ("endless", "adam", 2, {"steps_per_epoch": 20}, "batch"),
    "days": ("days", "adagrad", 1, {}, "batch"),
}
STEP, SAVING = slice(0, 8), slice(8, 16)  # of what children tell


def write_data(folder):
    rng = np.random.default_rng(0)
    schema = records.Schema(["I0", "I1"], ["C0", "C1"], vocabulary_sizes=[30, 20])
    labels = rng.integers(0, 2, NUM_ROWS)
    dense = rng.normal(size=(NUM_ROWS, 2))
    ids = np.stack([rng.integers(0, n, NUM_ROWS) for n in (30, 20)], 1)
    with records.Writer(folder / "records", schema) as writer:
        writer.append(labels, dense, ids)
    for part in range(DAYS):
        with open(folder / f"day_{part}", "w") as file:
            for _ in range(NUM_ROWS // DAYS + (part == 0)):
                numbers = [str(n) for n in rng.integers(0, 99, 13)]
                values = [f"{n:08x}" for n in rng.integers(0, 40, 26)]
                line = [str(rng.integers(0, 2)), *numbers, *values]
                file.write("\t".join(line) + "\n")


def day_files(folder):
    return [str(folder / f"day_{part}") for part in range(DAYS)]


def make_datasets(kind, folder):
    """To train on and to validate, and the spec."""
    if kind == "text":
        parser = criteo.Parser(HashVocabulary(40))
        files = day_files(folder)
        options = {"shuffle": True, "seed": 3, "shuffle_buffer": 128}
        train = criteo.read(files, parser, BATCH_SIZE, **options)
        return train, criteo.read(files[:1], parser, BATCH_SIZE), parser.spec(4)
    names, sizes = ("C0", "C1"), (30, 20)
    tables = [tf_dlrm.EmbeddingTable(n, s, 4) for n, s in zip(names, sizes)]
    options = {"shuffle": True, "seed": 3, "window_rows": 256}
    options["repeat"] = kind == "endless"
    train = records.read(folder / "records", BATCH_SIZE, **options)
    valid = records.read(folder / "records", BATCH_SIZE)
    return train, valid, tf_dlrm.FeatureSpec(("I0", "I1"), tables)


class Tell(keras.callbacks.Callback):
    """Tells the parent how far this child is."""

    def __init__(self, shared, where):
        super().__init__()
        self.shared, self.where = shared, where

    def on_train_batch_begin(self, batch, logs=None):
        if self.where == "batch":
            os.kill(os.getpid(), signal.SIGTERM)

    def on_test_batch_end(self, batch, logs=None):
        if self.where == "test":
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        self.shared[STEP] = step.to_bytes(8, "little")


def tell_saves(shared):
    write = checkpoint_files.CheckpointFolder.write

    def told(self, *arguments):
        shared[SAVING] = (1).to_bytes(8, "little")
        try:
            return write(self, *arguments)
        finally:
            shared[SAVING] = bytes(8)

    checkpoint_files.CheckpointFolder.write = told


def train(case, folder, out, shared, where=None):
    warnings.filterwarnings("ignore")
    tell_saves(shared)
    by_kind = train_days if CASES[case][0] == "days" else train_dataset
    model, history, rows = by_kind(case, folder, out, Tell(shared, where))
    found = {f"history:{k}": np.array(v) for k, v in history.items()}
    found |= {f"weight:{i}": w for i, w in enumerate(model.get_weights())}
    found |= {f"seed:{v.path}": v.numpy() for v in model.non_trainable_variables}
    found |= {f"dense:{v.path}": v.numpy() for v in model.optimizer.variables}
    state = model.embedding.get_state()
    found["iterations"] = np.array(state["iterations"])
    for table, slots in state["slots"].items():
        found |= {f"slot:{table}:{name}": v for name, v in slots.items()}
    found["predictions"] = model.predict(rows, verbose=0)
    np.savez(out / "result.npz", **found)


def train_days(case, folder, out, tell):
    """`tf-dlrm train --progressive --deterministic --resume`."""
    files = day_files(folder)
    config = RunConfig(
        embedding_dim=4,
        bottom_mlp_dims=(8, 4),
        top_mlp_dims=(8, 1),
        dropout=0.3,
        hash_buckets=40,
        batch_size=BATCH_SIZE,
        deterministic=True,
        jit_compile="off",
    )
    run, _ = runs.train(
        config,
        files,
        None,
        out,
        callbacks=[tell],
        resume=True,
        checkpoints={"every_steps": EVERY_STEPS},
        progressive=True,
    )
    parser = run.load_parser()
    rows = criteo.read(files[0], parser, BATCH_SIZE)
    return run.load_model(parser), pandas.read_csv(run.history_path), rows


def train_dataset(case, folder, out, tell):
    """Stock `fit` of a dataset with `ResumableTraining`."""
    kind, optimizer, steps_per_execution, options, _ = CASES[case]
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(5)
    dataset, valid, spec = make_datasets(kind, folder)
    top = tf_dlrm.layers.MLP((8, 1), dropout=0.3)
    model = tf_dlrm.DLRM(spec, (8, 4), top)
    metrics = tf_dlrm.metrics.click_metrics()
    model.compile(optimizer, metrics=metrics, steps_per_execution=steps_per_execution)
    checkpoint = ResumableTraining(out / "checkpoints", EVERY_STEPS, verbose=0)
    history = model.fit(
        checkpoint.resume(model, dataset),
        validation_data=valid,
        initial_epoch=checkpoint.initial_epoch,
        epochs=EPOCHS,
        callbacks=[
            callbacks.TensorBoardLogger(out / "logs", 1, every_steps=2),
            callbacks.GradientNormLogger(out / "logs", every_steps=2),
            callbacks.TouchedRowLogger(out / "logs"),
            callbacks.RowNormLogger(out / "logs"),
            callbacks.PRCurveLogger(out / "logs"),
            checkpoint,
            tell,
        ],
        verbose=0,
        **options,
    )
    return model, history.history, valid


def start(function, *arguments):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function(*arguments)
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(pid, expected=0):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == expected, code


def kill_somewhere(pid, shared, rng, in_save):
    """Kills a child after a random step, or within a save that begins after it.

    Returns:
        The step, or `None` if the child was faster.
    """
    before = int.from_bytes(shared[STEP], "little")
    target = before + rng.randrange(1, max(2, (STEPS - before) // 2))
    while True:
        step = int.from_bytes(shared[STEP], "little")
        if step >= target and (not in_save or any(shared[SAVING])):
            break
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0
            return None
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.03 if in_save else 0.01))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return step if os.WIFSIGNALED(status) else None


def check_case(case, num_kills, folder, rng):
    shared = mmap.mmap(-1, 16)
    whole, cut = folder / f"{case}_whole", folder / f"{case}_cut"
    whole.mkdir()
    cut.mkdir()
    finish(start(train, case, folder, whole, shared))
    steps = []
    while len(steps) < num_kills:
        names = checkpoint_files.CheckpointFolder(cut / "checkpoints").names()
        done = int(names[-1][5:14]) if names else 0
        shared[:] = done.to_bytes(8, "little") + bytes(8)
        pid = start(train, case, folder, cut, shared)
        step = kill_somewhere(pid, shared, rng, in_save=len(steps) % 2 == 1)
        if step is not None:
            steps.append(step)
        elif len(steps) < num_kills:  # it came to the end: from the start again
            compare(whole, cut, case)
            cut.rename(folder / f"{case}_{len(steps)}")
            cut.mkdir()
    finish(start(train, case, folder, cut, shared, CASES[case][-1]), 143)
    finish(start(train, case, folder, cut, shared))
    compare(whole, cut, case)
    print(f"{case}: killed at steps {steps}")


def compare(whole, cut, case):
    with np.load(whole / "result.npz") as a, np.load(cut / "result.npz") as b:
        assert sorted(a.files) == sorted(b.files), (a.files, b.files)
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], f"{case}: {name}")
        is_of_days = CASES[case][0] == "days"
        assert len(a["history:loss"]) == (DAYS if is_of_days else EPOCHS)
        assert "history:val_auc" in a.files
        assert a["iterations"] == (DAY_STEPS if is_of_days else STEPS)
    (cut / "result.npz").unlink()


def main():
    num_kills, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
    rng = random.Random(int(os.environ.get("SEED", "0")))
    write_data(folder)
    for case in sys.argv[3:] or CASES:
        check_case(case, num_kills, folder, rng)
    print("passed")


if __name__ == "__main__":
    main()
