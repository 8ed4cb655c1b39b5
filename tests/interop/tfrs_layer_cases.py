"""The interactions of TFRS against those of tf_dlrm, layer by layer.

Runs in the process of `tfrs_cases.py`.
"""

import itertools

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

import tf_dlrm

CASES = {}
cross = tfrs.layers.feature_interaction.Cross


def case(function):
    CASES[function.__name__] = function
    return function


def random_vectors(widths):
    rng = np.random.default_rng(8)
    return [rng.normal(size=(7, width)).astype("float32") for width in widths]


@case
def dot_layer():
    """In one order of vectors TFRS' output is ours without z_0."""
    vectors = random_vectors((6,) * 5)
    for itself in (False, True):
        theirs = tfrs.layers.feature_interaction.DotInteraction(itself)(vectors)
        own = tf_dlrm.layers.DotInteraction(itself)(vectors)
        np.testing.assert_array_equal(own[:, :6], vectors[0])
        np.testing.assert_allclose(own[:, 6:], theirs, atol=1e-5)
    theirs = tfrs.layers.feature_interaction.DotInteraction(False, skip_gather=True)
    full = theirs(vectors).numpy().reshape(7, 5, 5)
    i, j = np.tril_indices(5, -1)
    own = tf_dlrm.layers.DotInteraction()(vectors)
    np.testing.assert_allclose(own[:, 6:], full[:, i, j], atol=1e-5)


@case
def cat_layer():
    vectors = random_vectors((6, 3, 9))
    own = tf_dlrm.layers.CatInteraction()(vectors)
    np.testing.assert_array_equal(own, tf.keras.layers.Concatenate()(vectors))


@case
def cross_layer():
    """A chain x_{l+1} = Cross_l(x_0, x_l), outputs and gradients."""
    vectors = random_vectors((6, 3, 9))
    first = np.concatenate(vectors, 1)
    for rank, use_bias in itertools.product((None, 4), (True, False)):
        chain = [cross(rank, use_bias=use_bias) for _ in range(3)]
        own = tf_dlrm.layers.CrossInteraction(3, rank, use_bias)
        x = tf.constant(first)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for layer in chain:
                y = layer(x, y)
        own([first])
        for i, layer in enumerate(chain):
            last = layer._dense if rank is None else layer._dense_v
            own.kernels[i].assign(last.kernel)
            if rank is not None:
                own.projections[i].assign(layer._dense_u.kernel)
            if use_bias:
                bias = np.linspace(-1, 1, 18, dtype="float32") * (i + 1)
                last.bias.assign(bias)
                own.biases[i].assign(bias)
        check_gradients(lambda x, chain=chain: cross_chain(chain, x), own, first)


def cross_chain(chain, x):
    y = x
    for layer in chain:
        y = layer(x, y)
    return y


def check_gradients(theirs, own, first):
    results = []
    for function in (theirs, lambda x: own([x])):
        x = tf.constant(first)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            loss = tf.reduce_sum(y * tf.sin(y))
        results.append((y, tape.gradient(loss, x)))
    (y, g), (own_y, own_g) = results
    np.testing.assert_allclose(own_y, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(own_g, g, rtol=1e-3, atol=1e-3)


@case
def multi_layer_dcn():
    first = np.concatenate(random_vectors((6, 3, 9)), 1)
    theirs = tfrs.layers.feature_interaction.MultiLayerDCN(4, num_layers=3)
    theirs(tf.constant(first))
    own = tf_dlrm.layers.CrossInteraction(3, rank=4)
    own([first])
    for i in range(3):
        bias = np.linspace(-1, 1, 18, dtype="float32") * (i + 1)
        theirs._dense_v_kernels[i].bias.assign(bias)
        own.biases[i].assign(bias)
        own.projections[i].assign(theirs._dense_u_kernels[i].kernel)
        own.kernels[i].assign(theirs._dense_v_kernels[i].kernel)
    check_gradients(theirs, own, first)
