"""Each optimizer against its formula in float64, on some rows with repeats."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.optimizer_oracle import CASES

from tf_dlrm import EmbeddingTable, optimizers
from tf_dlrm.layers import EmbeddingCollection

pytestmark = pytest.mark.engines

VOCABULARY, WIDTH, STEPS = 12, 3, 5


def batches():
    """Ids with many repeats, and gradients of size about 1."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        ids = rng.integers(0, VOCABULARY // 2, (6, 1)) * 2
        yield ids, rng.normal(size=(6, 1, WIDTH)).astype("float32")


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("case", CASES)
def test_equals_float64(case, graph):
    make, update = CASES[case]
    layer = EmbeddingCollection([EmbeddingTable("t", VOCABULARY, WIDTH)])
    layer.build_optimizer(make())
    expected, state = layer.get_table("t").astype(np.float64), {}
    apply = tf.function(layer.apply_gradients) if graph else layer.apply_gradients
    for step, (ids, gradients) in enumerate(batches(), start=1):
        apply(tf.constant(gradients), tf.constant(ids))
        dense = np.zeros_like(expected)
        np.add.at(dense, ids[:, 0], gradients[:, 0].astype(np.float64))
        update(expected, dense, state, step)
    np.testing.assert_allclose(layer.get_table("t"), expected, atol=2e-6)
    assert int(layer.iterations) == STEPS


@pytest.mark.parametrize("case", ["adagrad_torch", "adam"])
def test_equals_torch(case):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.sparse.check_sparse_tensor_invariants.disable()  # else it warns
    layer = EmbeddingCollection([EmbeddingTable("t", VOCABULARY, WIDTH)])
    layer.build_optimizer(CASES[case][0]())
    bag = torch.nn.EmbeddingBag(VOCABULARY, WIDTH, mode="sum", sparse=True)
    bag.weight.data = torch.tensor(layer.get_table("t"))
    other = {
        "adagrad_torch": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-7),
        "adam": lambda p: torch.optim.SparseAdam(list(p), lr=0.1, eps=1e-7),
    }[case](bag.parameters())
    for ids, gradients in batches():
        layer.apply_gradients(tf.constant(gradients), tf.constant(ids))
        other.zero_grad()
        out = bag(torch.tensor(ids))
        (out * torch.tensor(gradients[:, 0])).sum().backward()
        other.step()
    np.testing.assert_allclose(
        layer.get_table("t"), bag.weight.detach().numpy(), atol=2e-6
    )


def test_adam_equals_keras_where_every_row_is_touched():
    rng = np.random.default_rng(1)
    layer = EmbeddingCollection([EmbeddingTable("t", 4, WIDTH)])
    layer.build_optimizer(optimizers.from_keras(keras.optimizers.Adam(0.05)))
    dense = keras.Variable(layer.get_table("t"))
    adam = keras.optimizers.Adam(0.05)
    for _ in range(4):
        g = rng.normal(size=(4, 1, WIDTH)).astype("float32")
        layer.apply_gradients(
            tf.constant(g), tf.range(4)[:, None], learning_rate=adam.learning_rate
        )
        adam.apply([tf.constant(g[:, 0])], [dense])
    # Keras corrects the bias in float32: 1 - 0.999**t has four digits left.
    np.testing.assert_allclose(layer.get_table("t"), dense.numpy(), atol=1e-5)


def test_ftrl_equals_keras_where_every_row_is_touched():
    rng = np.random.default_rng(1)
    options = {"l1_regularization_strength": 0.1, "l2_regularization_strength": 0.2}
    layer = EmbeddingCollection([EmbeddingTable("t", 4, WIDTH)])
    layer.build_optimizer(optimizers.SparseFtrl(0.05, beta=0.3, **options))
    dense = keras.Variable(layer.get_table("t"))
    ftrl_of_keras = keras.optimizers.Ftrl(0.05, beta=0.3, **options)
    for _ in range(4):
        g = rng.normal(size=(4, 1, WIDTH)).astype("float32")
        layer.apply_gradients(tf.constant(g), tf.range(4)[:, None])
        ftrl_of_keras.apply([tf.constant(g[:, 0])], [dense])
    np.testing.assert_allclose(layer.get_table("t"), dense.numpy(), atol=2e-6)


def test_optimizers_by_table_equal_each_alone():
    """Tables of one width, interleaved optimizers, ragged bags with missing ids."""
    rng = np.random.default_rng(2)
    names = ["a", "b", "c", "d"]
    by_table = dict(zip(names, ["sgd", "adagrad", "row_wise", "adagrad"]))
    tables = [EmbeddingTable(name, 5 + i, WIDTH) for i, name in enumerate(names)]
    made = {case: CASES[case][0]() for case in set(by_table.values())}
    mixed = EmbeddingCollection(tables)
    mixed.build_optimizer({name: made[case] for name, case in by_table.items()})
    alone = {}
    for table in tables:
        alone[table.name] = EmbeddingCollection([table])
        alone[table.name].build_optimizer(CASES[by_table[table.name]][0]())
        alone[table.name].set_table(table.name, mixed.get_table(table.name))
    for _ in range(3):
        ids = rng.integers(-1, 5, (7, 4, 2))
        g = rng.normal(size=(7, 4, WIDTH)).astype("float32")
        mixed.apply_gradients(tf.constant(g), tf.constant(ids))
        for i, name in enumerate(names):
            one = (tf.constant(g[:, i : i + 1]), tf.constant(ids[:, i : i + 1]))
            alone[name].apply_gradients(*one)
    for name in names:
        np.testing.assert_allclose(
            mixed.get_table(name), alone[name].get_table(name), atol=1e-6
        )
        for slot, values in alone[name].get_state()["slots"][name].items():
            np.testing.assert_allclose(
                mixed.get_state([name])["slots"][name][slot], values, atol=1e-6
            )


def test_learning_rate_is_read_live():
    layer = EmbeddingCollection([EmbeddingTable("t", 2, 1, initializer="zeros")])
    optimizer = optimizers.SparseSGD(1.0)
    layer.build_optimizer(optimizer)
    apply = tf.function(layer.apply_gradients)
    batch = tf.ones((1, 1, 1)), tf.zeros((1, 1), tf.int32)
    apply(*batch)
    optimizer.learning_rate = 0.25
    apply(*batch)
    assert layer.get_table("t")[0, 0] == -1.25


@pytest.mark.parametrize("jit", [True, False], ids=["xla", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_learning_rate_0_leaves_tables_as_they_are(case, jit):
    """As a warm-up from 0 begins; then steps go on as if nothing had been."""
    layer = EmbeddingCollection([EmbeddingTable("t", VOCABULARY, WIDTH)])
    optimizer = CASES[case][0]()
    rate = optimizer.learning_rate
    optimizer.learning_rate = 0.0
    layer.build_optimizer(optimizer)
    before = layer.get_table("t")
    layer.use_xla(jit)
    for ids, gradients in batches():
        layer.apply_gradients(tf.constant(gradients), tf.constant(ids))
    np.testing.assert_array_equal(layer.get_table("t"), before)
    slots = layer.get_state()["slots"]["t"]
    assert all(np.isfinite(values).all() for values in slots.values())
    optimizer.learning_rate = rate
    layer.apply_gradients(tf.constant(gradients), tf.constant(ids))
    after = layer.get_table("t")
    assert np.isfinite(after).all()
    assert np.abs(after - before)[ids[:, 0]].max() > 0


def test_ftrl_at_learning_rate_0_keeps_its_state():
    layer = EmbeddingCollection([EmbeddingTable("t", VOCABULARY, WIDTH)])
    optimizer = CASES["ftrl"][0]()
    layer.build_optimizer(optimizer)
    rates = [0.1, 0.0, 0.1]
    states = []
    for rate, (ids, gradients) in zip(rates, batches()):
        optimizer.learning_rate = rate
        layer.apply_gradients(tf.constant(gradients), tf.constant(ids))
        states.append(layer.get_state()["slots"]["t"])
    for name in ("accumulator", "linear"):
        np.testing.assert_array_equal(states[0][name], states[1][name])
        assert np.abs(states[2][name] - states[1][name]).max() > 0


def test_schedule_counts_steps():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.5])
    layer = EmbeddingCollection([EmbeddingTable("t", 2, 1, initializer="zeros")])
    layer.build_optimizer(optimizers.SparseSGD(schedule))
    apply = tf.function(layer.apply_gradients)
    for _ in range(3):
        apply(tf.ones((1, 1, 1)), tf.zeros((1, 1), tf.int32))
    assert layer.get_table("t")[0, 0] == -2.0


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case):
    optimizer = CASES[case][0]()
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()


def test_config_round_trip_of_a_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    config = keras.saving.serialize_keras_object(optimizers.SparseAdam(schedule))
    again = keras.saving.deserialize_keras_object(config)
    assert float(again.learning_rate(10)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "optimizer, word",
    [
        (keras.optimizers.Adam(weight_decay=0.1), "weight_decay=0.1"),
        (keras.optimizers.Adam(amsgrad=True), "amsgrad=True"),
        (keras.optimizers.Adam(clipnorm=1.0), "clipnorm=1.0"),
        (keras.optimizers.SGD(clipvalue=1.0), "clipvalue=1.0"),
        (keras.optimizers.SGD(global_clipnorm=1.0), "global_clipnorm=1.0"),
        (keras.optimizers.SGD(momentum=0.9), "momentum=0.9"),
        (keras.optimizers.SGD(use_ema=True), "use_ema=True"),
        (keras.optimizers.SGD(gradient_accumulation_steps=2), "gradient_accum"),
        (keras.optimizers.SGD(loss_scale_factor=2.0), "loss_scale_factor"),
        (keras.optimizers.RMSprop(), "RMSprop has no row-sparse counterpart"),
        (keras.optimizers.AdamW(), "AdamW has no row-sparse counterpart"),
    ],
)
def test_options_that_cannot_be_exact_are_refused_by_name(optimizer, word):
    with pytest.raises(ValueError, match=word):
        optimizers.from_keras(optimizer)


def test_get_by_name_object_and_config():
    assert isinstance(optimizers.get("row_wise_adagrad"), optimizers.RowWiseAdagrad)
    assert isinstance(optimizers.get("RowWiseAdagrad"), optimizers.RowWiseAdagrad)
    assert optimizers.get("adam").learning_rate is None
    from_object = optimizers.get(keras.optimizers.SGD(0.5))
    assert from_object.learning_rate == 0.5
    with pytest.raises(ValueError, match="`embedding_optimizer` must be"):
        optimizers.get("lion")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: optimizers.SparseSGD("fast"), "`learning_rate` must be"),
        (lambda: optimizers.SparseAdam(beta_1=1.0), "`beta_1`"),
        (lambda: optimizers.SparseAdagrad(epsilon=-1.0), "`epsilon`"),
        (
            lambda: optimizers.RowWiseAdagrad(initial_accumulator_value=-1),
            "`initial_accumulator_value`",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_learning_rates_that_cannot_be_are_refused():
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be finite and not negative"):
            optimizers.SparseSGD(value)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    with pytest.raises(ValueError, match="is a schedule and cannot be set"):
        optimizers.SparseSGD(schedule).learning_rate = 0.1


def test_a_rate_that_follows_needs_one_to_follow():
    layer = EmbeddingCollection([EmbeddingTable("t", 2, 1)])
    optimizer = optimizers.get("sgd")
    layer.build_optimizer(optimizer)
    with pytest.raises(ValueError, match="SparseSGD has no learning rate. Set one"):
        layer.apply_gradients(tf.ones((1, 1, 1)), tf.zeros((1, 1), tf.int32))
    with pytest.raises(ValueError, match="follows the learning rate of the model"):
        optimizer.learning_rate = 0.1


def test_an_optimizer_without_mathematics_is_refused():
    class Mine(optimizers.SparseOptimizer):
        pass

    with pytest.raises(TypeError, match="Mine must define `apply`"):
        Mine(0.1).apply(None, {}, 0.1, 1)


OPTIMIZERS_OF_KERAS = sorted(
    name
    for name, kind in vars(keras.optimizers).items()
    if isinstance(kind, type)
    and issubclass(kind, keras.optimizers.Optimizer)
    and kind is not keras.optimizers.Optimizer
)
EXACT = {"SGD", "Adagrad", "Adam", "Ftrl"}
REFUSED = {"LossScaleOptimizer", "ScheduleFreeAdamW", "MultiOptimizer"}


def make_optimizer(name):
    kind = getattr(keras.optimizers, name)
    if name == "LossScaleOptimizer":
        return kind(keras.optimizers.SGD(0.1))
    if name == "MultiOptimizer":
        return kind(keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1)))
    if name == "Adafactor":
        return kind(0.1, epsilon_1=1e-16)
    return kind(0.1)


@pytest.mark.parametrize("epsilon_1", [1e-30, 1e-16])
def test_an_adafactor_that_divides_by_zero_is_refused(epsilon_1):
    """Keras' own makes a kernel NaN if a row and a column have no gradient."""
    gradient = np.random.default_rng(0).normal(size=(3, 4))
    gradient[1], gradient[:, 2] = 0.0, 0.0
    kernel = keras.Variable(np.ones((3, 4), "float32"))
    optimizer = keras.optimizers.Adafactor(0.1, epsilon_1=epsilon_1)
    optimizer.build([kernel])
    optimizer.apply([gradient.astype("float32")], [kernel])
    if np.isfinite(kernel.numpy()).all():
        optimizers.check_dense_optimizer(optimizer)
        return
    assert epsilon_1 == 1e-30
    with pytest.raises(ValueError, match=r"Adafactor\(epsilon_1=1e-16\)"):
        optimizers.check_dense_optimizer(optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS_OF_KERAS)
def test_every_optimizer_of_keras_is_exact_or_refused_by_name(name):
    optimizer = make_optimizer(name)
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"{name} is not supported"):
            optimizers.check_dense_optimizer(optimizer)
        with pytest.raises(ValueError, match=f"{name} is not supported"):
            optimizers.get(optimizer)
        return
    optimizers.check_dense_optimizer(optimizer)  # for the MLPs it is Keras' own
    if name in EXACT:
        counterpart = optimizers.from_keras(optimizer)
        assert type(counterpart).__name__ == f"Sparse{name}"
    else:
        with pytest.raises(ValueError, match=f"{name} has no row-sparse counterpart"):
            optimizers.from_keras(optimizer)


@pytest.mark.parametrize(
    "option", ["l2_shrinkage_regularization_strength", "learning_rate_power"]
)
def test_what_ftrl_has_no_counterpart_of_is_refused(option):
    value = {"learning_rate_power": -0.4}.get(option, 0.1)
    with pytest.raises(ValueError, match=option):
        optimizers.from_keras(keras.optimizers.Ftrl(0.1, **{option: value}))


def test_ftrl_of_keras_keeps_its_options():
    options = {
        "initial_accumulator_value": 0.3,
        "l1_regularization_strength": 0.1,
        "l2_regularization_strength": 0.2,
        "beta": 0.4,
    }
    made = optimizers.from_keras(keras.optimizers.Ftrl(0.1, **options), 0.1)
    assert made.get_config() == {"learning_rate": pytest.approx(0.1), **options}
