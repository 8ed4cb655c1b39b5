"""Runs in a process of its own, with TF_USE_LEGACY_KERAS=1: `python tfrs_cases.py`.

TFRS works on Keras 2 and takes seconds to import, so that all cases share the process.
Prints one JSON object: the traceback of each case, or null where it passed.
"""

import contextlib
import io
import itertools
import json
import os
import pathlib
import sys
import tempfile
import traceback

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tfrs_layer_cases
from helpers import guide
from tensorflow_recommenders.experimental.layers.embedding import partial_tpu_embedding

import tf_dlrm

WIDTH, NUM_DENSE, NUM_ROWS = 8, 5, 33
# Not in alphabetical order; two features of one table lie apart.
SIZES = {"user": 40, "city": 7, "app": 1, "zone": 40}
SHARED = ("user", "zone")
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def table_configs(width=WIDTH, **options):
    kind = tf.tpu.experimental.embedding.TableConfig
    initializer = tf.keras.initializers.RandomNormal(stddev=0.5, seed=1)
    options = {"initializer": initializer, **options}
    shared = kind(SIZES["user"], width, name="users", combiner="sqrtn", **options)
    own = {
        name: kind(size, width, combiner="sum" if name == "app" else "mean", **options)
        for name, size in SIZES.items()
        if name not in SHARED
    }
    return {name: own.get(name, shared) for name in SIZES}


def feature_configs(**options):
    kind = tf.tpu.experimental.embedding.FeatureConfig
    return {name: kind(table) for name, table in table_configs(**options).items()}


def make_embedding(kind="tpu"):
    if kind == "tpu":
        return tfrs.layers.embedding.TPUEmbedding(feature_configs(), optimizer=None)
    threshold = {"partial": 10, "keras": None}[kind]
    optimizer = tf.keras.optimizers.legacy.SGD(0.1)
    return partial_tpu_embedding.PartialTPUEmbedding(
        feature_configs(), optimizer, size_threshold=threshold
    )


def make_batch(form="one_hot", seed=0, num_rows=NUM_ROWS):
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(num_rows, NUM_DENSE)).astype("float32")
    sparse = {}
    for name, size in SIZES.items():
        if form == "one_hot":
            sparse[name] = tf.constant(rng.integers(0, size, (num_rows, 1)))
        else:
            lengths = rng.integers(0, 4, num_rows)
            values = rng.integers(0, size, lengths.sum())
            sparse[name] = tf.RaggedTensor.from_row_lengths(values, lengths)
    return {"dense_features": tf.constant(dense), "sparse_features": sparse}


def to_columns(features, model):
    dense = tf.unstack(features["dense_features"], axis=1)
    return dict(zip(model.spec.dense, dense)) | dict(features["sparse_features"])


def make_ranking(embedding="tpu", **options):
    mlp = tfrs.layers.blocks.MLP
    options.setdefault("bottom_stack", mlp([16, WIDTH], final_activation="relu"))
    options.setdefault("top_stack", mlp([12, 6, 1], final_activation="sigmoid"))
    ranking = tfrs.experimental.models.Ranking(
        make_embedding(embedding) if isinstance(embedding, str) else embedding,
        **options,
    )
    ranking(make_batch())
    # Biases that start at zero would hide mistakes.
    rng = np.random.default_rng(5)
    for variable in ranking.dense_trainable_variables:
        change = 0.2 * rng.normal(size=variable.shape)
        variable.assign_add(tf.constant(change, tf.float32))
    return ranking


def check_equal(ranking, form="one_hot", model=None):
    model = model or tf_dlrm.interop.from_tfrs(ranking)
    for seed in (1, 2):
        batch = make_batch(form, seed)
        expected = ranking(batch).numpy()
        got = model(to_columns(batch, model)).numpy()
        assert got.shape == (NUM_ROWS, 1)
        assert 0.01 < expected.std(), "predictions that do not differ show nothing"
        np.testing.assert_allclose(got[:, 0], expected, atol=1e-6)
    return model


def refused(message, make, kind=ValueError):
    try:
        tf_dlrm.interop.from_tfrs(make())
    except kind as error:
        assert message in str(error), f"{message!r} is not in: {error}"
    else:
        raise AssertionError(f"not refused: {message}")


def concatenated(*layers):
    return tf.keras.Sequential([tf.keras.layers.Concatenate(), *layers])


@case
def dot():
    lib = tfrs.layers.feature_interaction
    for itself, skip, concat in itertools.product((False, True), repeat=3):
        layer = lib.DotInteraction(self_interaction=itself, skip_gather=skip)
        check_equal(make_ranking(feature_interaction=layer, concat_dense=concat))


@case
def names_and_order():
    model = tf_dlrm.interop.from_tfrs(make_ranking())
    assert model.spec.sparse_features == ("app", "city", "user", "zone")
    assert [table.name for table in model.spec.tables] == ["app", "city", "users"]
    assert [table.combiner for table in model.spec.tables] == ["sum", "mean", "sqrtn"]
    assert model.spec.dense == tuple(f"dense_{i}" for i in range(NUM_DENSE))
    names = ("a", "b", "c", "d", "e")
    ranking = make_ranking()
    assert tf_dlrm.interop.from_tfrs(ranking, dense=names).spec.dense == names
    for wrong in (("a",), "abcde"):
        try:
            tf_dlrm.interop.from_tfrs(ranking, dense=wrong)
        except ValueError as error:
            assert "must name the 5 columns" in str(error)
        else:
            raise AssertionError(wrong)


@case
def interleaved_features_of_a_shared_table():
    """Ours lie by table, TFRS' by name: city, user, zone with user and city shared."""
    kind = tf.tpu.experimental.embedding
    tables = [
        kind.TableConfig(30, WIDTH, tf.random_normal_initializer(0, 0.5, seed=i))
        for i in (1, 2)
    ]
    of_table = {"user": 0, "city": 0, "app": 1, "zone": 0}
    configs = {k: kind.FeatureConfig(tables[i]) for k, i in of_table.items()}
    configs["m"] = kind.FeatureConfig(tables[1])  # app, m on one; city, user, zone
    global SIZES
    sizes, SIZES = SIZES, dict.fromkeys(configs, 30)
    try:
        for interaction in (None, concatenated(lib_cross())):
            embedding = tfrs.layers.embedding.TPUEmbedding(configs, None)
            ranking = make_ranking(embedding, feature_interaction=interaction)
            model = check_equal(ranking)
            expected = ("app", "m", "city", "user", "zone")
            assert model.spec.sparse_features == expected
    finally:
        SIZES = sizes


def lib_cross(**options):
    return tfrs.layers.feature_interaction.Cross(**options)


@case
def bags():
    check_equal(make_ranking(), form="ragged")


@case
def embedding_layers():
    check_equal(make_ranking("partial"))
    model = check_equal(make_ranking("keras"))
    assert [t.name for t in model.spec.tables] == ["app", "city", "user"]


@case
def cat_and_cross():
    lib = tfrs.layers.feature_interaction
    layers = {
        "concatenate": lambda: tf.keras.layers.Concatenate(),
        "cat": lambda: concatenated(),
        "full": lambda: concatenated(lib.Cross()),
        "diag": lambda: concatenated(lib.Cross(diag_scale=0.3)),
        "low_rank": lambda: concatenated(lib.Cross(projection_dim=3)),
        "no_bias": lambda: concatenated(lib.Cross(use_bias=False)),
        "deep": lambda: concatenated(lib.MultiLayerDCN(projection_dim=4)),
        "deep_no_bias": lambda: concatenated(
            lib.MultiLayerDCN(projection_dim=2, num_layers=2, use_bias=False)
        ),
    }
    for make, concat in itertools.product(layers.values(), (True, False)):
        ranking = make_ranking(feature_interaction=make(), concat_dense=concat)
        check_equal(ranking)


@case
def stacks():
    mlp, dense = tfrs.layers.blocks.MLP, tf.keras.layers.Dense
    stack = mlp([9, WIDTH], use_bias=False, activation="tanh", final_activation="elu")
    model = check_equal(make_ranking(bottom_stack=stack))
    assert not model.bottom_mlp.use_bias
    assert len(model.bottom_mlp.weights) == 2
    linear = mlp([7, WIDTH])  # TFRS' own default for the last activation
    check_equal(make_ranking(bottom_stack=linear))
    top = tf.keras.Sequential([dense(9, "gelu"), dense(1, "sigmoid")])
    check_equal(make_ranking(top_stack=top))
    top = mlp([1], final_activation="sigmoid")
    check_equal(make_ranking(top_stack=top))


@case
def after_training():
    """Variables that TFRS trained, with sparse updates of its tables."""
    ranking = make_ranking()
    ranking.compile(tf.keras.optimizers.legacy.Adagrad(0.1))
    batch = make_batch()
    label = np.random.default_rng(3).integers(0, 2, NUM_ROWS).astype("float32")
    dataset = tf.data.Dataset.from_tensors((batch, label)).repeat(20)
    before = ranking(batch).numpy()
    ranking.fit(dataset, verbose=0)
    assert np.abs(ranking(batch).numpy() - before).max() > 0.05
    model = check_equal(ranking)
    model.compile("adagrad", "binary_crossentropy")
    losses = model.fit(
        tf.data.Dataset.from_tensors((to_columns(batch, model), label)).repeat(20),
        epochs=2,
        verbose=0,
    ).history["loss"]
    assert losses[1] < losses[0]


@case
def saved_and_sharded():
    """Interactions of interop come back from `.keras`; tables may be shards."""
    lib = tfrs.layers.feature_interaction
    ranking = make_ranking(feature_interaction=concatenated(lib.MultiLayerDCN(2)))
    model = tf_dlrm.interop.from_tfrs(
        ranking, embedding=tf_dlrm.sharding.ShardedEmbeddingCollection
    )
    assert isinstance(model.embedding, tf_dlrm.sharding.ShardedEmbeddingCollection)
    check_equal(ranking, model=model)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/m.keras")
        check_equal(ranking, model=keras.saving.load_model(f"{folder}/m.keras"))
        plain = tf_dlrm.interop.from_tfrs(ranking)
        path = tf_dlrm.export_saved_model(plain, f"{folder}/ctr")
        batch = make_batch(seed=9)
        ids = [batch["sparse_features"][n] for n in plain.spec.sparse_features]
        serve = tf.saved_model.load(str(path)).signatures["serving_default"]
        got = serve(
            dense_features=batch["dense_features"], sparse_features=tf.stack(ids, 1)
        )
        expected = ranking(batch).numpy()
        np.testing.assert_allclose(got["probabilities"][:, 0], expected, atol=1e-6)


@case
def what_is_refused():
    mlp, dense = tfrs.layers.blocks.MLP, tf.keras.layers.Dense
    lib, kind = tfrs.layers.feature_interaction, tf.tpu.experimental.embedding

    class OwnRanking(tfrs.experimental.models.Ranking):
        def call(self, inputs):
            return super().call(inputs) * 0.5

    class OwnTables(tf.keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.table = tf.keras.layers.Embedding(50, WIDTH)

        def call(self, inputs):
            return [self.table(inputs[name]) for name in sorted(inputs)]

    def with_config(table_options=None, **options):
        table = kind.TableConfig(9, WIDTH, **(table_options or {}))
        configs = {"user": kind.FeatureConfig(table, **options)}
        return tfrs.layers.embedding.TPUEmbedding(configs, None)

    unbuilt = tfrs.experimental.models.Ranking(make_embedding())
    refused("no weights yet", lambda: unbuilt)
    refused("Received: Sequential", tf.keras.Sequential, TypeError)
    refused("Received: DLRM", lambda: small_dlrm(), TypeError)
    refused("OwnRanking", lambda: OwnRanking(make_embedding()), TypeError)
    refused("'own_tables'", lambda: make_ranking(OwnTables()))
    for options, message in [
        ({"top_stack": mlp([1])}, "must end in one unit with activation 'sigmoid'"),
        ({"top_stack": mlp([2, 1], activation="hard_sigmoid",
                           final_activation="sigmoid")}, "'hard_sigmoid'"),
        ({"bottom_stack": mlp([WIDTH], final_activation=lambda x: x + 1)}, "<lambda>"),
        ({"bottom_stack": tf.keras.Sequential(
            [dense(4), tf.keras.layers.Dropout(0.1), dense(WIDTH)])}, "Dropout"),
        ({"bottom_stack": tf.keras.Sequential(
            [dense(4), dense(4, "relu"), dense(WIDTH)])}, "the same activation"),
        ({"bottom_stack": dense(WIDTH)}, "must be a tfrs MLP or a Sequential"),
        ({"feature_interaction": concatenated(lib.Cross(), lib.Cross())}, "in a row"),
        ({"feature_interaction": concatenated(lib.Cross(preactivation="relu"))},
         "`preactivation`"),
        ({"feature_interaction": concatenated(
            lib.Cross(projection_dim=2, diag_scale=1.0))}, "`diag_scale`"),
    ]:  # fmt: skip
        refused(message, lambda options=options: make_ranking(**options))
    configs = {"a": {"b": next(iter(feature_configs().values()))}}
    nested = tfrs.layers.embedding.TPUEmbedding(configs, None)
    for embedding, message in [
        (nested, "must be a dict of names to FeatureConfig"),
        (with_config(max_sequence_length=3), "returns a sequence"),
        (with_config(output_shape=[4]), "returns a sequence"),
    ]:
        ranking = make_ranking()
        ranking._embedding_layer = embedding
        refused(message, lambda ranking=ranking: ranking)
    ranking = make_ranking()
    ranking._embedding_layer = with_config()
    refused("with other features than those", lambda: ranking)
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        refused("computes in bfloat16", lambda: make_ranking())
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def small_dlrm():
    spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("t", 3, 2)])
    return tf_dlrm.DLRM(spec, (2,), (1,))


@case
def the_guide():
    """What docs/how_to/migrate/tfrs.md shows."""
    ranking = make_ranking(feature_interaction=concatenated(lib_cross()))
    label = np.random.default_rng(3).integers(0, 2, NUM_ROWS).astype("float32")
    dataset = tf.data.Dataset.from_tensors((make_batch("ragged"), label)).repeat(3)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        names = {"ranking": ranking, "dataset": dataset}
        guide.run_page("how_to/migrate/tfrs.md", names)
        model = keras.saving.load_model("ctr.keras")
    check_equal(ranking, "ragged", model)
    assert names["model"].optimizer.iterations == 3
    columns, _ = names["to_columns"](make_batch(), label)
    np.testing.assert_allclose(model(columns)[:, 0], ranking(make_batch()), atol=1e-6)


def run(function):
    tf.keras.utils.set_random_seed(3)
    keras.utils.set_random_seed(3)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            function()
    except Exception:
        return traceback.format_exc()


if __name__ == "__main__":
    cases = CASES | tfrs_layer_cases.CASES
    names = sys.argv[1:] or list(cases)
    print(json.dumps({name: run(cases[name]) for name in names}))
