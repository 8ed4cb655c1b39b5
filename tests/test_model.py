"""DLRM as a Keras user meets it: inputs, fit, callbacks, saving, errors."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec, layers, metrics, optimizers

NUM_ROWS = 64


def make_spec(sizes=(11, 7, 30), width=4):
    tables = [EmbeddingTable(f"C{i}", size, width) for i, size in enumerate(sizes)]
    return FeatureSpec(("I0", "I1"), tables)


def make_model(**kwargs):
    return tf_dlrm.DLRM(make_spec(), (8, 4), (8, 1), **kwargs)


def make_data(sizes=(11, 7, 30)):
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, size, NUM_ROWS) for size in sizes], axis=1)
    dense = rng.normal(size=(NUM_ROWS, 2)).astype("float32")
    label = (rng.random(NUM_ROWS) < 0.5).astype("float32")
    return {"dense_features": dense, "sparse_features": ids}, label


def compiled(optimizer="adagrad", **kwargs):
    model = make_model()
    model.compile(optimizer, metrics=metrics.click_metrics(), **kwargs)
    return model


def predictions(model):
    return model.predict(make_data()[0], verbose=0)


def tables_of(model):
    return [model.embedding.get_table(table.name) for table in model.spec.tables]


# Inputs


def test_numpy_dataset_and_columns_train_alike():
    features, label = make_data()
    columns = {f"C{i}": features["sparse_features"][:, i] for i in range(3)}
    columns |= {f"I{i}": features["dense_features"][:, i] for i in range(2)}
    frame = pd.DataFrame(columns)
    options = {"verbose": 0, "shuffle": False, "batch_size": 16}
    results = []
    for data in (
        (features, label),
        (features, label[:, None]),
        (columns, label),
        (dict(frame), pd.Series(label)),
    ):
        keras.utils.set_random_seed(1)
        model = compiled("sgd")
        model.fit(*data, **options)
        results.append(tables_of(model))
    keras.utils.set_random_seed(1)
    model = compiled("sgd")
    dataset = tf.data.Dataset.from_tensor_slices((features, label)).batch(16)
    model.fit(dataset, verbose=0, shuffle=False)
    results.append(tables_of(model))
    for result in results[1:]:
        for got, expected in zip(result, results[0]):
            np.testing.assert_array_equal(got, expected)


def test_large_ids_arrive_exactly():
    """Above 2^24 float32 has no odd numbers."""
    size = (1 << 24) + 2
    spec = FeatureSpec(("I0",), [EmbeddingTable("C0", size, 1, initializer="zeros")])
    model = tf_dlrm.DLRM(spec, (1,), (1,), interaction="cat")
    model.compile("sgd")
    ids = np.full((2, 1), size - 1)
    for features in (
        {"dense_features": np.ones((2, 1)), "sparse_features": ids},
        {"I0": np.ones(2), "C0": ids[:, 0]},
        dict(pd.DataFrame({"I0": [1.0, 1.0], "C0": ids[:, 0]})),
    ):
        model.embedding.set_table("C0", np.zeros((size, 1), "float32"))
        model.fit(features, np.ones(2), verbose=0)
        assert np.flatnonzero(model.embedding.get_table("C0")[:, 0]).tolist() == [
            size - 1
        ]


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "call"])
def test_a_data_frame_is_refused_with_the_way_to_go(method):
    model = compiled()
    frame = pd.DataFrame({"I0": [1.0]})
    arguments = [] if method in ("predict", "call") else [np.ones(1)]
    function = model if method == "call" else getattr(model, method)
    with pytest.raises((TypeError, ValueError), match="pipelines.from_dataframe"):
        function(frame, *arguments)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda f: f.pop("dense_features"), ValueError, "Missing: .'dense_features'."),
        (
            lambda f: f.update(other=np.ones(NUM_ROWS)),
            ValueError,
            "not known: .'other'.",
        ),
        (
            lambda f: f.update(dense_features=np.ones((NUM_ROWS, 3))),
            ValueError,
            r"'dense_features' must be \(batch, 2\)",
        ),
        (
            lambda f: f.update(sparse_features=np.ones((NUM_ROWS, 3))),
            TypeError,
            "above 2\\^24",
        ),
    ],
)
def test_wrong_features_are_named(change, error, message):
    features, _ = make_data()
    change(features)
    with pytest.raises(error, match=message):
        make_model()(features)


def test_wrong_columns_and_labels_are_named():
    model = compiled()
    with pytest.raises(ValueError, match="Features are missing: I1, C1"):
        model({"I0": np.ones(2), "C0": np.ones(2, int), "C2": np.ones(2, int)})
    with pytest.raises(TypeError, match="must be a dict"):
        model(np.ones((2, 5)))
    features, label = make_data()
    with pytest.raises(ValueError, match="Labels are needed"):
        model.train_on_batch(features)
    with pytest.raises(ValueError, match="Labels must be"):
        model.train_on_batch(features, np.ones((NUM_ROWS, 2)))


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict", "train_on_batch"])
@pytest.mark.parametrize("jit", [False, True], ids=["plain", "jit"])
def test_an_id_out_of_range_raises_and_changes_nothing(call, jit):
    model = compiled(jit_compile=jit)
    features, label = make_data()
    features["sparse_features"][5, 1] = 7
    before = tables_of(model)
    arguments = {} if call == "train_on_batch" else {"verbose": 0}
    if call == "fit":
        arguments["batch_size"] = NUM_ROWS
    labels = [] if call == "predict" else [label]
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="table C1 received id 7, .*size 7"
    ):
        getattr(model, call)(features, *labels, **arguments)
    for got, expected in zip(tables_of(model), before):
        np.testing.assert_array_equal(got, expected)
    assert int(model.embedding.iterations) == int(model.optimizer.iterations) == 0


# Training


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_fits_what_it_sees(optimizer):
    keras_optimizer = keras.optimizers.get(optimizer)
    keras_optimizer.learning_rate = {"sgd": 1.0, "adagrad": 0.2, "adam": 0.02}[
        optimizer
    ]
    model = compiled(keras_optimizer)
    features, label = make_data()
    history = model.fit(
        features, label, epochs=60, validation_data=(features, label), verbose=0
    ).history
    assert history["val_log_loss"][-1] < 0.3 < history["log_loss"][0]
    assert history["val_auc"][-1] > 0.95
    result = model.evaluate(features, label, verbose=0, return_dict=True)
    assert result["log_loss"] == pytest.approx(history["val_log_loss"][-1], abs=1e-6)
    assert result["loss"] == pytest.approx(result["log_loss"], abs=1e-6)


def test_learning_rate_callbacks_move_both_parts():
    model = compiled(keras.optimizers.SGD(0.5))
    features, label = make_data()
    stop = keras.callbacks.LearningRateScheduler(
        lambda epoch: 0.5 if epoch == 0 else 0.0
    )
    before = [*tables_of(model), model.get_weights()[-1]]
    model.fit(features, label, verbose=0, callbacks=[stop])
    moved = [*tables_of(model), model.get_weights()[-1]]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, moved))
    model.fit(features, label, verbose=0, callbacks=[stop], initial_epoch=1, epochs=3)
    for got, expected in zip([*tables_of(model), model.get_weights()[-1]], moved):
        np.testing.assert_array_equal(got, expected)


def test_schedules_move_both_parts():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.0])
    model = compiled(keras.optimizers.SGD(schedule))
    features, label = make_data()
    model.train_on_batch(features, label)
    model.train_on_batch(features, label)
    before = tables_of(model)
    model.train_on_batch(features, label)
    for got, expected in zip(tables_of(model), before):
        np.testing.assert_array_equal(got, expected)


def test_embedding_optimizer_of_its_own_and_by_table():
    features, label = make_data()
    model = make_model()
    model.compile("rmsprop", embedding_optimizer=optimizers.RowWiseAdagrad(0.1))
    model.fit(features, label, verbose=0)
    slots = model.embedding.get_state()["slots"]
    assert slots["C0"]["accumulator"].shape == (11, 1)
    model.compile("sgd", embedding_optimizer={"C1": "adam"})
    model.fit(features, label, verbose=0)
    slots = model.embedding.get_state()["slots"]
    assert {name: set(each) for name, each in slots.items()} == {
        "C0": set(),
        "C1": {"momentum", "velocity"},
        "C2": set(),
    }


def test_frozen_tables_stay():
    model = make_model()
    model.embedding.trainable = False
    model.compile("sgd")
    before = tables_of(model)
    model.fit(*make_data(), verbose=0)
    for got, expected in zip(tables_of(model), before):
        np.testing.assert_array_equal(got, expected)


def test_untouched_rows_stay_and_no_dense_state_exists():
    model = compiled("adam")
    features, label = make_data()
    features["sparse_features"] %= 5
    before = tables_of(model)
    model.fit(features, label, epochs=3, verbose=0)
    for got, expected in zip(tables_of(model), before):
        np.testing.assert_array_equal(got[5:], expected[5:])
        assert np.abs(got[:5] - expected[:5]).min() > 0
    # The Keras optimizer holds state of the MLPs alone.
    table_values = sum(table.num_parameters for table in model.spec.tables)
    held = sum(int(np.prod(v.shape)) for v in model.optimizer.variables)
    assert held < 2 * model.count_params() - 2 * table_values + 3


@pytest.mark.parametrize(
    "optimizer",
    [keras.optimizers.Adam(weight_decay=0.1), keras.optimizers.SGD(momentum=0.9)],
    ids=["weight_decay", "momentum"],
)
def test_inexact_options_are_refused_unless_tables_have_their_own(optimizer):
    model = make_model()
    with pytest.raises(ValueError, match="embedding_optimizer="):
        model.compile(optimizer)
    model.compile(optimizer, embedding_optimizer="sgd")
    model.fit(*make_data(), verbose=0)
    with pytest.raises(ValueError, match="use_ema=True"):
        model.compile(keras.optimizers.SGD(use_ema=True), embedding_optimizer="sgd")


def test_mixed_precision():
    model = make_model(dtype="mixed_bfloat16")
    model.compile("adagrad", metrics=metrics.click_metrics())
    history = model.fit(*make_data(), epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model(make_data()[0]).dtype == tf.float32
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    model = make_model(dtype="mixed_float16")
    with pytest.raises(ValueError, match="mixed_bfloat16"):
        model.compile("sgd")


# Architecture


@pytest.mark.parametrize("interaction", ["dot", "cat", "cross", "layer"])
def test_interactions(interaction):
    if interaction == "layer":
        interaction = layers.CrossInteraction(2, rank=3)
    model = make_model(interaction=interaction)
    model.compile("adagrad")
    model.fit(*make_data(), verbose=0)
    assert predictions(model).shape == (NUM_ROWS, 1)


def test_tables_of_any_width_meet_by_feature_mlps(tmp_path):
    tables = [EmbeddingTable(f"C{i}", n, w) for i, (n, w) in enumerate(WIDTHS)]
    spec = FeatureSpec(("I0", "I1"), tables)
    mlps = {"C0": (6, 4), "C2": layers.MLP((4,), dropout=0.1)}
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1), feature_mlp_dims=mlps)
    model.compile("adagrad")
    before = model.feature_mlps["C0"].dense_layers[0].kernel.numpy()
    start = tables_of(model)
    model.fit(*make_data(), verbose=0, epochs=2)
    assert np.abs(model.feature_mlps["C0"].dense_layers[0].kernel - before).max() > 0
    assert all(np.abs(a - b).max() > 0 for a, b in zip(tables_of(model), start))
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(predictions(again), predictions(model))
    with pytest.raises(ValueError, match="widths of features .*'C0': 2"):
        tf_dlrm.DLRM(spec, (8, 4), (8, 1))
    cat = tf_dlrm.DLRM(spec, (8, 4), (8, 1), interaction="cat")
    cat.compile("sgd")
    cat.fit(*make_data(), verbose=0)


WIDTHS = [(11, 2), (7, 4), (30, 8)]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"top_mlp_dims": (8, 2)}, ValueError, "`top_mlp_dims` must end in 1"),
        ({"bottom_mlp_dims": (8, 5)}, ValueError, "`bottom_mlp_dims` must end in"),
        ({"bottom_mlp_dims": ()}, ValueError, "`bottom_mlp_dims` must be"),
        ({"interaction": "sum"}, ValueError, "`interaction` must be"),
        ({"interaction": "cat", "self_interaction": True}, ValueError, "goes with"),
        ({"embedding": keras.layers.Dense(1)}, TypeError, "lacks: build_optimizer"),
        ({"feature_mlp_dims": {"X": (4,)}}, ValueError, "does not have: X"),
        ({"feature_mlp_dims": layers.MLP((4,))}, TypeError, "share its weights"),
        (
            {"top_mlp_dims": layers.MLP((1,), final_activation="sigmoid")},
            ValueError,
            "without activation",
        ),
    ],
)
def test_mistakes_are_named(arguments, error, message):
    base = {"bottom_mlp_dims": (8, 4), "top_mlp_dims": (8, 1)}
    with pytest.raises(error, match=message):
        tf_dlrm.DLRM(make_spec(), **(base | arguments))


def test_summary_for_people():
    text = []
    model = compiled()
    model.summary(print_fn=text.append)
    text = "\n".join(text)
    # 48 rows of 4; (2+1)*8 + (8+1)*4; 4 + 6 dots = 10 inputs: (10+1)*8 + 9.
    assert "embedding tables" in text and "192" in text and "768 B" in text
    assert "2 > 8 > 4" in text and " 60" in text and " 97" in text
    assert f"{192 + 60 + 97}" in text
    assert "Adagrad, tables SparseAdagrad" in text
    assert max(map(len, text.splitlines())) <= 80


def test_paper_initial_values():
    model = make_model()
    for rows in tables_of(model):
        assert np.abs(rows).max() <= len(rows) ** -0.5
        assert np.abs(rows).max() > 0.8 * len(rows) ** -0.5


# Saving


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_keras_file_continues_as_if_never_stopped(optimizer, tmp_path):
    features, label = make_data()
    model = compiled(optimizer)
    model.fit(features, label, verbose=0, shuffle=False)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(predictions(again), predictions(model))
    assert int(again.embedding.iterations) == int(model.embedding.iterations) == 2
    assert type(again.embedding_optimizer) is type(model.embedding_optimizer)
    for each in (model, again):
        each.fit(features, label, verbose=0, shuffle=False)
    for got, expected in zip(tables_of(again), tables_of(model)):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(predictions(again), predictions(model))


def test_keras_file_keeps_optimizers_by_table_and_layers(tmp_path):
    model = tf_dlrm.DLRM(
        make_spec(),
        layers.MLP((8, 4), final_activation="relu", dropout=0.2),
        (8, 1),
        interaction=layers.CrossInteraction(2, rank=3),
        embedding=layers.EmbeddingCollection(make_spec().tables, seed=3),
        dtype="mixed_bfloat16",
    )
    model.compile("sgd", embedding_optimizer={"C1": optimizers.SparseAdam(0.05)})
    model.fit(*make_data(), verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(predictions(again), predictions(model))
    assert again.embedding_optimizer["C1"].learning_rate == pytest.approx(0.05)
    assert again.bottom_mlp.dropout == 0.2
    assert again.interaction.rank == 3
    assert again.dtype_policy.name == "mixed_bfloat16"
    state, expected = again.embedding.get_state(), model.embedding.get_state()
    for name, slots in expected["slots"].items():
        for slot, values in slots.items():
            np.testing.assert_array_equal(state["slots"][name][slot], values)


def test_weights_file(tmp_path):
    model = compiled()
    model.fit(*make_data(), verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    keras.utils.set_random_seed(99)
    for other in (compiled(), make_model(), compiled("adam")):
        assert np.abs(predictions(other) - predictions(model)).max() > 0
        other.load_weights(tmp_path / "m.weights.h5")
        np.testing.assert_array_equal(predictions(other), predictions(model))


def test_a_weights_file_of_other_tables_is_refused(tmp_path):
    compiled().save_weights(tmp_path / "m.weights.h5")
    other = tf_dlrm.DLRM(make_spec((11, 7, 31)), (8, 4), (8, 1))
    with pytest.raises(ValueError, match="'C2' has shape"):
        other.load_weights(tmp_path / "m.weights.h5")


def test_same_seed_same_weights():
    def train():
        keras.utils.set_random_seed(5)
        model = compiled("adam")
        model.fit(*make_data(), epochs=2, verbose=0)
        return predictions(model)

    np.testing.assert_array_equal(train(), train())


# Found by looking for trouble


def test_compiling_again_with_the_same_optimizer_goes_on():
    features, label = make_data()
    results = []
    for again in (False, True):
        keras.utils.set_random_seed(1)
        model = compiled("adam")
        model.fit(features, label, verbose=0, shuffle=False)
        if again:
            model.compile(model.optimizer, metrics=["AUC"])
        model.fit(features, label, verbose=0, shuffle=False)
        results.append(tables_of(model))
    for got, expected in zip(*results):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("part", ["embedding", "interaction", "bottom_mlp"])
def test_what_is_frozen_stays_frozen_in_a_file(part, tmp_path):
    model = make_model(interaction="cross")
    getattr(model, part).trainable = False
    model.compile("sgd")
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert getattr(again, part).trainable is False
    assert len(again.trainable_variables) == len(model.trainable_variables)


def test_slots_of_another_width_start_afresh(tmp_path):
    model = make_model()
    model.compile("sgd", embedding_optimizer="row_wise_adagrad")
    model.fit(*make_data(), verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    other = compiled("adagrad")
    with pytest.warns(UserWarning, match="starts afresh"):
        other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(predictions(other), predictions(model))
    assert (other.embedding.get_state()["slots"]["C0"]["accumulator"] == 0.1).all()


def test_a_failed_load_does_not_colour_the_next(tmp_path):
    compiled().save_weights(tmp_path / "a.weights.h5")
    wrong = tf_dlrm.DLRM(make_spec((11, 7, 31)), (8, 4), (8, 1))
    wrong.save_weights(tmp_path / "b.weights.h5")
    other = tf_dlrm.DLRM(make_spec((12, 7, 30)), (8, 4), (8, 1))
    with pytest.raises(ValueError, match=r"\(12, 4\). Received .* \(11, 4\)"):
        other.load_weights(tmp_path / "a.weights.h5")
    model = compiled()
    with pytest.raises(ValueError, match="'C2' has shape"):
        model.load_weights(tmp_path / "b.weights.h5")
    model.load_weights(tmp_path / "a.weights.h5")


def test_an_embedding_of_other_tables_is_refused():
    for sizes in ((7, 11, 30), (11, 7), (11, 7, 31)):
        embedding = layers.EmbeddingCollection(make_spec(sizes).tables)
        with pytest.raises(ValueError, match="must hold the tables of `spec`"):
            make_model(embedding=embedding)


def test_compute_loss_of_a_subclass_sees_the_features():
    class Weighted(tf_dlrm.DLRM):
        def compute_loss(self, x=None, **kwargs):
            scale = tf.reduce_mean(x["dense_features"]) * 0 + 2.0
            return super().compute_loss(x=x, **kwargs) * scale

    model = Weighted(make_spec(), (8, 4), (8, 1))
    model.compile("sgd", metrics=[metrics.LogLoss()])
    history = model.fit(*make_data(), verbose=0).history
    assert history["loss"][0] == pytest.approx(2 * history["log_loss"][0], rel=1e-4)


def test_options_that_are_off_are_no_options():
    for optimizer in (keras.optimizers.Adam(weight_decay=0.0), keras.optimizers.SGD()):
        compiled(optimizer)


def test_small_and_odd_id_types():
    features, _ = make_data()
    expected = make_model()(features).shape
    model = make_model()
    for dtype in ("int8", "uint8", "int16", "uint64"):
        ids = features["sparse_features"].astype(dtype)
        flat = tf.RaggedTensor.from_row_lengths(ids.reshape(-1), [1] * ids.size)
        ragged = tf.RaggedTensor.from_uniform_row_length(flat, 3)
        for form in (ids, ragged):
            out = model(features | {"sparse_features": form})
            assert out.shape == expected
    with pytest.raises(TypeError, match="must be int32 or int64"):
        model(features | {"sparse_features": np.full((NUM_ROWS, 3), "a")})


def test_a_negative_learning_rate_is_refused():
    with pytest.raises(ValueError, match="`learning_rate` must be finite"):
        optimizers.SparseSGD(-1.0)


def test_a_call_of_ones_own_is_refused_where_fit_would_not_run_it():
    class Own(tf_dlrm.DLRM):
        def call(self, features, training=None):
            return 0 * super().call(features, training=training) + 0.25

    with pytest.raises(ValueError, match="overrides `call`"):
        Own(make_spec(), (8, 4), (8, 1)).compile("sgd")


def test_a_frozen_mlp_object_is_frozen():
    frozen = layers.MLP((8, 4), final_activation="relu", trainable=False)
    model = tf_dlrm.DLRM(make_spec(), frozen, (8, 1))
    model.compile("sgd")
    assert len(model.dense_variables) == 4


def test_learning_rates_by_table_find_their_tables_again(tmp_path):
    def make(names):
        model = make_model()
        rates = {"C0": 0.1, "C1": 0.2, "C2": 0.3}
        each = {name: optimizers.SparseSGD(rates[name]) for name in names}
        model.compile("sgd", embedding_optimizer=each)
        return model

    make(["C0", "C1", "C2"]).save_weights(tmp_path / "m.weights.h5")
    other = make(["C2", "C0", "C1"])
    other.load_weights(tmp_path / "m.weights.h5")
    rates = {n: o.learning_rate for n, o in other.embedding_optimizer.items()}
    assert rates == pytest.approx({"C0": 0.1, "C1": 0.2, "C2": 0.3})


def test_a_following_optimizer_says_so_when_its_rate_is_set():
    model = make_model()
    following = optimizers.SparseSGD(None)
    model.compile("adagrad", embedding_optimizer=following)
    with pytest.raises(ValueError, match="follows the learning rate"):
        following.learning_rate = 0.1


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "train_on_batch"])
def test_one_hot_and_padded_batches_may_come_in_turn(method):
    features, label = make_data()
    ids = features["sparse_features"]
    padded = features | {"sparse_features": np.stack([ids, 0 * ids - 1], axis=2)}
    model = compiled("sgd")
    arguments = {} if method == "train_on_batch" else {"verbose": 0}
    labels = [] if method == "predict" else [label]
    for form in (features, padded, features):
        getattr(model, method)(form, *labels, **arguments)
    np.testing.assert_array_equal(
        model.predict(padded, verbose=0), model.predict(features, verbose=0)
    )


def test_weights_of_other_bags_are_refused():
    layer = layers.EmbeddingCollection([EmbeddingTable("t", 9, 2)])
    ids = tf.RaggedTensor.from_uniform_row_length(tf.ragged.constant([[1, 2], [3]]), 1)
    weights = tf.ragged.constant([[1.0], [5.0, 7.0]])
    weights = tf.RaggedTensor.from_uniform_row_length(weights, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="in each bag"):
        layer(ids, weights=weights)


def test_a_collection_called_twice_in_a_users_model_trains_correctly():
    layer = layers.EmbeddingCollection([EmbeddingTable("a", 10, 2)])
    inputs = [keras.Input((1,), dtype="int64") for _ in range(2)]
    vectors = [keras.layers.Flatten()(layer(each)) for each in inputs]
    head = keras.layers.Dense(1, kernel_initializer="ones", trainable=False)
    model = keras.Model(inputs, head(keras.layers.Concatenate()(vectors)))
    model.compile(keras.optimizers.Adagrad(0.1), "mse")
    first, second = np.array([[3], [3], [4]]), np.array([[3], [4], [5]])
    y = np.array([[1.0], [2.0], [3.0]])
    rows = layer.get_table("a").astype(np.float64)
    error = 2 * ((rows[first[:, 0]] + rows[second[:, 0]]).sum(1, keepdims=True) - y) / 3
    g = np.zeros_like(rows)
    for ids in (first, second):
        np.add.at(g, ids[:, 0], error)
    expected = rows - 0.1 * g / np.sqrt(0.1 + g**2 + 1e-7)
    model.train_on_batch([first, second], y)
    np.testing.assert_allclose(layer.get_table("a"), expected, atol=1e-5)
