"""The schedule of MLPerf's DLRM against its definition, step by step."""

import keras
import numpy as np
import pytest

import tf_dlrm
from tf_dlrm.optimizers import WarmupPolynomialDecay


def by_definition(number, rate, warmup, start, decay, end):
    """facebookresearch/dlrm's LRPolicyScheduler; steps are counted from 1."""
    if number < warmup:
        return rate * (1.0 - (warmup - number) / warmup)
    if decay and start <= number < start + decay:
        return max(end, rate * ((decay - (number - start)) / decay) ** 2)
    if decay and number >= start + decay:
        return end
    return rate


@pytest.mark.parametrize(
    "warmup, start, decay", [(5, 9, 7), (0, 3, 4), (4, 4, 6), (3, 0, 0), (0, 0, 0)]
)
def test_equals_the_definition(warmup, start, decay):
    schedule = WarmupPolynomialDecay(2.0, warmup, start, decay, end_learning_rate=1e-3)
    got = [float(schedule(step)) for step in range(25)]
    expected = [
        by_definition(step + 1, 2.0, warmup, start, decay, 1e-3) for step in range(25)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_moves_mlps_and_tables_alike_and_survives_a_file(tmp_path):
    spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("t", 4, 2)])
    model = tf_dlrm.DLRM(spec, (2,), (1,), interaction="cat")
    bias = model.top_mlp.dense_layers[-1].bias
    schedule = WarmupPolynomialDecay(1.0, 2, 2, 2, end_learning_rate=0.0)
    model.compile(keras.optimizers.SGD(schedule))
    x = {"dense_features": np.ones((2, 1)), "sparse_features": np.zeros((2, 1), int)}
    moved = []
    for _ in range(5):
        before = model.embedding.get_table("t"), bias.numpy()
        model.train_on_batch(x, np.ones(2))
        after = model.embedding.get_table("t"), bias.numpy()
        moved.append([np.abs(a - b).max() > 0 for a, b in zip(before, after)])
    assert moved == [[True, True]] * 3 + [[False, False]] * 2
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()


@pytest.mark.parametrize(
    "arguments, message",
    [((1.0, -1), "`warmup_steps`"), ((1.0, 5, 4, 3), "inside the warm-up")],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        WarmupPolynomialDecay(*arguments)
