"""The callbacks for TensorBoard, by what they write."""

import resource
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from helpers import event_files, watched_training
from helpers.devices import on_devices
from helpers.small_model import make_data, make_model, tables_of
from sklearn.metrics import precision_recall_curve
from tensorboard.plugins import projector
from tensorboard.plugins.hparams import api_pb2

import tf_dlrm
from tf_dlrm import callbacks
from tf_dlrm.callbacks import tensorboard as logger_module
from tf_dlrm.callbacks.pr_curve import pr_points
from tf_dlrm.runtime import disk
from tf_dlrm.training.probes import RowMarks


@pytest.mark.breadth(0)
@pytest.mark.parametrize(
    "form, jit_compile", [("one_hot", False), ("ragged", False), ("one_hot", True)]
)
def test_on_one_device(form, jit_compile, tmp_path):
    watched_training.check(tmp_path, form=form, jit_compile=jit_compile)


@pytest.mark.integration
@on_devices(2)
def test_on_two_devices_with_sharded_tables(tmp_path):
    watched_training.check(tmp_path, num_devices=2, form="ragged")


def compiled(**options):
    model = make_model()
    options = {"jit_compile": False, "run_eagerly": True, **options}
    model.compile("sgd", metrics=tf_dlrm.metrics.click_metrics(), **options)
    return model


def dataset(batch_size=16):
    return tf.data.Dataset.from_tensor_slices(make_data()).batch(batch_size)


def fit(model, *watchers, data=None, **options):
    return model.fit(
        dataset() if data is None else data,
        callbacks=list(watchers),
        verbose=0,
        **options,
    )


@pytest.mark.integration
def test_nothing_that_is_watched_changes_the_training(tmp_path):
    weights = []
    for watchers in ([], [callbacks.GradientNormLogger, callbacks.TouchedRowLogger]):
        keras.utils.set_random_seed(1)
        model = compiled(run_eagerly=False)
        fit(model, *[watcher(tmp_path) for watcher in watchers], epochs=2)
        weights.append([*model.get_weights(), *tables_of(model)])
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.integration
def test_a_step_is_traced_anew_only_where_other_things_are_watched(tmp_path):
    model, functions = compiled(run_eagerly=False), []
    for kinds in ([], [callbacks.GradientNormLogger], [callbacks.GradientNormLogger]):
        fit(model, *[kind(tmp_path) for kind in kinds])
        functions.append(model.train_function)
    fit(model)
    assert functions[0] is not functions[1] is functions[2]
    assert model.train_function is not functions[2]


def test_a_failed_fit_leaves_nothing_behind(tmp_path):
    class FailError(Exception):
        pass

    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise FailError

    model = compiled()
    watchers = [
        callbacks.TouchedRowLogger(tmp_path),
        callbacks.HyperparameterLogger(tmp_path, {"rate": 0.1}),
        callbacks.StepProfiler(tmp_path, 1, 50),
    ]
    with pytest.raises(FailError):
        fit(model, *watchers, Fail())
    *_, status = event_files.hyperparameters(tmp_path)
    assert status == api_pb2.STATUS_FAILURE
    tf.profiler.experimental.start(str(tmp_path))  # would say that one is running
    tf.profiler.experimental.stop(save=False)
    assert model.use_probe(RowMarks)._marks is None


@pytest.mark.integration
def test_waiting_for_input_is_seen(tmp_path):
    def wait(seconds):
        def sleep(ids):
            time.sleep(seconds)
            return ids

        def on_batch(features, label):
            ids = features["sparse_features"]
            slow = tf.numpy_function(sleep, [ids], ids.dtype)
            slow.set_shape(ids.shape)
            return features | {"sparse_features": slow}, label

        options = tf.data.Options()  # without it, nothing is read beside the steps
        options.experimental_optimization.inject_prefetch = False
        return dataset(4).map(on_batch).with_options(options)

    model, waited, num_steps = compiled(run_eagerly=False), [], 16
    for i, seconds in enumerate((0.1, 0.0)):
        logger = callbacks.TensorBoardLogger(tmp_path / str(i), 4, every_steps=4)
        fit(model, logger, data=wait(seconds), epochs=2)
        found = event_files.read(tmp_path / str(i) / "train")
        share, rate = (  # of the second epoch, in which nothing is traced
            steps[max(steps)]
            for steps in (
                found["speed/input_wait_share"],
                found["speed/samples_per_second"],
            )
        )
        assert 0 <= share <= 1
        waited.append(share * num_steps * 4 / rate)
    assert waited[0] > 0.1 * num_steps * 0.99  # in seconds
    assert waited[1] < waited[0] / 2


def test_evaluations_within_an_epoch_are_no_time_of_training(tmp_path, monkeypatch):
    clock, written = [100.0], []
    monkeypatch.setattr(logger_module.time, "perf_counter", lambda: clock[0])
    logger = callbacks.TensorBoardLogger(tmp_path, 16, every_steps=2)
    logger.set_model(compiled())
    monkeypatch.setattr(logger, "_write", lambda part, values: written.append(values))
    logger.on_epoch_begin(0)
    for batch in range(2):
        logger.on_train_batch_begin(batch)
        clock[0] += 1
        logger.on_train_batch_end(batch, {})
        logger.on_test_begin()
        clock[0] += 50
        logger.on_test_batch_end(0)
        logger.on_test_end({})
    logger.on_epoch_end(0, {})
    rates = [values["speed/samples_per_second"] for values in written]
    np.testing.assert_allclose(rates, [16 / 50, 16, 16 / 50, 16])


def test_a_partial_batch_is_counted_by_its_rows(tmp_path, monkeypatch):
    """64 rows are two batches of 48; the clock moves a second at each look."""
    clock = iter(range(10_000))
    monkeypatch.setattr(logger_module.time, "perf_counter", lambda: next(clock) * 1.0)
    logger = callbacks.TensorBoardLogger(tmp_path, 48, every_steps=1)
    written = []
    monkeypatch.setattr(logger, "_write", lambda part, values: written.append(values))
    rows = dataset(64).unbatch().take(64).batch(48)
    fit(compiled(), logger, data=rows, validation_data=rows.take(1))
    rates = [values["speed/samples_per_second"] for values in written]
    assert rates == [48, 16, 48, 64 / 2]  # steps, validation, the epoch


@pytest.mark.parametrize("watcher, what", [
    (lambda path: callbacks.StepProfiler(path, 2, 3), "the profile"),
    (lambda path: callbacks.EmbeddingProjector(path, ("C1",), max_rows=1),
     "rows for the projector"),
], ids=["profile", "projector"])  # fmt: skip
def test_a_full_disk_is_one_line(watcher, what, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # of one row, less
    try:
        with pytest.raises(disk.WriteError) as error:
            fit(compiled(), watcher(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)
    assert f"{what} cannot be written: File too large. Raise" in str(error.value)


@pytest.mark.integration
def test_several_steps_an_execution_have_no_wait(tmp_path):
    model = compiled(run_eagerly=False, steps_per_execution=2)
    fit(model, callbacks.TensorBoardLogger(tmp_path, 16))
    found = event_files.read(tmp_path / "train")
    assert "speed/samples_per_second" in found
    assert "speed/input_wait_share" not in found


def test_precision_and_recall_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    label = (rng.random(5000) < 0.1).astype("float32")
    logit = rng.normal(-2.5 + 1.5 * label, 1.0)
    probability = (1 / (1 + np.exp(-logit))).astype("float32")
    metric = tf_dlrm.metrics.ClickAUC()
    metric.update_state(label[:, None], probability[:, None])
    points = pr_points(*metric.histogram(), 101)
    precision, recall, scores = precision_recall_curve(label, probability)
    compared = 0
    for i, threshold in enumerate(np.linspace(0, 1, 101)):
        if 0 < i < 100:  # a row in the threshold's own bucket may be on either side
            distance = np.abs(logit - np.log(threshold / (1 - threshold)))
            if distance.min() < 0.0006:
                continue
        place = np.searchsorted(scores, threshold)
        np.testing.assert_allclose(points[4][i], precision[place], rtol=1e-12)
        np.testing.assert_allclose(points[5][i], recall[place], rtol=1e-12)
        compared += 1
    assert compared > 40
    np.testing.assert_array_equal(points[0] + points[3], label.sum())
    np.testing.assert_array_equal(points[1] + points[2], (1 - label).sum())


@pytest.mark.integration
def test_pr_curves_need_the_metric():
    model = make_model()
    with pytest.raises(ValueError, match="compiled with tf_dlrm.metrics.ClickAUC"):
        model.compile("sgd", run_eagerly=True, jit_compile=False)
        fit(model, callbacks.PRCurveLogger("logs"), validation_data=dataset())


def test_hyperparameters_of_a_run(tmp_path):
    values = {"dims": (8, 4), "rate": 0.5, "limit": None, "shuffle": True, "seed": 3}
    watchers = [callbacks.HyperparameterLogger(tmp_path, values)]
    fit(compiled(), *watchers, validation_data=dataset())
    found, metrics, status = event_files.hyperparameters(tmp_path)
    assert found == {
        "dims": "8-4", "rate": 0.5, "limit": "none", "shuffle": True, "seed": 3
    }  # fmt: skip
    assert ("metrics/auc", "validation") in metrics
    assert ("speed/samples_per_second", "train") in metrics
    assert status == api_pb2.STATUS_SUCCESS
    with pytest.raises(ValueError, match="at least one hyperparameter"):
        callbacks.HyperparameterLogger(tmp_path, {})


def test_the_projector_names_rows(tmp_path):
    labels = {"C1": ["(rare)", "tab\there", "ü"]}
    model = compiled()
    fit(model, callbacks.EmbeddingProjector(tmp_path, ["C1", "C2"], labels))
    part = tmp_path / "train"
    config = projector.ProjectorConfig()
    text_format.Parse((part / "projector_config.pbtxt").read_text(), config)
    for entry, (name, size) in zip(config.embeddings, (("C1", 7), ("C2", 30))):
        vectors = np.loadtxt(part / entry.tensor_path)
        assert vectors.shape == tuple(entry.tensor_shape) == (size, 4)
        expected = model.embedding.get_table(name)
        np.testing.assert_allclose(vectors, expected, rtol=1e-5)
    lines = (part / config.embeddings[0].metadata_path).read_text("utf-8").split("\n")
    assert lines[:5] == ["value\tid", "(rare)\t0", "tab here\t1", "ü\t2", "3\t3"]
    lines = (part / config.embeddings[1].metadata_path).read_text().split("\n")
    assert lines == [str(i) for i in range(30)] + [""]
    with pytest.raises(ValueError, match="no table C9 .* Tables: C0, C1, C2"):
        fit(model, callbacks.EmbeddingProjector(tmp_path, ["C9"]))
    with pytest.raises(ValueError, match="at least one table name. Received: 'C1'"):
        callbacks.EmbeddingProjector(tmp_path, "C1")
    with pytest.raises(ValueError, match="`max_rows` must be"):
        callbacks.EmbeddingProjector(tmp_path, ["C1"], max_rows=0)


@pytest.mark.integration
def test_steps_are_profiled(tmp_path):
    model = compiled()
    fit(model, callbacks.StepProfiler(tmp_path, 2, 3))
    (trace,) = (tmp_path / "train" / "plugins" / "profile").glob("*/*.xplane.pb")
    content = trace.read_bytes()
    assert b"train" in content
    with pytest.warns(UserWarning, match="Steps 2 to 3 were not profiled"):
        fit(model, callbacks.StepProfiler(tmp_path, 2, 3))  # steps go on from 5
    for first, last in ((0, 3), (3, 2), (1, 5000)):
        with pytest.raises(ValueError, match="must be a range"):
            callbacks.StepProfiler(tmp_path, first, last)


def test_bad_arguments_are_refused(tmp_path):
    for kind in (lambda n: callbacks.TensorBoardLogger(tmp_path, 1, n),
                 lambda n: callbacks.GradientNormLogger(tmp_path, n)):  # fmt: skip
        with pytest.raises(ValueError, match="`every_steps` must be at least 1"):
            kind(0)
    other = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    other.compile("sgd", "mse")
    with pytest.raises(TypeError, match="requires a tf_dlrm.DLRM"):
        other.fit(
            np.ones((4, 1)),
            np.ones(4),
            verbose=0,
            callbacks=[callbacks.TouchedRowLogger(tmp_path)],
        )


def test_a_model_of_the_users_is_logged(tmp_path):
    other = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    other.compile("sgd", "mse", run_eagerly=True)
    logger = callbacks.TensorBoardLogger(tmp_path, 2, every_steps=1)
    other.fit(np.ones((4, 1)), np.ones(4), batch_size=2, verbose=0, callbacks=[logger])
    assert set(event_files.read(tmp_path / "train")["metrics/loss"]) == {1, 2}


def test_rows_are_read_by_number():
    embedding = make_model().embedding
    rows = embedding.get_rows("C1", [6, 0, 6])
    np.testing.assert_array_equal(rows, embedding.get_table("C1")[[6, 0, 6]])
    assert embedding.get_rows("C1", []).shape == (0, 4)
    for wrong in ([7], [-1, 2]):
        with pytest.raises(ValueError, match="'C1' has rows 0 to 6"):
            embedding.get_rows("C1", wrong)
    with pytest.raises(ValueError, match="no table 'C9'"):
        embedding.get_rows("C9", [0])


def test_marks_go_on_beyond_what_a_byte_counts():
    marks = RowMarks(make_model())
    for _ in range(255):
        marks.begin_epoch()
    marks._mark(np.array([[0, 0, 0]]))
    assert marks.count()["C1"] == (7, 1, 6)
    marks.begin_epoch()
    assert marks.count()["C1"] == (7, 0, 6)
    marks._mark(np.array([[0, 3, -1], [99, 0, 5]]))  # 99 is out of range
    assert marks.count() == {"C0": (11, 1, 10), "C1": (7, 2, 5), "C2": (30, 1, 28)}
