"""Replicas: in place, as versions for servers, back, and while they answer."""

import json
import pathlib
import threading

import numpy as np
import pytest
import tensorflow as tf
from helpers import delta_oracle, published

import tf_dlrm
from tf_dlrm.serving import Replica, compact, remove_old_bases, rollback
from tf_dlrm.serving.c_library import SavedModel
from tf_dlrm.serving.deltas.channel import Channel


def test_in_place_forward_and_back(base_dir, answers):
    replica = Replica(base_dir)
    assert replica.position is None and replica.head() == (1, 3)
    assert replica.in_place() == (1, 3)
    for sequence in (1, 0, 2):
        assert rollback(base_dir, sequence) == (1, sequence)
        assert replica.in_place() == (1, sequence)
        answer = replica.predict(published.REQUEST)
        assert answer.position == (1, sequence)
        np.testing.assert_array_equal(answer.probabilities, answers[sequence])
    assert tf_dlrm.serving.release(base_dir) == (1, 3)
    replica.in_place()
    answer = replica.predict(published.REQUEST, minimum=(1, 3))
    np.testing.assert_array_equal(answer.probabilities, answers[3])
    assert all(published.differs(a, b) for a, b in zip(answers, answers[1:]))


def test_materialized_versions_equal_full_exports(base_dir, original, tmp_path):
    replica = Replica(base_dir)
    rollback(base_dir, 1)
    served = tmp_path / "served"
    paths = [replica.materialize(served)]
    assert replica.materialize(served) is None  # it has this state
    tf_dlrm.serving.release(base_dir)
    paths.append(replica.materialize(served))
    rollback(base_dir, 0)
    paths.append(replica.materialize(served))
    assert [pathlib.Path(path).name for path in paths] == ["1", "2", "3"]
    assert {path.name for path in served.iterdir()} == {"2", "3"}  # keep=2
    for path, sequence in zip(paths[1:], (3, 0)):
        full = original[1].exports[sequence]
        delta_oracle.assert_equal(
            delta_oracle.weights_of(path), delta_oracle.weights_of(full)
        )
        np.testing.assert_array_equal(
            published.answers_of(path), published.answers_of(full)
        )
        described = json.loads(
            (pathlib.Path(path) / "assets.extra/tf_dlrm.json").read_text()
        )
        assert described["delta"]["sequence"] == sequence


@pytest.mark.integration
def test_a_materialized_version_passes_the_check_of_exports(base_dir, tmp_path):
    path = Replica(base_dir).materialize(tmp_path / "served")
    report = tf_dlrm.serving.verify_saved_model(path)
    assert max(report["largest_difference"].values()) <= 1e-6
    assert (pathlib.Path(path) / "assets.extra/tf_serving_warmup_requests").is_file()


@pytest.mark.integration
def test_a_server_without_python_applies_a_delta(base_dir, answers):
    """The signature `apply_delta`, called through TensorFlow's C library."""
    model = SavedModel(base_dir / "1")
    before = model.run("serving_default", published.REQUEST)
    np.testing.assert_allclose(before, answers[0], atol=1e-6)
    channel = Channel(base_dir)
    base = channel.read_base(1)
    for sequence in (1, 2, 3):
        delta = channel.read_delta(base, f"{sequence:08d}")
        numbers, rows = [], []
        for _, table, first, _, _, _, place in base.layout.places:
            numbers.append(delta.tables[table].ids - first + place)
            rows.append(delta.tables[table].rows)
        inputs = {
            "from_sequence": np.int64(sequence - 1).reshape(()),
            "to_sequence": np.int64(sequence).reshape(()),
            "rows_0": np.concatenate(numbers),
            "values_0": np.concatenate(rows),
            **{f"dense_{j}": array for j, array in enumerate(delta.dense)},
        }
        model.run("apply_delta", inputs, "sequence")
        after = model.run("serving_default", published.REQUEST)
        np.testing.assert_allclose(after, answers[sequence], atol=1e-6)
    with pytest.raises(ValueError, match="The delta follows"):
        model.run("apply_delta", inputs, "sequence")
    inputs |= {"from_sequence": np.array(3), "rows_0": inputs["rows_0"] + 100}
    with pytest.raises(ValueError, match="out of range"):
        model.run("apply_delta", inputs, "sequence")
    after = model.run("serving_default", published.REQUEST)
    np.testing.assert_allclose(after, answers[3], atol=1e-6)


def test_every_answer_is_of_one_state(base_dir, answers):
    """Answers while deltas are applied equal those of the state that they name."""
    rollback(base_dir, 0)
    replica = Replica(base_dir)
    replica.in_place()
    stop, wrong, seen = threading.Event(), [], set()

    def ask():
        while not stop.is_set():
            answer = replica.predict(published.REQUEST)
            seen.add(answer.position.sequence)
            expected = answers[answer.position.sequence]
            if published.differs(answer.probabilities, expected):
                wrong.append(answer.position)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for sequence in (1, 2, 3):
        tf_dlrm.serving.release(base_dir, sequence)
        replica.in_place()
        replica.predict(published.REQUEST)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and 3 in seen


def test_a_minimum_is_waited_for(base_dir, answers):
    rollback(base_dir, 1)
    replica = Replica(base_dir)
    replica.in_place()
    with pytest.raises(TimeoutError, match="not at 1.3 after 0.05 s; it is at 1.1"):
        replica.predict(published.REQUEST, minimum=(1, 3), timeout=0.05)
    tf_dlrm.serving.release(base_dir)
    later = threading.Timer(0.05, replica.in_place)
    later.start()
    answer = replica.predict(published.REQUEST, minimum=(1, 3))
    later.join()
    np.testing.assert_array_equal(answer.probabilities, answers[3])


@pytest.mark.integration
def test_following_says_what_it_does(base_dir, answers):
    rollback(base_dir, 2)
    replica, lines, looks = Replica(base_dir), [], []
    head = (base_dir / "HEAD.json").read_text()

    def until():
        looks.append(1)
        if len(looks) == 3:
            (base_dir / "HEAD.json").write_text("{")
        if len(looks) == 5:
            (base_dir / "HEAD.json").write_text(head)
            tf_dlrm.serving.release(base_dir)
        return len(looks) == 7

    replica.follow(0.0, until=until, say=lines.append)
    assert len(lines) == 3 and lines[0].startswith("At 1.2 after")
    assert lines[1].startswith("Stays at 1.2:") and "HEAD.json is damaged" in lines[1]
    assert lines[2].startswith("At 1.3 after")


@pytest.mark.breadth(1)
@pytest.mark.parametrize("keep", [True, False])
def test_several_deltas_in_one_have_an_equal_result(keep, base_dir, original, answers):
    rollback(base_dir, 1)
    replica = Replica(base_dir)
    replica.in_place()
    name = compact(base_dir, 1, 3, keep=True) if keep else None
    if not keep:
        with pytest.raises(ValueError, match="HEAD is at sequence 1, which would be"):
            compact(base_dir, 1, 3)
        tf_dlrm.serving.release(base_dir)
        name = compact(base_dir, 1, 3)
        with pytest.raises(ValueError, match="Delta 1 of base 1 is missing"):
            rollback(base_dir, 1)
    tf_dlrm.serving.release(base_dir)
    assert name == "00000001-00000003"
    # One replica is in the middle, the other one begins with the base.
    for own in (replica, Replica(base_dir)):
        assert own.in_place() == (1, 3)
        answer = own.predict(published.REQUEST)
        np.testing.assert_array_equal(answer.probabilities, answers[3])
    path = replica.materialize(base_dir.parent / "served")
    delta_oracle.assert_equal(
        delta_oracle.weights_of(path), delta_oracle.weights_of(original[1].exports[3])
    )


@pytest.mark.integration
def test_old_bases_are_removed_but_never_that_of_head(tmp_path):
    base_dir, _ = published.publish(tmp_path, full=False, full_every=1)
    channel = Channel(base_dir)
    assert channel.bases() == [1, 2] and channel.read_head()["base"] == 2
    rollback(base_dir, 1, base=1)
    assert remove_old_bases(base_dir, keep=1) == []
    tf_dlrm.serving.release(base_dir)
    replica = Replica(base_dir)
    assert replica.in_place() == (2, 1)
    assert remove_old_bases(base_dir, keep=1) == [1]
    assert channel.bases() == [2] and not (base_dir / "1").exists()


@pytest.mark.integration
def test_an_address_without_renames(tmp_path, answers, original):
    """`tf.io.gfile`'s file system in memory, through which replicas follow too."""
    address = f"ram://published/{tmp_path.name}"
    callback = tf_dlrm.callbacks.PublishDeltas(address, every_steps=1, verbose=0)
    model = original[1].model
    x, y = published.small_model.make_data()
    model.fit(x, y, batch_size=32, callbacks=[callback], verbose=0)
    replica = Replica(address)
    assert replica.in_place() == (1, 1)
    full = tf_dlrm.export_saved_model(model, tmp_path / "full")
    answer = replica.predict(published.REQUEST)
    np.testing.assert_array_equal(answer.probabilities, published.answers_of(full))
    path = replica.materialize(tmp_path / "served")
    delta_oracle.assert_equal(
        delta_oracle.weights_of(path), delta_oracle.weights_of(full)
    )
    assert tf.io.gfile.exists(f"{address}/HEAD.json")
