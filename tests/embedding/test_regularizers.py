"""Regularizers of the rows that a batch reads, against float64 with dense tables."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices
from helpers.optimizer_oracle import CASES
from helpers.regularizers import (
    L1,
    L2,
    Mean,
    Quartic,
    RowNorms,
    penalty_and_gradient,
)
from helpers.sharded_model import strategy_of

import tf_dlrm
from tf_dlrm import EmbeddingTable, optimizers
from tf_dlrm.layers import EmbeddingCollection
from tf_dlrm.sharding import ShardedEmbeddingCollection


def make_tables(width_of_b=5):
    """Two widths, one table that two features share, and one that is frozen."""
    l2 = keras.regularizers.L2(L2)
    return [
        EmbeddingTable("a", 40, 3, features=["a1", "a2"], regularizer=l2),
        EmbeddingTable("frozen", 9, 3, trainable=False, regularizer="l1"),
        EmbeddingTable("b", 13, width_of_b, combiner="mean", regularizer=RowNorms()),
        EmbeddingTable("c", 300, 3),
        EmbeddingTable("d", 30, 3, regularizer=keras.regularizers.L1L2(L1, L2)),
        EmbeddingTable("e", 20, 3, "sqrtn", regularizer=Quartic()),
    ]


OWNERS = ("a", "a", "frozen", "b", "c", "d", "e")


def make_ids(form, rng, num_rows=6):
    """Ids as the layer takes them, and padded `(B, F, L)`."""
    sizes = {table.name: table.vocabulary_size for table in make_tables()}
    ids = [rng.integers(-1, sizes[n] // 2, (num_rows, 3)) for n in OWNERS]
    ids = np.stack(ids, 1)
    if form == "one_hot":
        return tf.constant(ids[:, :, 0]), ids[:, :, :1]
    if form == "padded":
        return tf.constant(ids), ids
    values, lengths = tf.constant(ids[ids >= 0]), (ids >= 0).sum(2).reshape(-1)
    bags = tf.RaggedTensor.from_row_lengths(values, lengths)
    return tf.RaggedTensor.from_uniform_row_length(bags, len(OWNERS)), ids


def rows_of(padded):
    """The rows that each table reads."""
    names = dict.fromkeys(OWNERS)
    own = {n: [i for i, owner in enumerate(OWNERS) if owner == n] for n in names}
    return {n: padded[:, own[n]][padded[:, own[n]] >= 0] for n in names}


@pytest.mark.engines
@pytest.mark.breadth(3, 5)
@pytest.mark.parametrize("form", ["one_hot", "padded", "ragged"])
@pytest.mark.parametrize(
    "case", ["sgd", "adagrad", "row_wise", "adam", "ftrl", "dense_adam_l2"]
)
def test_steps_of_every_optimizer_equal_float64(case, form):
    make, update = CASES[case]
    layer = EmbeddingCollection(make_tables(), seed=2)
    layer.build_optimizer(make())
    expected = {t.name: layer.get_table(t.name).astype("float64") for t in layer.tables}
    states = {name: {} for name in expected}
    regularizers = {table.name: table.regularizer for table in layer.tables}
    combiners = {table.name: table.combiner for table in layer.tables}
    apply = tf.function(layer.apply_gradients, reduce_retracing=True)
    rng = np.random.default_rng(3)
    for step in range(1, 5):
        ids, padded = make_ids(form, rng)
        gradients = {name: np.zeros_like(expected[name]) for name in expected}
        pooled = []
        for i, name in enumerate(OWNERS):
            own = rng.normal(size=(6, expected[name].shape[1])).astype("float32")
            pooled.append(tf.constant(own))
            for bag, g in zip(padded[:, i], own, strict=True):
                bag = bag[bag >= 0]
                power = {"sum": 0, "mean": 1, "sqrtn": 0.5}[combiners[name]]
                np.add.at(gradients[name], bag, g / max(len(bag), 1) ** power)
        penalty = layer.penalty([ids])
        rows = rows_of(padded)
        total = 0.0
        for name in expected:
            if name != "frozen":
                value, gradient = penalty_and_gradient(
                    expected[name], rows[name], regularizers[name]
                )
                total += value
                update(expected[name], gradients[name] + gradient, states[name], step)
        assert float(penalty) == pytest.approx(total, rel=1e-4)
        apply(pooled, ids)
    for name, values in expected.items():
        np.testing.assert_allclose(layer.get_table(name), values, atol=5e-6)
    for variable in layer.lookup_variables:
        np.testing.assert_array_equal(variable[-1], tf.zeros_like(variable[-1]))


@pytest.mark.engines
def test_a_batch_with_more_ids_than_rows_leaves_the_others_unpenalized():
    """A dense optimizer otherwise computes such a batch in one pass over all rows."""
    layer = EmbeddingCollection(
        [EmbeddingTable("t", 20, 2, regularizer=keras.regularizers.L2(0.5))], seed=2
    )
    layer.build_optimizer(optimizers.DenseSGD(0.1, l2=0.3))
    before = layer.get_table("t").astype("float64")
    layer.apply_gradients(tf.zeros((50, 1, 2)), tf.constant([[3], [4]] * 25))
    expected = before * (1 - 0.1 * 0.3)
    expected[3:5] -= 0.1 * before[3:5]
    np.testing.assert_allclose(layer.get_table("t"), expected, rtol=1e-5)


def test_configs_hold_the_regularizer_only_where_there_is_one():
    table = EmbeddingTable("t", 5, 4, regularizer="l2")
    assert EmbeddingTable.from_config(table.get_config()) == table
    assert table.regularizer.l2 == pytest.approx(0.01)
    assert table != EmbeddingTable("t", 5, 4, regularizer=keras.regularizers.L2(0.1))
    own = EmbeddingTable("t", 5, 4, regularizer=Quartic())
    spec = tf_dlrm.FeatureSpec((), [own])
    again = tf_dlrm.FeatureSpec.from_json(spec.to_json())
    assert isinstance(again.tables[0].regularizer, Quartic)
    assert "regularizer" not in EmbeddingTable("t", 5, 4).get_config()


def test_regularizers_that_cannot_be_exact_are_refused():
    for regularizer in (Mean(), "orthogonal_regularizer"):
        table = EmbeddingTable("t", 5, 4, regularizer=regularizer)
        with pytest.raises(ValueError, match="must be a sum over rows or values"):
            EmbeddingCollection([table])
    with pytest.raises(ValueError, match="regularizer` of table 't'.*: l3"):
        EmbeddingTable("t", 5, 4, regularizer="l3")
    for other in (lambda x: x, keras.Regularizer()):
        with pytest.raises(TypeError, match="must be a keras.Regularizer with"):
            EmbeddingTable("t", 5, 4, regularizer=other)


def check_columns():
    with strategy_of(2).scope():
        for regularizer, optimizer, message in (
            (RowNorms(), "sgd", "needs whole rows"),
            ("l2", "row_wise_adagrad", "needs the gradients of whole rows"),
        ):
            table = EmbeddingTable("t", 50, 4, regularizer=regularizer)
            layer = ShardedEmbeddingCollection([table], "column_wise")
            with pytest.raises(ValueError, match=message):
                layer.build_optimizer(optimizers.get(optimizer))


def test_columns_on_several_devices_need_sums_over_values():
    on_devices(2)(check_columns)()
