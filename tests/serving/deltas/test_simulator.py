"""Processes of their own: replicas with delays, losses and kills; 500 kills in all."""

import collections
import pathlib
import random
import time

import pytest
import tensorflow as tf
from helpers import delta_oracle, fresh_processes

import tf_dlrm
from tf_dlrm.serving.deltas.channel import Channel
from tf_dlrm.serving.deltas.state import ModelState


@pytest.mark.parametrize(
    "num_replicas, num_states, num_kills",
    [
        pytest.param(3, 8, 2, marks=pytest.mark.integration),
        pytest.param(8, 40, 60, marks=pytest.mark.slow),
    ],
)
def test_every_answer_is_of_exactly_one_state(
    num_replicas, num_states, num_kills, tmp_path
):
    """The states are the full exports that the publisher wrote beside its deltas."""
    source, stop = tmp_path / "published", tmp_path / "stop"
    rng = random.Random(1)
    publisher = fresh_processes.start(
        fresh_processes.publish, str(tmp_path), num_states, 0.2
    )

    def start(number):
        log = tmp_path / f"{number}.jsonl"
        return fresh_processes.start(
            fresh_processes.replicate,
            str(source),
            str(tmp_path / f"copy_{number}"),
            rng.randrange(1 << 30),
            str(log),
            str(stop),
        )

    replicas = [start(number) for number in range(num_replicas)]
    kills = 0
    while publisher.is_alive() or kills < num_kills:
        time.sleep(rng.uniform(0.2, 1.5))
        if kills < num_kills:
            number = rng.randrange(num_replicas)
            fresh_processes.kill(replicas[number])
            replicas[number] = start(number)
            kills += 1
    publisher.join()
    assert publisher.exitcode == 0
    stop.write_text("")
    for replica in replicas:
        replica.join(300)
        assert replica.exitcode == 0
    lines = fresh_processes.read_lines(tmp_path / "states.jsonl")
    states = {tuple(line["position"]): line["answers"] for line in lines}
    assert len(states) == num_states == len(set(states.values()))
    head = Channel(source).read_head()
    seen = collections.Counter()
    for number in range(num_replicas):
        lines = fresh_processes.read_lines(tmp_path / f"{number}.jsonl")
        for line in lines:
            if "answers" in line:
                assert line["answers"] == states[tuple(line["position"])]
                seen[tuple(line["position"])] += 1
        assert lines[-1]["end"] == [head["base"], head["sequence"]]
    assert len(seen) > 2 and sum(seen.values()) > num_replicas


def check_whole(base_dir):
    """Every base and delta is whole, and HEAD names a state that loads."""
    channel = Channel(base_dir)
    for version in channel.bases():
        base = channel.read_base(version, verify=True)
        for manifest in channel.manifests(base):
            channel.read_delta(base, manifest.name)
    head = channel.read_head()
    if head is not None:
        state = ModelState.load(channel, head["base"])
        state.move_to(channel, head["sequence"])
        assert state.identity == head["state"]


@pytest.mark.parametrize(
    "num_kills",
    [
        pytest.param(2, marks=pytest.mark.integration),
        pytest.param(100, marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_loses_no_delta(num_kills, tmp_path):
    """The last state after all kills equals the full export at the end."""
    rng, number, kills = random.Random(2), 0, 0
    while kills < num_kills:
        folder = tmp_path / str(number)
        while kills < num_kills and not (folder / "done").exists():
            kills += train_for(folder, rng.uniform(1.5, 6.0))
            check_whole(folder / "published")
        train_for(folder, None)
        check_whole(folder / "published")
        head = Channel(folder / "published").read_head()
        (end,) = [p for p in (folder / "end").iterdir() if p.name.isdecimal()]
        delta_oracle.assert_equal(
            delta_oracle.apply_chain(
                folder / "published", head["base"], head["sequence"]
            ),
            delta_oracle.weights_of(end),
        )
        number += 1


def train_for(folder, seconds):
    """Train until the end, or for some seconds; return whether it was killed."""
    process = fresh_processes.start(fresh_processes.train_until_killed, str(folder))
    process.join(seconds)
    if process.is_alive():
        fresh_processes.kill(process)
        return True
    assert process.exitcode == 0
    return False


@pytest.mark.parametrize(
    "num_kills",
    [
        pytest.param(5, marks=pytest.mark.integration),
        pytest.param(200, marks=pytest.mark.slow),
    ],
)
def test_a_killed_writer_leaves_no_partial_delta(num_kills, base_dir):
    rng, last = random.Random(3), 3
    for _ in range(num_kills):
        process = fresh_processes.start(
            fresh_processes.write_until_killed, str(base_dir)
        )
        process.join(rng.uniform(0.5, 1.5))
        fresh_processes.kill(process)
        channel = Channel(base_dir)
        head = channel.read_head()
        manifests = channel.manifests(channel.read_base(1))
        sequences = [manifest.sequence for manifest in manifests]
        assert sequences == list(range(1, sequences[-1] + 1))
        # A writer that is killed before it moves HEAD leaves that to the next one.
        assert head["sequence"] <= sequences[-1]
        for manifest in manifests[last:]:
            channel.read_delta(channel.read_base(1), manifest.name)
        last = len(manifests)
    check_whole(base_dir)
    assert last > 3


@pytest.mark.parametrize(
    "num_kills",
    [
        pytest.param(3, marks=pytest.mark.integration),
        pytest.param(200, marks=pytest.mark.slow),
    ],
)
def test_a_killed_replica_leaves_no_partial_version(num_kills, base_dir, tmp_path):
    """Every version that a server would load has the weights of one state."""
    rng, served = random.Random(4), tmp_path / "served"
    expected = {
        number: delta_oracle.apply_chain(base_dir, 1, number) for number in (1, 2, 3)
    }
    num_seen = 0
    for _ in range(num_kills):
        process = fresh_processes.start(
            fresh_processes.materialize_until_killed, str(base_dir), str(served)
        )
        process.join(rng.uniform(2.0, 5.0))
        fresh_processes.kill(process)
        names = [p.name for p in served.iterdir()] if served.exists() else []
        for name in names:
            if not name.isdecimal():
                continue
            described = tf_dlrm.serving.deltas.materialize.read_version(served / name)
            delta_oracle.assert_equal(
                delta_oracle.weights_of(served / name),
                expected[described["sequence"]],
            )
            num_seen += 1
    assert num_seen
    tf.saved_model.load(str(sorted(served.glob("[0-9]*"))[-1]))
    assert isinstance(served, pathlib.Path)
