"""Guards on two devices.

A batch that is not finite in the rows of one replica alone is applied by neither; and
evaluations within an epoch change nothing, and end it.
"""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices
from helpers.guard_data import Normalized, make_batches, poison, table_state

import tf_dlrm
from tf_dlrm.callbacks import EarlyStopping, EvaluateWithinEpochs
from tf_dlrm.sharding import ShardedEmbeddingCollection
from tf_dlrm.training import NotFiniteError

pytestmark = pytest.mark.integration

BATCH_SIZE = 16


def skip_graph_optimization(really=True):
    """It takes most of the time of so short trainings."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": really})


def make_model(optimizer, plan):
    keras.utils.set_random_seed(3)
    tables = [tf_dlrm.EmbeddingTable(f"C{i}", 20, 4) for i in range(3)]
    embedding = None
    if plan is not None:
        embedding = ShardedEmbeddingCollection(tables, plan, seed=1)
    model = tf_dlrm.DLRM(
        tf_dlrm.FeatureSpec(("I0", "I1"), tables),
        (8, 4),
        tf_dlrm.layers.MLP((8, 1), dropout=0.2),
        Normalized(),
        embedding=embedding,
    )
    model.compile(
        optimizer,
        metrics=[tf_dlrm.metrics.LogLoss()],
        jit_compile="auto" if plan is None else False,
    )
    return model


def dataset_of(batches):
    signature = tf.nest.map_structure(
        lambda rows: tf.TensorSpec((None, *rows.shape[1:]), rows.dtype), batches[0]
    )

    def copies():  # TensorFlow may compute in place in arrays that it is given
        return (tf.nest.map_structure(np.copy, batch) for batch in batches)

    dataset = tf.data.Dataset.from_generator(copies, output_signature=signature)
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.OFF
    options.experimental_distribute.auto_shard_policy = policy
    return dataset.with_options(options)


def state(model):
    weights = [*model.weights, *model.optimizer.variables]
    replicas = [
        copy.numpy()
        for weight in weights
        for copy in getattr(weight.value, "values", [weight.value])
    ]
    return [*table_state(model), *replicas]


def learned(model):
    """Without batch statistics: those of `Normalized` move in evaluations, too."""
    return [*table_state(model), *(v.numpy() for v in model.trainable_weights)]


@pytest.mark.parametrize(
    "optimizer, plan, row",
    [("adagrad", None, BATCH_SIZE - 1), ("adam", "row_wise", 0)],
    ids=["of the last replica", "of the first replica"],
)
@on_devices(2)
def test_a_row_that_is_not_finite_is_applied_by_no_replica(optimizer, plan, row):
    skip_graph_optimization(plan is not None)
    batches = make_batches(2, BATCH_SIZE)
    bad = poison(batches[1], "dense_features", np.nan, row)
    expected = state(trained(optimizer, plan, batches))
    # Seeds of dropout go on in any case: the bad batches come last.
    model = trained(optimizer, plan, [*batches, bad, bad])
    for value, expected_value in zip(state(model), expected, strict=True):
        np.testing.assert_array_equal(value, expected_value)
    assert model.num_skipped_batches == 2
    assert np.isfinite(model.get_metrics_result()["log_loss"])
    message = r"batch 11 of epoch 1 \(not finite: dense features"
    with pytest.raises(NotFiniteError, match=message):
        model.fit(dataset_of([batches[0], *[bad] * 10]), verbose=0)


@on_devices(2)
def test_evaluations_within_an_epoch_change_nothing():
    skip_graph_optimization()
    batches = make_batches(6, BATCH_SIZE)
    valid = dataset_of(batches[:2])
    stop = EarlyStopping("val_log_loss", target=1e9, verbose=0)
    plain, model = (trained("adagrad", "row_wise", batches) for _ in range(2))
    plain.fit(dataset_of(batches), verbose=0)
    within = EvaluateWithinEpochs(valid, 2)
    model.fit(dataset_of(batches), verbose=0, callbacks=[within])
    assert model.history.history == plain.history.history
    for value, expected in zip(learned(model), learned(plain), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert [result["batch"] for result in within.results] == [2, 4, 6]
    expected = model.evaluate(valid, verbose=0, return_dict=True)
    for name, value in expected.items():
        np.testing.assert_allclose(within.results[-1][f"val_{name}"], value, 1e-6)
    within = EvaluateWithinEpochs(valid, 4, [stop])
    model.fit(dataset_of(batches), verbose=0, callbacks=[within, stop])
    assert model.optimizer.iterations.numpy() == 16 and stop.reason is not None


def trained(optimizer, plan, batches):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = make_model(optimizer, plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(dataset_of(batches), verbose=0)
    return model
