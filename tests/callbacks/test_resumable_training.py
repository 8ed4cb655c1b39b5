"""A killed training resumes as if it had never been interrupted."""

import errno
import gc
import os
import resource
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import event_files
from helpers.cut_training import fit
from helpers.small_model import make_data, make_model, make_spec, tables_of

import tf_dlrm
from pipelines import records
from tf_dlrm.callbacks import ResumableTraining
from tf_dlrm.runtime.disk import WriteError
from tf_dlrm.training import NotFiniteError
from tf_dlrm.training.checkpoints.files import CheckpointFolder
from tf_dlrm.training.checkpoints.positions import ResumableInput

pytestmark = pytest.mark.integration

BATCH_SIZE, STEPS = 16, 4  # of 64 rows


def compiled(optimizer="adagrad"):
    """Runs eagerly: tracing would take longer than all the steps."""
    model = make_model()
    metrics = [tf_dlrm.metrics.ClickAUC()]
    model.compile(optimizer, metrics=metrics, run_eagerly=True, jit_compile=False)
    return model


@pytest.fixture
def folder(tmp_path):
    """Records of the rows of the small model."""
    features, label = make_data()
    schema = records.Schema(
        ["I0", "I1"], ["C0", "C1", "C2"], vocabulary_sizes=[11, 7, 30]
    )
    with records.Writer(tmp_path / "data", schema) as writer:
        writer.append(label, features["dense_features"], features["sparse_features"])
    return tmp_path


def read(folder, **options):
    options = {"shuffle": True, "seed": 1, **options}
    return records.read(folder / "data", BATCH_SIZE, **options)


def names(folder):
    return CheckpointFolder(folder / "c").names()


def make(folder, **options):
    options = {"every_steps": 1, "verbose": 0, **options}
    return ResumableTraining(folder / "c", **options)


def test_it_goes_on_where_it_was(folder, capsys):
    keras.utils.set_random_seed(7)
    whole = compiled("adam")
    expected = fit(ResumableTraining(folder / "whole"), whole, read(folder))
    assert "MB in " in capsys.readouterr().out
    seeds = []
    for cut_after in (3, 3, None):
        keras.utils.set_random_seed(7)
        model = compiled("adam")
        checkpoint = make(folder)
        history = fit(checkpoint, model, read(folder), cut_after=cut_after)
        seeds.append((checkpoint.initial_epoch, checkpoint.initial_batch))
    assert seeds == [(0, 0), (0, 3), (1, 2)]
    assert "epoch 2, batch 2." in capsys.readouterr().out
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)
    assert int(model.optimizer.iterations) == 2 * STEPS
    # It is bit-equal in deterministic mode, which is for a process of its own.
    for got, wanted in zip(tables_of(model), tables_of(whole)):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert checkpoint.num_saved == len(checkpoint.seconds) > 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_seed_of_the_order_is_kept_where_none_was_given(folder):
    seen = []
    for cut_after in (2, None):
        checkpoint, model = make(folder), compiled()
        dataset = read(folder, seed=None)
        fit(checkpoint, model, dataset, epochs=1, cut_after=cut_after)
        seen.append(checkpoint._seed)
    assert seen[0] == seen[1] != dataset.resumable_input.seed


@pytest.mark.parametrize(
    "file, fault",
    [
        ("model.weights.h5", "a byte"),
        ("model.weights.h5", "missing"),
        ("state.npz", "cut"),
        ("manifest.json", "a byte"),
    ],
)
def test_a_damaged_checkpoint_is_left_for_the_one_before(file, fault, folder, capsys):
    fit(make(folder), compiled(), read(folder), cut_after=3)
    assert names(folder) == ["step-000000002", "step-000000003"]
    path = folder / "c" / "step-000000003" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if fault == "a byte":
        path.write_bytes(content)
    elif fault == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    checkpoint = make(folder)
    checkpoint.resume(compiled(), read(folder))
    assert checkpoint.initial_batch == 2
    printed = capsys.readouterr().out
    assert "Damaged checkpoint" in printed and file in printed
    assert "Trying the one before it" in printed
    assert names(folder) == ["step-000000002"]
    assert (folder / "c" / "damaged-step-000000003").is_dir()


def read_all(folder):
    files = sorted(each for each in (folder / "c").rglob("*") if each.is_file())
    return {each: each.read_bytes() for each in files}


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("when", ["before", "weights", "state", "sync"])
def test_a_full_disk_is_an_error_and_touches_no_checkpoint(when, folder, monkeypatch):
    fit(make(folder), compiled(), read(folder), cut_after=2)
    before = read_all(folder)
    checkpoint, model = make(folder), compiled()
    dataset = checkpoint.resume(model, read(folder))
    if when == "before":
        usage = shutil.disk_usage(folder)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    elif when == "weights":
        monkeypatch.setattr(model, "save_weights", full_disk)
    else:
        where = np if when == "state" else os
        name = "savez" if when == "state" else "fsync"
        monkeypatch.setattr(where, name, full_disk if name == "fsync" else _full_savez)
    with pytest.raises(WriteError, match="are unchanged") as found:
        model.fit(dataset, callbacks=[checkpoint], verbose=0)
    assert found.value.errno == errno.ENOSPC
    assert read_all(folder) == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if when == "before":
        with pytest.raises(WriteError, match=r"needs .* MB in .* are free"):
            make(folder).resume(model, read(folder))


def _full_savez(*_, **__):
    full_disk()


def test_a_folder_that_cannot_be_written_is_an_error_at_once(folder):
    (folder / "c").write_text("a file")
    with pytest.raises(OSError, match="a checkpoint cannot be written: File exists"):
        make(folder).resume(compiled(), read(folder))
    assert (folder / "c").read_text() == "a file"


def test_what_a_killed_save_left_is_removed(folder):
    (folder / "c" / ".tmp-abc").mkdir(parents=True)
    make(folder).resume(compiled(), read(folder))
    assert [path.name for path in (folder / "c").iterdir()] == [".lock"]


def test_the_last_and_the_best_are_kept(folder):
    """Trained on one label and validated on the other, the first epoch is the best."""
    features, _ = make_data()
    data = tf.data.Dataset.from_tensor_slices((features, np.ones(64))).batch(16)
    valid = tf.data.Dataset.from_tensor_slices((features, np.zeros(64))).batch(16)
    model = compiled(keras.optimizers.SGD(0.5))
    checkpoint = make(folder, keep=2)
    history = fit(checkpoint, model, data, epochs=5, validation_data=valid)
    assert np.argmin(history["val_loss"]) == 0
    assert names(folder) == [f"step-{n:09d}" for n in (4, 16, 20)]
    assert checkpoint.best.name == "step-000000004"
    model.load_weights(checkpoint.best / "model.weights.h5")
    checkpoint.clear()
    assert names(folder) == ["step-000000004"]
    checkpoint.clear(keep_best=False)
    assert not (folder / "c").exists()


def test_a_larger_auc_is_better(folder):
    checkpoint = make(folder, monitor="val_auc", keep=9)
    fit(checkpoint, compiled(), read(folder), 3, validation_data=read(folder))
    found = CheckpointFolder(folder / "c")
    values = [
        found.peek(n)["monitored"] for n in found.names() if found.peek(n)["batch"] == 0
    ]
    best = max(value for _, value in values)
    assert found.peek(checkpoint.best.name)["monitored"] == ["val_auc", best]


def test_any_other_dataset_goes_on_at_its_epoch_and_says_so(folder, capsys):
    features, label = make_data()
    data = tf.data.Dataset.from_tensor_slices((features, label)).batch(16)
    keras.utils.set_random_seed(7)
    whole = compiled()
    whole.fit(data, epochs=3, verbose=0)
    keras.utils.set_random_seed(7)
    fit(make(folder), compiled(), data, epochs=3, cut_after=6)
    assert "cannot start in the middle of an epoch" in capsys.readouterr().out
    assert names(folder) == ["step-000000004"]
    checkpoint, model = make(folder), compiled()
    history = fit(checkpoint, model, data, epochs=3)
    assert checkpoint.initial_epoch == 1 and checkpoint.initial_batch == 0
    assert len(history["loss"]) == 3
    for got, wanted in zip(tables_of(model), tables_of(whole)):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert int(model.optimizer.iterations) == 12
    assert fit(make(folder), model, data, epochs=3) == history


def test_a_users_model_goes_on_at_its_epoch(folder, capsys):
    def make_plain():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("adam", "mse", run_eagerly=True)
        return model

    x = tf.data.Dataset.from_tensor_slices((np.ones((8, 2)), np.ones(8))).batch(4)
    model = make_plain()
    assert fit(make(folder), model, x, epochs=2, cut_after=3) is None
    again = make_plain()
    history = fit(make(folder), again, x, epochs=2)
    assert "cannot start in the middle of an epoch" in capsys.readouterr().out
    assert len(history["loss"]) == 2 and int(again.optimizer.iterations) == 4


def test_tensorboard_shows_the_stalls(folder):
    fit(make(folder, log_dir=folder / "logs"), compiled(), read(folder), epochs=1)
    seconds = event_files.read(folder / "logs" / "train")["speed/checkpoint_seconds"]
    assert list(seconds) == list(range(1, STEPS + 1))


MISTAKES = {
    "every_steps": ({"every_steps": 0}, "`every_steps` must be at least 1"),
    "keep": ({"keep": 0}, "`keep` must be at least 1"),
    "every_minutes": ({"every_minutes": 0}, "`every_minutes` must be positive"),
}


@pytest.mark.parametrize("options, message", MISTAKES.values(), ids=MISTAKES)
def test_arguments_out_of_range(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ResumableTraining(tmp_path, **options)


def test_fit_must_be_given_what_resume_returned(folder):
    model, data = compiled(), read(folder)
    fit(make(folder), model, data, epochs=1)
    checkpoint = make(folder)
    with pytest.raises(ValueError, match="the dataset that `ResumableTraining.resume"):
        model.fit(data, callbacks=[checkpoint], verbose=0)
    checkpoint.resume(model, data)
    with pytest.raises(ValueError, match="the dataset that `resume` returned"):
        model.fit(data, callbacks=[checkpoint], verbose=0)
    resumed = checkpoint.resume(model, data)
    with pytest.raises(ValueError, match="initial_epoch=checkpoint.initial_epoch"):
        model.fit(resumed, callbacks=[checkpoint], verbose=0)
    resumed = checkpoint.resume(model, data)
    with pytest.raises(ValueError, match="`steps_per_epoch` with a resumable dataset"):
        model.fit(resumed, callbacks=[checkpoint], verbose=0, steps_per_epoch=2)


def test_what_is_another_training_is_refused(folder):
    fit(make(folder), compiled("adagrad"), read(folder), epochs=1)
    with pytest.raises(ValueError, match="seed was 1, is 2"):
        make(folder).resume(compiled(), read(folder, seed=2))
    with pytest.raises(ValueError, match="middle of an epoch, but this one cannot"):
        make(folder).resume(compiled(), read(folder).map(lambda *batch: batch))
    with pytest.raises(ValueError, match="another model or optimizer"):
        make(folder).resume(compiled("adam"), read(folder))
    other = tf_dlrm.DLRM(make_spec((11, 7, 31)), (8, 4), (8, 1))
    other.compile("adagrad")
    with pytest.raises(ValueError, match="another model or optimizer"):
        make(folder).resume(other, read(folder))


def test_another_number_of_steps_is_refused(folder):
    endless = read(folder, repeat=True)
    fit(make(folder), compiled(), endless, cut_after=3, steps_per_epoch=5)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be the same"):
        fit(make(folder), compiled(), endless, steps_per_epoch=4)


def test_nothing_is_saved_of_a_diverged_training(folder):
    checkpoint, model = make(folder), compiled()
    model.top_mlp.dense_layers[0].kernel.assign(np.full((10, 8), np.nan))
    with pytest.raises(NotFiniteError):
        fit(checkpoint, model, read(folder))
    assert names(folder) == []


@pytest.mark.parametrize("is_resumable", [False, True])
@pytest.mark.parametrize("weights", [
    {}, "balanced", [1.0, 2.0], {"0": 1.0}, {1: 1.0, 2: 3.0}, {0: -1.0}, {1: np.nan},
    {0: "1"}, {0: None},
], ids=str)  # fmt: skip
def test_class_weights_of_other_forms_are_refused(folder, weights, is_resumable):
    model, dataset = compiled(), read(folder)
    if not is_resumable:
        dataset = dataset.map(lambda x, y: (x, y))
    with pytest.raises(ValueError, match="`class_weight` must be a dict such as"):
        model.fit(dataset, class_weight=weights, verbose=0)


@pytest.mark.slow
def test_class_weights_go_with_a_resume(folder, tmp_path):
    """Cut and resumed, it ends bit-equal; the weights are those of Keras."""
    weights = {0: 0.5, 1: 3.0}
    whole, cut = compiled(), compiled()
    cut.set_weights(whole.get_weights())
    expected = compiled()
    expected.set_weights(whole.get_weights())
    fit(
        tf_dlrm.callbacks.ResumableTraining(tmp_path / "a", every_steps=1),
        whole,
        read(folder, shuffle=False),
        class_weight=weights,
    )
    for cut_after in (3, None):
        checkpoint = tf_dlrm.callbacks.ResumableTraining(tmp_path / "b", every_steps=1)
        fit(
            checkpoint,
            cut,
            read(folder, shuffle=False),
            cut_after=cut_after,
            class_weight=weights,
        )
    plain = read(folder, shuffle=False).map(lambda x, y: (x, y))
    expected.fit(plain, epochs=2, verbose=0, class_weight=weights)
    for a, b, c in zip(whole.get_weights(), cut.get_weights(), expected.get_weights()):
        np.testing.assert_array_equal(b, a)
        np.testing.assert_allclose(a, c, atol=1e-6)


def test_another_content_of_the_same_size_is_refused(folder):
    fit(make(folder), compiled(), read(folder), epochs=1, cut_after=2)
    path = folder / "data" / "train" / "part-00000_labels.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = "another dataset: part-00000_labels.npy has different content"
    with pytest.raises(ValueError, match=message):
        make(folder).resume(compiled(), read(folder))


def test_a_checkpoint_of_before_contents_were_noted_goes_on(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ResumableInput, "describe", lambda self: self.description)
        fit(make(folder), compiled(), read(folder), epochs=1, cut_after=2)
    checkpoint = make(folder)
    checkpoint.resume(compiled(), read(folder))
    assert checkpoint.initial_batch == 2


def test_hdf5_on_a_full_disk_is_an_ordinary_error(folder, capfd):
    """Alone it prints a traceback for each object, and crashes at the end."""
    checkpoint, model = make(folder), compiled()
    dataset = checkpoint.resume(model, read(folder))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(WriteError, match="checkpoint cannot be written: File too"):
            model.fit(dataset, callbacks=[checkpoint], verbose=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    gc.collect()
    assert "h5py" not in capfd.readouterr().err
    assert names(folder) == [] and not list((folder / "c").glob(".tmp*"))
