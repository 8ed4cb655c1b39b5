"""What XLA compiles, and what runs when nothing more may be compiled."""

import gc
import pathlib
import threading

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_model import compiled, make_data, predictions, tables_of

import tf_dlrm
from tf_dlrm import optimizers
from tf_dlrm.runtime import compiled_code, xla

NEAR_LIMIT = (60_000, 65_530)
pytestmark = pytest.mark.xla
integration = pytest.mark.integration


@pytest.fixture
def code(monkeypatch):
    """A count of its own for the test: that of the process stays as it is."""
    code = compiled_code.CompiledCode()
    code._kernels_per_check = 1
    monkeypatch.setattr(xla, "code", code)
    return code


def fill_after(monkeypatch, num_kernels):
    """Lets the process reach its limit when so many more kernels were traced."""
    calls = []

    def memory_mappings():
        calls.append(1)
        return NEAR_LIMIT if len(calls) > num_kernels else (1_000, 65_530)

    monkeypatch.setattr(compiled_code, "memory_mappings", memory_mappings)
    return calls


def test_mappings_are_those_that_linux_counts():
    used, allowed = compiled_code.memory_mappings()
    if not pathlib.Path("/proc/self/maps").exists():
        assert (used, allowed) == (0, float("inf"))
    else:
        assert 100 < used < allowed


@integration
@pytest.mark.parametrize("num_kernels", (1, 4, 8))
def test_training_that_reaches_the_limit_equals_one_that_does_not(
    num_kernels, code, monkeypatch
):
    """At any kernel of model, optimizer and metrics; the process may be full anywhere
    within a step."""
    data = make_data()
    model = compiled("adagrad")
    initial = model.get_weights()
    with xla.disabled():
        expected = compiled("adagrad")
        expected.set_weights(initial)
        expected.fit(*data, batch_size=16, shuffle=False, verbose=0)

    fill_after(monkeypatch, num_kernels)
    with pytest.warns(RuntimeWarning, match=r"60,000 of the 65,530 memory mappings"):
        model.fit(*data, batch_size=16, shuffle=False, verbose=0)
        model.predict(data[0], verbose=0)
    assert code.is_full and not xla.enabled()
    np.testing.assert_allclose(predictions(model), predictions(expected), atol=1e-6)
    for a, b in zip(tables_of(model), tables_of(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


IDS = {
    "one-hot": tf.constant([[3, 1], [3, -1], [0, 4], [3, 1], [2, 2], [0, 4]]),
    "ragged": tf.ragged.constant(
        [[[3, 3], [1]], [[], [4, 1, 4]], [[0], [0]], [[3], []], [[2, 1, 0], [2]]],
        ragged_rank=2,
        inner_shape=(),
        row_splits_dtype=tf.int64,
    ),
}


def make_layer(optimizer):
    tables = [tf_dlrm.EmbeddingTable(f"C{i}", 5, 4, combiner="mean") for i in (1, 2)]
    layer = tf_dlrm.layers.EmbeddingCollection(tables, seed=3)
    layer.build_optimizer(optimizers.get(optimizer))
    return layer


def step(layer, ids):
    """One traced step whose gradient is the pooled vectors; the tables after it."""
    if isinstance(ids, tf.RaggedTensor):  # uniform in the middle, as batches are
        ids = tf.RaggedTensor.from_uniform_row_length(ids.values, 2)

    @tf.function
    def run(ids):
        pooled = layer(ids)
        layer.apply_gradients(pooled, ids, learning_rate=0.1)
        return pooled

    pooled = run(ids)
    return [pooled, layer.get_table("C1"), layer.get_table("C2")]


CASES = [
    pytest.param(
        optimizer,
        num_kernels,
        form,
        marks=[] if (optimizer, form) == ("adagrad", "one-hot") else integration,
    )
    for optimizer in ("sgd", "adagrad", "row_wise_adagrad", "adam")
    for form in IDS
    for num_kernels in range(2 + (optimizer != "sgd") + (form == "ragged"))
]


@pytest.mark.breadth(1, 9)
@pytest.mark.parametrize("optimizer, num_kernels, form", CASES)
def test_rows_are_the_same_whichever_kernel_is_the_last(
    optimizer, num_kernels, form, code, monkeypatch
):
    with xla.disabled():
        expected = step(make_layer(optimizer), IDS[form])
    calls = fill_after(monkeypatch, num_kernels)
    with pytest.warns(RuntimeWarning, match="run without XLA"):
        result = step(make_layer(optimizer), IDS[form])
    assert code.is_full and len(calls) == num_kernels + 1
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_far_from_the_limit_mappings_are_counted_rarely(code, monkeypatch):
    calls = fill_after(monkeypatch, 1_000)
    del code._kernels_per_check
    kernel = xla.Kernel(lambda x: x, "kernel")
    for _ in range(640):
        code.add(kernel)
    assert len(calls) == 10 and not code.is_full


# Code of kernels that are dead


def compile_and_forget(num_kernels):
    for i in range(num_kernels):
        assert xla.Kernel(lambda x, i=i: x + i, "kernel")(tf.zeros(4))[0] == i
    gc.collect()


@pytest.mark.integration
def test_code_of_dead_kernels_is_given_back(code):
    alive = xla.Kernel(lambda x: 2 * x, "kernel")
    alive(tf.zeros(4))
    compile_and_forget(code._dead_kernels)
    before, _ = compiled_code.memory_mappings()
    xla.Kernel(lambda x: x, "kernel")
    after, _ = compiled_code.memory_mappings()
    assert after < before - 5 * code._dead_kernels
    assert (code._num_compiled, code._num_dead) == (1, 0)
    np.testing.assert_array_equal(alive(tf.ones(4)), 2 * np.ones(4))


def test_code_is_kept_while_few_kernels_are_dead(code):
    compile_and_forget(8)
    before, _ = compiled_code.memory_mappings()
    xla.Kernel(lambda x: x, "kernel")
    after, _ = compiled_code.memory_mappings()
    assert after > before - 8 and code._num_dead == 8


def test_a_process_that_was_full_compiles_again(code, monkeypatch):
    fill_after(monkeypatch, 0)
    with pytest.warns(RuntimeWarning, match="Delete models"):
        compile_and_forget(1)
    assert code.is_full
    fill_after(monkeypatch, 1)
    xla.Kernel(lambda x: x, "kernel")
    assert not code.is_full and xla.enabled()


@pytest.mark.integration
def test_code_is_kept_while_another_thread_is_inside_tensorflow(code):
    inside, done = threading.Event(), threading.Event()

    def wait():
        inside.set()
        done.wait(60)
        return 0

    def run():
        tf.py_function(wait, [], tf.int32)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert inside.wait(60)
        compile_and_forget(code._dead_kernels)
        xla.Kernel(lambda x: x, "kernel")
        assert code._num_dead == code._dead_kernels
    finally:
        done.set()
        thread.join()
    xla.Kernel(lambda x: x, "kernel")
    assert code._num_dead == 0


@pytest.mark.integration
def test_code_is_kept_while_a_graph_is_traced(code):
    compile_and_forget(code._dead_kernels)
    tf.function(lambda: xla.Kernel(lambda x: x, "kernel") and tf.zeros(1))()
    assert code._num_dead == code._dead_kernels


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
