"""Models that were traced are freed; gradients of our own work as TensorFlow's."""

import gc

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_model import make_data, make_model

import tf_dlrm
from tf_dlrm.embedding.fused_table import FusedTable
from tf_dlrm.runtime import gradients


def tables_alive():
    gc.collect()
    return sum(type(each) is FusedTable for each in gc.get_objects())


@pytest.mark.breadth(0)
@pytest.mark.parametrize("interaction", ["dot", "cat"])
def test_a_model_is_freed(interaction):
    features, label = make_data()
    alive, known = tables_alive(), set(gradients.registered())
    model = make_model(interaction=interaction)
    model.compile("adam", metrics=[tf_dlrm.metrics.ClickAUC()])
    model.fit(features, label, verbose=0, validation_data=(features, label))
    model.predict(features, verbose=0)
    with tf.GradientTape() as tape:
        loss = tf.function(model)(features, training=True)
    tape.gradient(loss, model.trainable_variables)
    assert tables_alive() > alive
    del model, tape, loss
    assert tables_alive() == alive
    assert set(gradients.registered()) == known


@gradients.custom_gradient
def thrice(x):
    return x * 1.0, lambda upstream: upstream * 3.0


def direct(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = thrice(x)
    return tape.gradient(y, x)


@pytest.mark.parametrize("jit_compile", [None, True])
def test_custom_gradients_in_graphs(jit_compile):
    x = tf.constant([2.0])
    np.testing.assert_array_equal(direct(x), [3.0])
    traced = tf.function(direct, jit_compile=jit_compile)
    np.testing.assert_array_equal(traced(x), [3.0])
    # Outside of the graph, and long after: the graph has kept it.
    forward = tf.function(thrice, jit_compile=jit_compile)
    with tf.GradientTape() as tape:
        tape.watch(x)
        gc.collect()
        y = forward(x)
    np.testing.assert_array_equal(tape.gradient(y, x), [3.0])
    branch = tf.function(lambda x: tf.cond(x[0] > 0, lambda: thrice(x), lambda: x))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = branch(x)
    np.testing.assert_array_equal(tape.gradient(y, x), [3.0])


def test_the_registry_holds_nothing_of_ours():
    """Fails when TensorFlow registers otherwise: look at tf_dlrm/gradients.py."""
    gc.collect()
    known = set(gradients.registered())

    class Held:
        pass

    def make(held):
        def own(x):
            return x * 1.0, lambda upstream: (held, upstream)[1]

        return tf.function(gradients.custom_gradient(own))

    function = make(Held())
    function(tf.constant(1.0))
    (name,) = set(gradients.registered()) - known
    assert name.startswith("CustomGradient-")
    del function
    gc.collect()
    assert set(gradients.registered()) == known
    assert not [each for each in gc.get_objects() if type(each) is Held]
