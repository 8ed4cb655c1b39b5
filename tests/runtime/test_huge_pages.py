"""Advice to the system: followed or not, a variable's values are the same."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tf_dlrm.runtime import huge_pages


@pytest.fixture
def advice(monkeypatch):
    """Advice as it was given, and what the system answers to each kind (0: taken)."""
    record = types.SimpleNamespace(given=[], answers={})

    def madvise(start, num_bytes, kind):
        record.given.append((start, num_bytes, kind))
        return record.answers.get(kind, 0)

    libc = types.SimpleNamespace(madvise=madvise)
    names = dict(vars(huge_pages.ctypes), CDLL=lambda *args, **kwargs: libc)
    monkeypatch.setattr(huge_pages, "ctypes", types.SimpleNamespace(**names))
    monkeypatch.setattr(huge_pages, "sys", types.SimpleNamespace(platform="linux"))
    monkeypatch.setattr(huge_pages, "_MIN_BYTES", 4 << 20)
    monkeypatch.delenv("TF_DLRM_HUGE_PAGES", raising=False)
    return record


def make_variable(num_bytes=8 << 20):
    with tf.device("CPU"):
        return tf.Variable(tf.ones((num_bytes // 256, 64)))


def test_whole_pages_inside_of_the_buffer_are_advised_then_collapsed(advice):
    variable = make_variable()
    assert huge_pages.use_for(variable)
    assert [kind for _, _, kind in advice.given] == [14, 25]  # linux/mman.h
    first = np.frombuffer(memoryview(variable.read_value()), np.uint8).ctypes.data
    for start, num_bytes, _ in advice.given:
        assert start % (2 << 20) == num_bytes % (2 << 20) == 0
        assert first <= start and start + num_bytes <= first + (8 << 20)
        assert num_bytes >= 6 << 20


@pytest.mark.parametrize("kind, calls", [(14, 1), (25, 2)], ids=["advice", "collapse"])
def test_a_system_that_refuses_is_no_error(advice, kind, calls):
    advice.answers[kind] = -1
    assert not huge_pages.use_for(make_variable())
    assert len(advice.given) == calls


def test_where_it_cannot_help_the_system_is_not_asked(advice, monkeypatch):
    variable = make_variable()
    assert not huge_pages.use_for(make_variable(2 << 20))
    with tf.Graph().as_default():
        assert not huge_pages.use_for(variable)
    assert not huge_pages.use_for(types.SimpleNamespace(device="/device:GPU:0"))
    monkeypatch.setattr(huge_pages.sys, "platform", "darwin")
    assert not huge_pages.use_for(variable)
    monkeypatch.setattr(huge_pages.sys, "platform", "linux")
    monkeypatch.setenv("TF_DLRM_HUGE_PAGES", "0")
    assert not huge_pages.use_for(variable)
    assert not advice.given
    monkeypatch.setenv("TF_DLRM_HUGE_PAGES", "1")
    assert huge_pages.use_for(variable)


def test_values_stay_and_can_be_written(monkeypatch):
    """With the real system call, whatever this system says to it."""
    monkeypatch.setattr(huge_pages, "_MIN_BYTES", 4 << 20)
    variable = make_variable()
    assert huge_pages.use_for(variable) in (True, False)
    variable.scatter_update(tf.IndexedSlices(tf.zeros((1, 64)), [3]))
    values = variable.numpy()
    assert not values[3].any()
    assert (np.delete(values, 3, axis=0) == 1.0).all()
