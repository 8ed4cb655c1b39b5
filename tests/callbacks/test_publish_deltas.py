"""`PublishDeltas`: when it publishes, resumed and repeated training, `TopShare`."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import delta_oracle, published, small_model

import tf_dlrm
from tf_dlrm.callbacks import PublishDeltas, TopShare
from tf_dlrm.serving.deltas.channel import Channel
from tf_dlrm.training.changed_rows import ChangedRows


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "Set one of `every_steps` and `every_seconds`"),
        ({"every_steps": 1, "every_seconds": 1.0}, "Set one of"),
        ({"every_steps": 0}, "`every_steps` must be positive"),
        ({"every_seconds": -1.0}, "`every_seconds` must be positive"),
        (
            {"every_steps": 1, "dtype": "int2"},
            "`dtype` must be one of float32, float16",
        ),
        ({"every_steps": 1, "rows": "all"}, '`rows` must be "touched" or a `TopShare`'),
        ({"every_steps": 1, "full_every": 0}, "`full_every` must be at least 1"),
    ],
)
def test_refused_options(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        PublishDeltas(tmp_path, **options)
    with pytest.raises(ValueError, match="`share` must be above 0 and below 1"):
        TopShare(1.0)


def test_another_model_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(loss="mse")
    with pytest.raises(TypeError, match="PublishDeltas requires a tf_dlrm.DLRM"):
        model.fit(
            np.ones((4, 1)),
            np.ones(4),
            callbacks=[PublishDeltas(tmp_path, every_steps=1)],
            verbose=0,
        )


def test_rows_are_marked_once_and_taken_once():
    model = small_model.compiled()
    rows = ChangedRows(model)
    ids = np.array([[3, -1, 29], [3, 6, 0]])
    rows.on_ids(tf.constant(ids))
    rows.on_ids(tf.constant([[10, 5, 1]]))
    assert {n: list(r) for n, r in rows.peek().items()} == {
        "C0": [3, 10], "C1": [5, 6], "C2": [0, 1, 29],
    }  # fmt: skip
    taken = rows.take()
    assert not any(len(own) for own in rows.take().values())
    rows.mark(taken)
    assert all(np.array_equal(taken[n], own) for n, own in rows.take().items())


@pytest.mark.integration
def test_publications_by_steps_time_and_at_the_end(tmp_path):
    base_dir, callback = published.publish(tmp_path, full=False, every_steps=3)
    assert [p.position for p in callback.publications] == [(1, 0), (1, 1)]
    steps = [m.facts["steps"] for m in Channel(base_dir).manifests(
        Channel(base_dir).read_base(1))]  # fmt: skip
    assert steps == [{"from": 3, "to": 4}]
    _, callback = published.publish(
        tmp_path / "b", full=False, every_steps=None, every_seconds=1e-6
    )
    assert len(callback.publications) == 4
    _, callback = published.publish(tmp_path / "c", full=False, full_every=2)
    positions = [str(p.position) for p in callback.publications]
    assert positions == ["1.0", "1.1", "1.2", "2.0"]


@pytest.mark.integration
def test_fits_in_a_row_continue_the_chain(tmp_path):
    model = small_model.compiled()
    base_dir, callback = published.publish(tmp_path, model=model)
    x, y = small_model.make_data()
    model.fit(x, y, batch_size=32, callbacks=[callback], verbose=0)
    assert callback.publications[-1].position == (1, 5)
    published.assert_states(base_dir, callback.exports)
    model.fit(x, y, batch_size=64, verbose=0)  # nobody watches
    model.fit(x, y, batch_size=64, callbacks=[callback], verbose=0)
    assert callback.publications[-1].position == (2, 0)


@pytest.mark.integration
def test_another_publisher_begins_with_a_base_and_is_noticed(tmp_path):
    model = small_model.compiled()
    base_dir, first = published.publish(tmp_path, full=False, model=model)
    second = PublishDeltas(base_dir, every_steps=1, verbose=0)
    x, y = small_model.make_data()
    model.fit(x, y, batch_size=32, callbacks=[second], verbose=0)
    assert [str(p.position) for p in second.publications] == ["2.0", "2.1"]
    with pytest.raises(FileExistsError, match="00000004 already exists"):
        first.publisher.channel.locked()
        (base_dir / "deltas" / "1" / "00000004").mkdir()
        first.publisher.publish(model, {})


# Resuming


class Stop(Exception):
    pass


def train(folder, stop_at=None, checkpoint_every=3, carries=True, full=False):
    """Train with checkpoints and publications; stop as a kill would, at a step."""
    x, y = small_model.make_data()
    data = resumable(x, y)
    model = small_model.compiled()
    kind = published.FullExports if full else PublishDeltas
    options = {"full_dir": folder / "full"} if full else {"verbose": 0}
    publish = kind(folder / "published", every_steps=2, **options)
    checkpoint = tf_dlrm.callbacks.ResumableTraining(
        folder / "checkpoints", every_steps=checkpoint_every, verbose=0
    )
    if carries:
        checkpoint.carry(publish=publish)

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if stop_at is not None and model.optimizer.iterations.numpy() == stop_at:
                raise Stop

    train_data = checkpoint.resume(model, data)
    model.fit(
        train_data,
        initial_epoch=checkpoint.initial_epoch,
        epochs=1,
        callbacks=[publish, checkpoint, Kill()],
        verbose=0,
    )
    return model, publish


def resumable(x, y, batch_size=8):
    """A dataset that can begin at any batch."""
    from tf_dlrm.training.checkpoints import ResumableInput

    def make(position, seed):
        def rest(epoch, first):
            rows = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
            return rows.skip(first)

        return position.begins().flat_map(rest)

    position_input = ResumableInput({"rows": len(y)}, 0, make, len(y) // batch_size)
    return position_input.attach(
        tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    )


@pytest.mark.breadth(1)
@pytest.mark.parametrize("stop_at", [5, 1, 2, 3, 4, 7])
def test_a_killed_run_loses_no_row(stop_at, tmp_path):
    """Wherever it was killed, the last state equals the full export."""
    with pytest.raises(Stop):
        train(tmp_path, stop_at)
    model, publish = train(tmp_path)
    last = publish.publications[-1].position
    full = tf_dlrm.export_saved_model(model, tmp_path / "end")
    delta_oracle.assert_equal(
        delta_oracle.apply_chain(tmp_path / "published", *last),
        delta_oracle.weights_of(full),
    )
    if stop_at >= 3:  # there is a checkpoint
        assert last.base == 1, "the chain should continue"


@pytest.mark.integration
def test_a_resumed_run_without_its_state_begins_with_a_base(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, 5, carries=False)
    model, publish = train(tmp_path, carries=False)
    assert publish.publications[0].position == (2, 0)
    full = tf_dlrm.export_saved_model(model, tmp_path / "end")
    delta_oracle.assert_equal(
        delta_oracle.apply_chain(
            tmp_path / "published", *publish.publications[-1].position
        ),
        delta_oracle.weights_of(full),
    )


@pytest.mark.integration
def test_a_base_after_the_checkpoint_is_a_gap(tmp_path, capsys):
    with pytest.raises(Stop):
        train(tmp_path, 5)
    model = small_model.compiled()
    tf_dlrm.serving.Publisher(tmp_path / "published").publish(model, None)
    _, publish = train(tmp_path)
    assert publish.publications[0].position == (3, 0)


# TopShare


def test_the_state_of_a_callback_is_json(tmp_path):
    _, callback = published.publish(
        tmp_path, full=False, rows=TopShare(0.2), every_steps=1
    )
    callback._rows.mark({"C2": np.array([0, 29])})
    state = json.loads(json.dumps(callback.get_state()))
    from tf_dlrm.callbacks import publish_deltas

    assert list(publish_deltas._unpack(state["changed"]["C2"])) == [0, 29]
    assert state["base"][0] == 1 and state["sequence"] == 3
    large = np.array([5, 1 << 40, (1 << 40) + 1])
    assert list(publish_deltas._unpack(publish_deltas._pack(large))) == list(large)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_top_share_sends_new_rows_and_the_most_changed(dtype, tmp_path):
    """Waiting rows keep their old value in replicas, and say since which step."""
    model = small_model.compiled()
    publish = PublishDeltas(
        tmp_path, every_steps=1, rows=TopShare(0.3), dtype=dtype, verbose=0
    )
    x, y = small_model.make_data()
    model.fit(x, y, batch_size=16, shuffle=False, callbacks=[publish], verbose=0)
    channel = Channel(tmp_path)
    base = channel.read_base(1)
    seen = {name: set(x["sparse_features"][:16, i]) for i, name in enumerate(NAMES)}
    for number in (1, 2, 3):
        delta = channel.read_delta(base, f"{number:08d}")
        part = x["sparse_features"][16 * number : 16 * (number + 1)]
        for i, name in enumerate(NAMES):
            new = set(part[:, i]) - seen[name]
            assert new <= set(delta.tables[name].ids)
            seen[name] |= new
    stale = publish.publisher.staleness()
    assert stale, "some rows must wait"
    full = tf_dlrm.export_saved_model(model, tmp_path / "full", table_dtype=dtype)
    expected = delta_oracle.weights_of(full)
    got = delta_oracle.apply_chain(tmp_path, 1, 3)
    delta_oracle.assert_equal(got[1:], expected[1:])
    first = {"C0": 0, "C1": 11, "C2": 18}
    waiting = np.concatenate([first[n] + ids for n, (ids, _) in stale.items()])
    fresh = np.setdiff1d(np.arange(48), waiting)
    np.testing.assert_array_equal(got[0][fresh], expected[0][fresh])
    assert all((steps < 4).all() and (steps >= 1).all() for _, steps in stale.values())
    # Waiting rows changed less than the threshold, and the next base has them all.
    facts = channel.read_manifest(base, "00000003").facts
    assert sum(own["rows"] for own in facts["waiting"]) == len(waiting)
    publish.publisher.publish(model, None)
    assert publish.publisher.staleness() == {}


NAMES = ("C0", "C1", "C2")
