"""Processes of the simulator of fresh models: a publisher, and replicas that follow it.

Each replica has a copy of the published folder of its own, which an unreliable
transport fills: files arrive late, in any order, cut off, or not at this attempt.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import time

import numpy as np

from helpers import published, small_model
from helpers.devices import _context


def start(function, *arguments):
    """Start a function in a process of its own, which has imported TensorFlow."""
    process = _context.Process(target=_run, args=(function, arguments))
    process.start()
    return process


def _run(function, arguments):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    function(*arguments)


def name_of(answers):
    """Return a short name for answers, equal only for equal bits."""
    return hashlib.sha256(np.ascontiguousarray(answers).tobytes()).hexdigest()


def add_line(path, **facts):
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")
        file.flush()


def read_lines(path):
    """Return the lines that a process wrote; a killed one may leave half a line."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


# The publisher


def publish(folder, num_states, seconds):
    """Train, publish, and write down the answers of a full export of each state."""
    folder = pathlib.Path(folder)
    model = small_model.compiled()
    callback = published.FullExports(
        folder / "published", folder / "full", every_steps=1, full_every=6
    )
    x, y = small_model.make_data()
    for i in range(num_states):
        part = {name: values[16 * (i % 4) :][:16] for name, values in x.items()}
        model.fit(part, y[16 * (i % 4) :][:16], callbacks=[callback], verbose=0)
        position = callback.publications[-1].position
        answers = published.answers_of(callback.exports[-1])
        add_line(folder / "states.jsonl", position=position, answers=name_of(answers))
        time.sleep(seconds)


# A replica and its transport


class Transport:
    """Copies a published folder with delays, losses, cut files and any order."""

    def __init__(self, source, target, seed):
        self.source, self.target = pathlib.Path(source), pathlib.Path(target)
        self.random = random.Random(seed)

    def carry(self, is_reliable=False):
        paths = [
            pathlib.Path(root, name)  # `rglob` fails if a folder is renamed meanwhile
            for root, _, names in os.walk(self.source)
            for name in names
        ]
        self.random.shuffle(paths)
        for path in paths:
            name = path.relative_to(self.source)
            if any(part.startswith(".") for part in name.parts):
                continue
            target = self.target / name
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            if target.exists() and target.read_bytes() == content:
                continue
            chance = 1.0 if is_reliable else self.random.random()
            if chance < 0.2:
                continue  # lost; sent again at the next attempt
            if chance < 0.3:
                content = content[: len(content) // 2]
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.coming")
            beside.write_bytes(content)
            os.replace(beside, target)


def replicate(source, folder, seed, log, stop):
    """Follow a published model through a transport, and answer all the time."""
    import tf_dlrm

    transport = Transport(source, folder, seed)
    replica = tf_dlrm.serving.Replica(folder)
    log, stop = pathlib.Path(log), pathlib.Path(stop)
    while True:
        is_over = stop.exists()
        transport.carry(is_reliable=is_over)
        try:
            replica.in_place()
        except (FileNotFoundError, ValueError) as error:
            add_line(log, refused=str(error)[:200])
        except (
            Exception
        ) as error:  # TensorFlow's, for a base whose files are on the way
            add_line(log, refused=f"{type(error).__name__}: {error}"[:200])
        if replica.position is not None:
            answer = replica.predict(published.REQUEST)
            add_line(
                log, position=answer.position, answers=name_of(answer.probabilities)
            )
        if is_over and replica.position == replica.head():
            add_line(log, end=replica.position)
            return
        time.sleep(transport.random.uniform(0.0, 0.05))


# Kills


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def train_until_killed(folder):
    """Train with checkpoints and publications; resume what an earlier one left."""
    import tensorflow as tf

    import tf_dlrm
    from tf_dlrm.training.checkpoints import ResumableInput

    folder = pathlib.Path(folder)
    if (folder / "done").exists():
        return
    x, y = small_model.make_data()
    batch = 4

    def make(position, seed):
        def rest(epoch, first):
            rows = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(batch)
            return rows.skip(first).take(400 - first)

        return position.begins().flat_map(rest)

    data = ResumableInput({"rows": len(y)}, 0, make, 400).attach(
        tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)
    )
    model = small_model.compiled(jit_compile=False)
    publish = tf_dlrm.callbacks.PublishDeltas(
        folder / "published", every_steps=3, verbose=0
    )
    checkpoint = tf_dlrm.callbacks.ResumableTraining(
        folder / "checkpoints", every_steps=5, verbose=0
    )
    checkpoint.carry(publish=publish)
    rows = checkpoint.resume(model, data)
    model.fit(
        rows,
        initial_epoch=checkpoint.initial_epoch,
        epochs=1,
        callbacks=[publish, checkpoint],
        verbose=0,
    )
    shutil.rmtree(folder / "end", ignore_errors=True)
    tf_dlrm.export_saved_model(model, folder / "end")
    (folder / "done").write_text("")


def materialize_until_killed(base_dir, output):
    """Write versions of changing states until the process is killed."""
    import tf_dlrm
    from tf_dlrm.serving.deltas.channel import Channel
    from tf_dlrm.serving.deltas.format import Position

    channel, number = Channel(base_dir), 0
    base = channel.read_base(1)
    replica = tf_dlrm.serving.Replica(base_dir)
    while True:
        number = number % 3 + 1
        state = channel.identity_of(base, number)
        channel.move_head(Position(1, number), state, {"health": "healthy"})
        replica.materialize(output, keep=3)


def write_until_killed(base_dir):
    """Publish deltas as fast as possible, without training."""
    from tf_dlrm.serving.deltas.channel import Channel
    from tf_dlrm.serving.deltas.format import Position
    from tf_dlrm.serving.deltas.state import ModelState

    channel = Channel(base_dir)
    base = channel.read_base(1)
    manifests = channel.manifests(base)
    last = manifests[-1]
    delta = channel.read_delta(base, "00000001")
    state = ModelState.load(channel, 1, verify=False)
    with channel.locked():
        while True:
            last = channel.write_delta(
                base,
                delta.tables,
                state.dense,
                {
                    "first": last.sequence + 1,
                    "sequence": last.sequence + 1,
                    "parents": [last.state],
                    "steps": {"from": 0, "to": 0},
                    "event_time": None,
                    "rows": "touched",
                },
            )
            channel.move_head(Position(1, last.sequence), last.state, {})


def copy_of(folder, target):
    shutil.copytree(folder, target)
    return pathlib.Path(target)
