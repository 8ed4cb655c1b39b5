"""Inputs and files that cannot be right are refused in one clear sentence."""

import resource

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import tf_dlrm
from tf_dlrm.runtime import disk

IDS = np.tile([[1, 2]], (8, 1))
DENSE = np.ones((8, 2), np.float32)
LABEL = np.array([0, 1] * 4, np.float32)


def make_model(initializer=None):
    tables = [
        tf_dlrm.EmbeddingTable("C1", 10, 4, initializer=initializer),
        tf_dlrm.EmbeddingTable("C2", 5, 4),
    ]
    model = tf_dlrm.DLRM(tf_dlrm.FeatureSpec(("I1", "I2"), tables), (4,), (1,))
    model.compile("sgd", loss="binary_crossentropy", run_eagerly=True)
    return model


def fit(dense=DENSE, ids=IDS, label=LABEL):
    features = {"dense_features": dense, "sparse_features": ids}
    make_model().fit(features, label, batch_size=4, verbose=0)


@pytest.mark.parametrize(
    "wrap",
    [lambda model: model, lambda model: keras.Sequential([model])],
    ids=["model", "within a model"],
)
def test_saving_by_keras_function_refuses_h5(wrap, tmp_path):
    with pytest.raises(ValueError, match="legacy"):
        keras.saving.save_model(wrap(make_model()), tmp_path / "m.h5")


@pytest.mark.parametrize("num_bytes", [0, 4096, 12_000])
@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5"])
def test_a_full_disk_is_one_line_and_keeps_the_old_file(name, num_bytes, tmp_path):
    model, before = make_model(), resource.getrlimit(resource.RLIMIT_FSIZE)
    save = model.save if name == "m.keras" else model.save_weights
    (tmp_path / name).write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        with pytest.raises(disk.WriteError, match=f"{name}: .* cannot be written") as e:
            save(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"The existing {name} is unchanged. Raise" in str(e.value)
    assert (tmp_path / name).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    save(tmp_path / name)
    assert keras.saving.load_weights(model, tmp_path / name) is None


def test_logs_on_a_full_disk_are_one_line(tmp_path):
    model, before = make_model(), resource.getrlimit(resource.RLIMIT_FSIZE)
    logger = tf_dlrm.callbacks.TensorBoardLogger(tmp_path / "logs", batch_size=1)
    features = {"dense_features": DENSE, "sparse_features": IDS}
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        message = f"{tmp_path}/logs/train: logs for TensorBoard cannot be written: File"
        with pytest.raises(disk.WriteError, match=message) as error:
            model.fit(features, LABEL, batch_size=1, callbacks=[logger], verbose=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value) and str(error.value).endswith("start again.")


@pytest.mark.parametrize("part, name", [
    ({"label": LABEL.astype(str)}, "[Ll]abel"),
    ({"label": LABEL.astype(object)}, "[Ll]abel"),
    ({"ids": IDS.astype(str)}, "sparse_features"),
    ({"dense": DENSE.astype(str)}, "dense_features"),
], ids=["label", "label of objects", "ids", "dense"])  # fmt: skip
def test_strings_are_refused_by_name(part, name):
    with pytest.raises((TypeError, ValueError), match=name):
        fit(**part)


def test_nested_lists_are_refused_by_name():
    features = {"dense_features": [[1.0, 2.0]], "sparse_features": [[[1, 2], [3]]]}
    with pytest.raises((TypeError, ValueError), match="features"):
        make_model()(features)


ONE = {"dense_features": DENSE[0], "sparse_features": IDS[0]}
COLUMNS = {"I1": [1.0], "I2": [2.0], "C1": [1], "C2": [2]}


@pytest.mark.parametrize("features, label, match", [
    (ONE, LABEL[:1], "'dense_features' has no batch dimension"),
    (dict(COLUMNS, I1=np.float32(1)), LABEL[:1], "'I1' must be an array|no batch"),
    (COLUMNS, LABEL[:1], "'I1' must be an array .* Received: list"),
    ({"dense_features": DENSE, "sparse_features": IDS}, [1.0] * 8, "must be one array"),
    ({"dense_features": DENSE, "sparse_features": IDS}, LABEL[0], "must be one array"),
    ({"dense_features": DENSE, "sparse_features": IDS},
     LABEL.astype("datetime64[s]"), "'the labels' must hold numbers"),
], ids=["row", "scalar", "lists", "list label", "one label", "times"])  # fmt: skip
def test_what_keras_would_not_take_is_refused_by_name(features, label, match):
    with pytest.raises((TypeError, ValueError), match=match) as error:
        make_model().fit(features, label, verbose=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ids, label, match", [
    (IDS + 90, LABEL, "Id out of range: feature C1"),
    (IDS, 2 * LABEL - 1, "Labels must lie in"),
], ids=["ids", "labels"])  # fmt: skip
def test_values_out_of_range_are_one_line(ids, label, match):
    model = make_model()
    model.compile("sgd", jit_compile=False)
    features = {"dense_features": DENSE, "sparse_features": ids}
    with pytest.raises(tf.errors.InvalidArgumentError, match=match) as error:
        model.fit(features, label, verbose=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("call", ["fit", "evaluate", "train_on_batch"])
def test_negative_weights_are_refused_where_the_loss_has_no_minimum(call, jit_compile):
    model, weight = make_model(), np.where(LABEL > 0, 1.0, -0.5)
    model.compile("sgd", jit_compile=jit_compile)
    arguments = {"dense_features": DENSE, "sparse_features": IDS}, LABEL
    before = model.get_weights()
    message = "Sample weights must not be negative.* Received one of: -0.5"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        getattr(model, call)(*arguments, sample_weight=weight)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    getattr(model, call)(*arguments, sample_weight=np.maximum(weight, 0.0))
    model.compile("sgd", "mse", jit_compile=jit_compile)  # the loss is the user's
    getattr(model, call)(*arguments, sample_weight=weight)


@pytest.mark.parametrize("name", ["sparse_features", "C1"])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bool", "complex64"])
def test_ids_of_other_types_are_refused_by_name_and_type(name, dtype):
    features = {"dense_features": DENSE, "sparse_features": IDS.astype(dtype)}
    if name == "C1":
        features = {"I1": DENSE[:, 0], "I2": DENSE[:, 1], "C2": IDS[:, 1]}
        features["C1"] = IDS[:, 0].astype(dtype)
    message = f"'{name}' must hold integer ids. Received: dtype {dtype}"
    model = make_model()
    for call in (model.predict, lambda x: model.fit(x, LABEL)):
        with pytest.raises(TypeError, match=message) as error:
            call(features)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("initializer", [
    "glorot_unifrom", {"class_name": "Nope", "config": {}}, {"x": 1}, 3, b"zeros",
    {"class_name": "GivenRows", "config": {}},
], ids=str)  # fmt: skip
def test_an_unknown_initializer_names_the_table(initializer):
    with pytest.raises(ValueError, match="`initializer` of table 'C1' must be a Keras"):
        make_model(initializer)


@pytest.mark.parametrize(
    "argument", ["activation", "final_activation", "kernel_regularizer"]
)
def test_a_lambda_that_no_file_could_store_is_refused(argument):
    with pytest.raises(TypeError, match=f"`{argument}` must not be a lambda"):
        tf_dlrm.layers.MLP((4,), **{argument: lambda x: x})


def test_a_lambda_of_an_interaction_is_refused():
    with pytest.raises(TypeError, match="`kernel_regularizer` must not be a lambda"):
        tf_dlrm.layers.CrossInteraction(kernel_regularizer=lambda x: x)


def test_an_interaction_of_equal_widths_names_those_it_gets():
    tables = [tf_dlrm.EmbeddingTable(f"C{width}", 10, width) for width in (4, 2)]
    spec = tf_dlrm.FeatureSpec(("I1",), tables)
    message = r"Add, cannot take vectors of different widths: \[4, 4, 2\]. Use `feat"
    with pytest.raises(ValueError, match=message):
        tf_dlrm.DLRM(spec, (4,), (1,), interaction=keras.layers.Add())
    tf_dlrm.DLRM(
        spec, (4,), (1,), interaction=keras.layers.Add(), feature_mlp_dims={"C2": (4,)}
    )


def test_boolean_ids_are_refused_for_what_they_are():
    with pytest.raises(TypeError) as error:
        fit(ids=IDS.astype(bool))
    assert "float32 changes" not in str(error.value)


@pytest.mark.parametrize("rows", [
    np.array([[1], [1, 2]], object), pd.DataFrame([["x"] * 4] * 10),
    np.full((10, 4), np.nan),
], ids=["uneven", "frame", "nan"])  # fmt: skip
def test_initial_rows_that_are_none_name_the_table(rows):
    with pytest.raises((TypeError, ValueError), match="'C1'"):
        make_model(rows)


def test_a_save_goes_on_beside_what_a_killed_one_left(tmp_path):
    """A container starts again with the name and the process id of the last."""
    left = tmp_path / disk.temporary_name("m.keras")
    left.mkdir()
    make_model().save(tmp_path / "m.keras")
    assert keras.models.load_model(tmp_path / "m.keras").built


def test_weights_of_a_layer_that_names_no_tables_are_not_lost():
    class Plain(tf_dlrm.layers.EmbeddingLayer):
        def __init__(self):
            super().__init__()
            self.rows = self.add_weight(shape=(10, 4), initializer="ones")
            self.built = True

        def call(self, ids, weights=None):
            return keras.ops.take(self.rows, ids, axis=0)

        def build_optimizer(self, optimizer):
            pass

        def apply_gradients(self, *arguments, **options):
            pass

        def get_table(self, name):
            return self.rows.numpy()

        def set_table(self, name, rows):
            self.rows.assign(rows)

        def get_state(self, tables=None):
            return {}

        def set_state(self, state):
            pass

    tables = [tf_dlrm.EmbeddingTable("C1", 10, 4), tf_dlrm.EmbeddingTable("C2", 10, 4)]
    spec = tf_dlrm.FeatureSpec(("I1", "I2"), tables)
    model = tf_dlrm.DLRM(spec, (4,), (1,), embedding=Plain())
    weights = model.get_weights()
    assert model.count_params() == sum(each.size for each in weights)
    model.embedding.rows.assign(np.zeros((10, 4)))
    model.set_weights(weights)
    np.testing.assert_array_equal(model.embedding.rows.numpy(), np.ones((10, 4)))


def test_a_model_is_not_saved_into_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="the folder .* does not exist. Create it"):
        make_model().save(tmp_path / "absent" / "m.keras")
