"""State k of a published model equals the full export at that step, bit for bit."""

import dataclasses

import numpy as np
import pytest
from helpers import delta_oracle, growing_model, published, small_model
from helpers.devices import on_devices

import tf_dlrm
from tf_dlrm.optimizers import DenseAdam, RowWiseAdagrad, SparseAdam, SparseSGD
from tf_dlrm.serving.deltas.channel import Channel
from tf_dlrm.serving.deltas.state import ModelState, check_layout


def check_states(base_dir, callback):
    """Compare each state with its full export, by NumPy and by `ModelState`."""
    published.assert_states(base_dir, callback.exports)
    channel = Channel(base_dir)
    state = ModelState.load(channel, 1)
    for sequence, path in enumerate(callback.exports):
        state.move_to(channel, sequence)
        weights = [*state.tables, *state.dense]
        delta_oracle.assert_equal(weights, delta_oracle.weights_of(path))
    assert channel.read_head()["sequence"] == len(callback.exports) - 1


@pytest.mark.breadth(2)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int4", "int8"])
def test_each_state_equals_the_full_export(dtype, tmp_path):
    base_dir, callback = published.publish(tmp_path, dtype)
    assert [str(done.position) for done in callback.publications] == [
        "1.0", "1.1", "1.2", "1.3",
    ]  # fmt: skip
    check_states(base_dir, callback)
    # Not every row is in every delta, so the equality says something.
    assert all(done.num_rows < 48 for done in callback.publications[1:])


@pytest.mark.integration
@pytest.mark.parametrize(
    "optimizer",
    [SparseAdam(0.01), RowWiseAdagrad(0.05), SparseSGD(0.1, l2=0.01), DenseAdam(0.01)],
    ids=lambda o: type(o).__name__,
)
def test_optimizers_that_move_all_rows_publish_all_rows(optimizer, tmp_path):
    model = small_model.make_model()
    model.compile("sgd", embedding_optimizer=optimizer)
    base_dir, callback = published.publish(tmp_path, model=model)
    check_states(base_dir, callback)
    moves_all = optimizer.moves_other_rows or optimizer.shrinks_all_rows
    assert all((p.num_rows == 48) == moves_all for p in callback.publications[1:])


@pytest.mark.integration
def test_tables_of_several_widths_and_frozen_ones(tmp_path):
    tables = [
        tf_dlrm.EmbeddingTable("a", 30, 4),
        tf_dlrm.EmbeddingTable("b", 11, 8),
        tf_dlrm.EmbeddingTable("c", 7, 4, trainable=False),
    ]
    spec = tf_dlrm.FeatureSpec(("I0", "I1"), tables)
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1), interaction="cat")
    model.compile("adagrad")
    x, y = small_model.make_data((30, 11, 7))
    base_dir = tmp_path / "published"
    callback = published.FullExports(base_dir, tmp_path / "full", "int8", every_steps=1)
    model.fit(x, y, batch_size=16, callbacks=[callback], verbose=0)
    check_states(base_dir, callback)
    base = Channel(base_dir).read_base(1)
    delta = Channel(base_dir).read_delta(base, "00000001")
    assert not delta.tables["c"].ids.size and delta.tables["a"].ids.size


@pytest.mark.integration
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_sharded_tables(dtype, tmp_path):
    on_devices(2)(publish_sharded)(dtype, str(tmp_path))
    base_dir = tmp_path / "published"
    exports = sorted((tmp_path / "full").iterdir(), key=lambda path: int(path.name))
    assert len(exports) == 3
    published.assert_states(base_dir, exports)
    replica = tf_dlrm.serving.Replica(base_dir)
    assert replica.in_place() == (1, 2)


def publish_sharded(dtype, folder):
    """Train row-, column- and table-wise shards on two devices, and publish."""
    import pathlib

    from helpers import sharded_model

    with sharded_model.strategy_of(2).scope():
        model = sharded_model.make_model(plan=sharded_model.MIXED)
    callback = published.FullExports(
        pathlib.Path(folder, "published"),
        pathlib.Path(folder, "full"),
        dtype,
        every_steps=1,
    )
    data = sharded_model.make_data("one_hot", 48, 16)
    model.fit(data, callbacks=[callback], verbose=0)
    assert len(callback.exports) == 3


@pytest.mark.integration
def test_a_skipped_batch_and_set_tables(tmp_path):
    """A batch that is not applied costs rows, not exactness; a set table is noticed."""
    model = small_model.compiled()
    base_dir, callback = published.publish(tmp_path, model=model)
    model.embedding.set_table("C0", np.ones((11, 4), "float32"))
    x, y = small_model.make_data()
    x["dense_features"][40] = np.nan
    with pytest.warns(RuntimeWarning, match="1 batches"):
        model.fit(x, y, batch_size=32, shuffle=False, callbacks=[callback], verbose=0)
    positions = [str(done.position) for done in callback.publications[4:]]
    assert positions == ["2.0", "2.1"]  # a new base after the tables were set
    delta_oracle.assert_equal(
        delta_oracle.apply_chain(base_dir, 2, 1),
        delta_oracle.weights_of(callback.exports[-1]),
    )


def test_an_export_of_another_form_is_no_base(original):
    base_dir, callback = original
    layout = Channel(base_dir).read_base(1).layout
    prefix = str(base_dir / "1" / "variables" / "variables")
    check_layout(prefix, layout, [49])
    with pytest.raises(ValueError, match="stores its weights in another form"):
        check_layout(prefix, layout, [48])
    fewer = dataclasses.replace(layout, dense=layout.dense[:-1])
    with pytest.raises(ValueError, match="stores its weights in another form"):
        check_layout(prefix, fewer, [49])
    assert callback.publications


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:Growing table")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_growing_tables(dtype, tmp_path):
    """Rows that new ids take over travel with the ids."""
    model = growing_model.make_model()
    base_dir = tmp_path / "published"
    callback = published.FullExports(base_dir, tmp_path / "full", dtype, every_steps=1)
    model.fit(growing_model.make_data(96, 16), callbacks=[callback], verbose=0)
    published.assert_states(base_dir, callback.exports)
    names = growing_model.growing_names(model)
    assert sum(model.embedding.occupancy(name).evictions for name in names) > 0
