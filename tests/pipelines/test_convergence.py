"""`LossCurve`: which trainings ended while their loss was falling."""

import numpy as np
import pytest

from pipelines.runs.convergence import LossCurve


def feed(curve, epochs):
    """Tells a callback of steps with these losses, as Keras does: as running means."""
    for epoch, losses in enumerate(epochs):
        means = np.cumsum(losses) / np.arange(1, len(losses) + 1)
        for batch, mean in enumerate(means):
            curve.on_train_batch_end(batch, {"loss": mean})
        curve.on_epoch_end(epoch, {"loss": means[-1]})
    return curve.describe()


def losses(num_steps, fall, noise=0.01, seed=0):
    """Around 0.5, fallen by a share from the third quarter to the last."""
    rng = np.random.default_rng(seed)
    falling = 0.5 * (1 - fall * np.linspace(-2.5, 1.5, num_steps))
    return falling + noise * rng.standard_normal(num_steps)


@pytest.mark.parametrize("num_steps", [400, 3000])
@pytest.mark.parametrize("num_epochs", [1, 4, 100])
def test_a_falling_loss_is_noticed_and_measured(num_steps, num_epochs):
    steps = losses(num_steps, fall=0.06)
    found = feed(LossCurve(num_steps), np.split(steps, num_epochs))
    assert found["num_steps"] == num_steps
    quarters = steps.reshape(4, -1).mean(1)
    assert found["before"] == pytest.approx(quarters[2], rel=0.01)
    assert found["after"] == pytest.approx(quarters[3], rel=0.01)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_a_loss_that_is_constant_but_for_chance_is_not(noise, seed):
    assert feed(LossCurve(400), [losses(400, 0.0, noise, seed)]) is None


def test_few_steps_are_far_from_converged_whatever_their_loss():
    assert feed(LossCurve(39), [losses(39, fall=0.0)])["num_steps"] == 39
    assert feed(LossCurve(3), [[0.7, 0.6, 0.5]]) is None  # too few for any judgement
    assert feed(LossCurve(400), [[float("nan")] * 400]) is None


def test_where_rows_are_seen_again_only_the_steps_count():
    for num_steps, is_flagged in [(400, False), (80, True)]:
        curve = LossCurve(num_steps)
        feed(curve, [losses(num_steps, fall=0.06)])
        assert curve.describe()["num_steps"] == num_steps
        assert (curve.describe(judge_loss=False) is not None) == is_flagged


def test_a_resumed_training_is_judged_as_a_whole():
    steps = losses(400, fall=0.06)
    expected = feed(LossCurve(400), [steps])
    first, second = LossCurve(400), LossCurve(400)
    means = np.cumsum(steps) / np.arange(1, 401)
    for batch in range(203):
        first.on_train_batch_end(batch, {"loss": means[batch]})
    second.set_state(first.get_state())
    for batch in range(203, 400):
        second.on_train_batch_end(batch, {"loss": means[batch]})
    second.on_epoch_end(0, {"loss": means[-1]})
    assert second.describe() == pytest.approx(expected)
