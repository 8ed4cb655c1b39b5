"""What runs when nothing more may be compiled."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from small_model import compiled, make_data, predictions, tables_of

from tf_dlrm import xla


@pytest.fixture
def room(monkeypatch):
    room = xla._Room()
    monkeypatch.setattr(xla, "_room", room)
    return room


def test_mappings_are_those_that_linux_counts():
    used, allowed = xla.memory_mappings()
    if not pathlib.Path("/proc/self/maps").exists():
        assert (used, allowed) == (0, float("inf"))
    else:
        assert 100 < used < allowed


def test_near_the_limit_training_goes_on_without_xla(room, monkeypatch):
    expected = compiled()
    initial = expected.get_weights()
    expected.fit(*make_data(), batch_size=16, shuffle=False, verbose=0)

    room._traced_per_check = 1
    monkeypatch.setattr(xla, "memory_mappings", lambda: (60_000, 65_530))
    model = compiled()
    with pytest.warns(RuntimeWarning, match=r"60,000 of the 65,530 memory mappings"):
        model.predict(make_data()[0], verbose=0)
    assert room.is_used_up and not xla.enabled()
    model = compiled()
    model.set_weights(initial)
    model.fit(*make_data(), batch_size=16, shuffle=False, verbose=0)
    np.testing.assert_allclose(predictions(model), predictions(expected), atol=1e-6)
    for a, b in zip(tables_of(model), tables_of(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_far_from_the_limit_it_is_looked_at_rarely(room, monkeypatch):
    calls = []
    monkeypatch.setattr(
        xla, "memory_mappings", lambda: calls.append(1) or (1_000, 65_530)
    )
    for _ in range(640):
        room.take()
    assert len(calls) == 10 and not room.is_used_up


def test_kernels_of_a_model_do_not_count_as_one_that_is_traced_too_often(caplog):
    """TensorFlow warns of a function that is traced again and again."""
    functions = [
        lambda x: x + 1,
        lambda x: x + 2,
        lambda x: x + 3,
        lambda x: x + 4,
        lambda x: x + 5,
        lambda x: x + 6,
        lambda x: x + 7,
    ]

    def warnings_of(kernels):
        caplog.clear()
        for kernel in kernels:
            kernel(tf.zeros(2))
        return [r for r in caplog.records if "retracing" in r.getMessage()]

    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:
        assert warnings_of(tf.function(functions[0]) for _ in functions)
        assert not warnings_of(xla.Kernel(each, "kernel") for each in functions[1:])
    finally:
        logger.removeHandler(caplog.handler)
