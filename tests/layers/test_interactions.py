"""Interactions against NumPy in float64; gradients against automatic ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_dlrm.layers import CatInteraction, CrossInteraction, DotInteraction
from tf_dlrm.runtime import xla

pytestmark = pytest.mark.xla


def vectors(num_pooled=4, width=3, batch=5):
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(batch, width)).astype("float32")
    pooled = rng.normal(size=(batch, num_pooled, width)).astype("float32")
    return dense, pooled


@pytest.mark.parametrize("self_interaction", [False, True], ids=["strict", "diagonal"])
def test_dot_is_the_row_major_lower_triangle_after_z0(self_interaction):
    dense, pooled = vectors()
    z = np.concatenate([dense[:, None], pooled], axis=1).astype(np.float64)
    expected = [z[:, 0]]
    for i in range(5):
        for j in range(i + 1 if self_interaction else i):
            expected.append((z[:, i] * z[:, j]).sum(1, keepdims=True))
    expected = np.concatenate(expected, axis=1)
    layer = DotInteraction(self_interaction)
    forms = [
        [dense, pooled],
        [dense, *np.moveaxis(pooled, 1, 0)],
        z.astype("float32"),
    ]
    for inputs in forms:
        out = layer(inputs)
        np.testing.assert_allclose(out, expected, atol=1e-5)
    shapes = [(None, 3), (None, 4, 3)]
    assert layer.compute_output_shape(shapes) == (None, expected.shape[1])
    assert expected.shape[1] == 3 + (15 if self_interaction else 10)


@pytest.mark.parametrize("self_interaction", [False, True], ids=["strict", "diagonal"])
def test_gradient_of_dot_equals_the_automatic_one(self_interaction):
    dense, pooled = map(tf.constant, vectors())
    weights = tf.constant(np.random.default_rng(1).normal(size=(5, 40)), tf.float32)

    def loss_of(triangle):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([dense, pooled])
            out = triangle([dense, pooled])
            loss = tf.reduce_sum(tf.sin(out) * weights[:, : out.shape[1]])
        return tape.gradient(loss, [dense, pooled])

    def automatic(inputs):
        z = tf.concat([inputs[0][:, None], inputs[1]], axis=1)
        gram = tf.matmul(z, z, transpose_b=True)
        i, j = np.tril_indices(5, 0 if self_interaction else -1)
        dots = [gram[:, a, b] for a, b in zip(i, j)]
        return tf.concat([inputs[0], tf.stack(dots, axis=1)], axis=1)

    got, expected = loss_of(DotInteraction(self_interaction)), loss_of(automatic)
    for g, e in zip(got, expected):
        np.testing.assert_allclose(g, e, atol=1e-5)


def test_cat_takes_vectors_of_any_width():
    dense, pooled = vectors()
    out = CatInteraction()([dense, pooled, np.ones((5, 7), "float32")])
    expected = np.concatenate([dense, pooled.reshape(5, -1), np.ones((5, 7))], axis=1)
    np.testing.assert_array_equal(out, expected)
    shapes = [(None, 3), (None, 4, 3), (None, 7)]
    assert CatInteraction().compute_output_shape(shapes) == (None, 22)


@pytest.mark.parametrize("rank", [None, 2], ids=["full", "rank_2"])
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no_bias"])
def test_cross_equals_the_formula(rank, use_bias):
    dense, pooled = vectors()
    layer = CrossInteraction(num_layers=3, rank=rank, use_bias=use_bias)
    out = layer([dense, pooled])
    x0 = np.concatenate([dense, pooled.reshape(5, -1)], axis=1).astype(np.float64)
    x = x0
    for i, bias in enumerate(layer.biases):
        bias.assign(np.full(15, 0.1 * i, "float32"))
    out = layer([dense, pooled])
    for i in range(3):
        inner = x @ layer.projections[i].numpy() if rank else x
        inner = inner @ layer.kernels[i].numpy()
        if use_bias:
            inner = inner + layer.biases[i].numpy()
        x = x0 * inner + x
    np.testing.assert_allclose(out, x, rtol=1e-4, atol=1e-5)
    assert len(layer.projections) == (3 if rank else 0)
    assert len(layer.biases) == (3 if use_bias else 0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CrossInteraction(0), "`num_layers`"),
        (lambda: CrossInteraction(2, rank=0), "`rank`"),
        (lambda: DotInteraction()([np.ones((2, 3)), np.ones((2, 4))]), "equal width"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer", [DotInteraction(True), CatInteraction(), CrossInteraction(2, 4, False)]
)
def test_config_round_trip(layer):
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("inside", [False, True], ids=["forward", "backward"])
def test_gradient_of_slices_and_with_kernels_on_one_side_only(inside):
    """What the gradient of `tf.gather` hands back; and 3 rows are no capacity."""
    x = tf.random.stateless_normal((3, 3, 4), seed=(1, 2))
    layer = DotInteraction()

    def loss_of(y):
        return tf.reduce_sum(tf.gather(y, [0, 0, 2]) ** 2)

    with tf.GradientTape() as tape:
        tape.watch(x)
        expected = loss_of(
            tf.concat(
                [x[:, 0]]
                + [
                    tf.reduce_sum(x[:, i] * x[:, j], -1, keepdims=True)
                    for i in range(3)
                    for j in range(i)
                ],
                1,
            )
        )
    expected = tape.gradient(expected, x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        with xla.disabled(not inside):
            loss = loss_of(layer(x))
    with xla.disabled(inside):
        got = tape.gradient(loss, x)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_low_rank_is_torchrecs_form():
    """x_{l+1} = x_0 * (W_l (V_l x_l) + b_l) + x_l with W (N, r) and V (r, N)."""
    layer = CrossInteraction(num_layers=2, rank=3)
    x = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
    layer(x)
    rng = np.random.default_rng(1)
    W, V = rng.normal(size=(2, 8, 3)), rng.normal(size=(2, 3, 8))
    b = rng.normal(size=(2, 8))
    x_l = x.astype(np.float64)
    for i in range(2):
        layer.projections[i].assign(V[i].T)
        layer.kernels[i].assign(W[i].T)
        layer.biases[i].assign(b[i])
        x_l = x * (np.einsum("nr,rm,bm->bn", W[i], V[i], x_l) + b[i]) + x_l
    np.testing.assert_allclose(layer(x), x_l, rtol=1e-3, atol=1e-3)
    assert layer.count_params() == 2 * (2 * 8 * 3 + 8)
