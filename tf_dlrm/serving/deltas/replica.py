"""`Replica`: a copy of a published model that follows its `HEAD.json`."""

import gc
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.shared_lock import SharedLock
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving.deltas import files, materialize
from tf_dlrm.serving.deltas.chain import Base, Delta, check_follows
from tf_dlrm.serving.deltas.channel import Channel
from tf_dlrm.serving.deltas.format import DeltaError, Position
from tf_dlrm.serving.deltas.state import ModelState, by_variable
from tf_dlrm.serving.updates import APPLY_DELTA, SEQUENCE


class Answer(NamedTuple):
    """An answer of a `Replica`.

    Attributes:
        probabilities: The probabilities, float32 `(B, 1)`.
        position: The state that they were computed from.
    """

    probabilities: np.ndarray
    position: Position


class Loaded(NamedTuple):
    """A base in memory, with the deltas that were applied to it in place.

    Attributes:
        base: The base.
        model: The loaded SavedModel.
        sequence: Sequence number of the last delta.
        identity: Identity of the state.
    """

    base: Base
    model: Any
    sequence: int
    identity: str


class Replica:
    """A copy of a published model, in memory or as versions for a server.

    Bases and deltas are verified before anything changes: format, checksums, base,
    sequence and parent. A delta is applied as a whole or not at all; one that is
    missing, repeated, reordered, truncated, damaged, of another base or of a later
    release raises a `DeltaError`, and the model stays as it is.

    - `in_place` moves the loaded model to HEAD in milliseconds through the signature
      `apply_delta`. The signature replaces rows one after the other. `predict` of this
      class waits meanwhile, so each of its answers comes from exactly one state. A
      server that runs other signatures at the same time has this only for each row.
    - `materialize` writes the state at HEAD as the next version in a folder. TensorFlow
      Serving, unchanged, loads it beside the old one and then swaps them.

    If HEAD goes back, or names a new base, the base is loaded again and its deltas are
    applied, beside the model that answers meanwhile.

    Args:
        base_dir: Folder of the published model, or its address.

    Attributes:
        channel: The channel.

    Example:

    >>> import tempfile, numpy as np, tf_dlrm
    >>> spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("a", 10, 4)])
    >>> model = tf_dlrm.DLRM(spec, (4,), (4, 1))
    >>> model.compile("adagrad")
    >>> x = {"dense_features": np.ones((8, 1)), "sparse_features": np.ones((8, 1), int)}
    >>> folder = tempfile.mkdtemp()
    >>> publish = tf_dlrm.callbacks.PublishDeltas(folder, every_steps=2, verbose=0)
    >>> history = model.fit(
    ...     x, np.ones(8), batch_size=2, callbacks=[publish], verbose=0)
    >>> replica = tf_dlrm.serving.Replica(folder)
    >>> str(replica.in_place())
    '1.1'
    >>> request = {"dense_features": np.ones((1, 1), "float32"),
    ...            "sparse_features": np.ones((1, 1, 1), int)}
    >>> answer = replica.predict(request, minimum=replica.position)
    >>> np.allclose(answer.probabilities, model.predict(
    ...     {name: value[:1] for name, value in x.items()}, verbose=0))
    True
    """

    def __init__(self, base_dir: PathLike) -> None:
        self.channel = Channel(base_dir)
        self._loaded: Loaded | None = None
        self._state: ModelState | None = None  # for `materialize`
        self._lock = SharedLock()
        self._moved = threading.Condition()
        self._writing = threading.Lock()

    @property
    def position(self) -> Position | None:
        """The state of the loaded model; `None` before `in_place`."""
        loaded = self._loaded
        return loaded and Position(loaded.base.version, loaded.sequence)

    def head(self) -> Position | None:
        """Return the state that `HEAD.json` names, or `None` before a release.

        Raises:
            DeltaError: If the file is damaged or of a later release.
        """
        head = self.channel.read_head()
        return None if head is None else Position(head["base"], head["sequence"])

    # In place

    def in_place(self) -> Position:
        """Move the loaded model to HEAD, and return its state.

        Raises:
            DeltaError: If a delta is refused. The model stays at the one before it.
            FileNotFoundError: If nothing has been released.
        """
        with self._writing:
            head = self.channel.read_head()
            if head is None:
                raise FileNotFoundError(
                    f"{self.channel.base_dir} has no HEAD.json: nothing is released."
                )
            wanted = Position(head["base"], head["sequence"])
            loaded = self._loaded
            if (
                loaded is None
                or loaded.base.version != wanted.base
                or loaded.sequence > wanted.sequence
            ):
                self._swap(self._load(wanted, head["state"]))
                return wanted
            self._check_base(loaded)
            for name in self.channel.find_way(
                loaded.base, loaded.sequence, wanted.sequence
            ):
                self._apply(self.channel.read_delta(loaded.base, name))
            self._check_head(self._loaded, head["state"])
            return wanted

    def apply(self, name: str) -> Position:
        """Apply one delta to the loaded model, and return its state.

        Args:
            name: Name of the delta's folder, such as `"00000004"`.

        Raises:
            DeltaError: If the delta is refused. The model is unchanged.
        """
        with self._writing:
            if self._loaded is None:
                raise UserError("Load the model with `in_place` before `apply`.")
            self._apply(self.channel.read_delta(self._loaded.base, name))
            loaded = self._loaded
            return Position(loaded.base.version, loaded.sequence)

    def _load(self, wanted: Position, state: str) -> Loaded:
        """Load a base and apply its deltas, beside the model that answers."""
        base = self.channel.read_base(wanted.base, verify=True)
        model = tf.saved_model.load(self.channel.version_dir(wanted.base))
        if APPLY_DELTA not in model.signatures:
            raise UserError(
                f"Base {base.version} has no signature {APPLY_DELTA}. Export it with "
                " `updatable=True`."
            )
        loaded = Loaded(base, model, 0, base.identity)
        for name in self.channel.find_way(base, 0, wanted.sequence):
            loaded = _applied(loaded, self.channel.read_delta(base, name))
        self._check_head(loaded, state)
        return loaded

    def _apply(self, delta: Delta) -> None:
        assert self._loaded is not None
        check_follows(delta.manifest, self._loaded.sequence, self._loaded.identity)
        call = _prepare(self._loaded, delta)
        with self._lock.exclusive():
            self._loaded = None  # if this fails, load the model again
            self._loaded = call()
        with self._moved:
            self._moved.notify_all()

    def _swap(self, loaded: Loaded) -> None:
        with self._lock.exclusive():
            self._loaded = loaded
        with self._moved:
            self._moved.notify_all()
        gc.collect()  # the tables of the other model are part of a reference cycle

    def _check_base(self, loaded: Loaded) -> None:
        identity = self.channel.read_base(loaded.base.version).identity
        if identity != loaded.base.identity:
            raise DeltaError(
                "foreign",
                f"Base {loaded.base.version} is another one than the loaded base.",
            )

    def _check_head(self, loaded: Loaded | ModelState | None, state: str) -> None:
        if loaded is not None and loaded.identity != state:
            raise DeltaError(
                "foreign",
                f"HEAD.json names state {state[:8]} as sequence {loaded.sequence}, but "
                f"the deltas lead to {loaded.identity[:8]}.",
            )

    def predict(
        self,
        inputs: Mapping[str, Any],
        signature: str = "serving_default",
        minimum: Position | tuple[int, int] | None = None,
        timeout: float = 60.0,
    ) -> Answer:
        """Answer a request from one state of the model.

        Args:
            inputs: The inputs of the signature, by name.
            signature: Name of the signature.
            minimum: The oldest state to answer from: base and sequence. The call waits
                until the model is there. Default: whichever is loaded.
            timeout: Longest time to wait, in seconds.

        Raises:
            TimeoutError: If the model does not get to `minimum` in time.
        """
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        least = Position(*(minimum or (0, 0)))
        while True:
            self.wait_for(least, timeout)
            with self._lock.shared():
                loaded, position = self._loaded, self.position
                if loaded is None or position is None or position < least:
                    continue  # it went back in the meantime
                answer = loaded.model.signatures[signature](**tensors)
                return Answer(answer["probabilities"].numpy(), position)

    def wait_for(
        self, minimum: Position | tuple[int, int], timeout: float = 60.0
    ) -> Position:
        """Wait until the loaded model is at a state or a later one, and return it.

        Raises:
            TimeoutError: If it does not get there in time.
        """

        def is_there() -> bool:
            position = self.position
            return position is not None and position >= Position(*minimum)

        with self._moved:
            if not self._moved.wait_for(is_there, timeout):
                raise TimeoutError(
                    f"The replica is not at {Position(*minimum)} after {timeout:g} s; "
                    f"it is at {self.position}."
                )
        position = self.position
        assert position is not None
        return position

    # Versions for servers

    def materialize(self, output_dir: PathLike, keep: int = 2) -> str | None:
        """Write the state at HEAD as the next version in a folder.

        The weights of that state stay in host memory, so that the next call reads only
        the new deltas.

        Args:
            output_dir: Local folder of versions, which a server watches. It must not be
                the folder of the published model.
            keep: Number of newest materialized versions to keep.

        Returns:
            The path of the version; `None` if the newest version has this state.

        Raises:
            DeltaError: If a delta is refused. No version is written.
        """
        if files.normalize(output_dir).rstrip("/") == self.channel.base_dir.rstrip("/"):
            raise UserError(
                "`output_dir` must not be the folder of the published model, whose "
                f"versions are bases. Received: {output_dir}"
            )
        with self._writing:
            head = self.channel.read_head()
            if head is None:
                return None
            newest = materialize.newest_version(output_dir)
            known = None if newest is None else materialize.read_version(newest)
            if known is not None and known["state"] == head["state"]:
                return None
            wanted, state = Position(head["base"], head["sequence"]), self._state
            if state is not None and state.position.base != wanted.base:
                state = None
            if state is None or state.sequence > wanted.sequence:
                self._state = None  # free its memory first
                state = ModelState.load(self.channel, wanted.base)
            self._state = state
            state.move_to(self.channel, wanted.sequence)
            self._check_head(state, head["state"])
            path = materialize.write_version(self.channel, state, output_dir)
            materialize.remove_old_versions(output_dir, keep)
            return path

    # Following

    def follow(
        self,
        every_seconds: float = 1.0,
        output_dir: PathLike | None = None,
        until: Callable[[], bool] = lambda: False,
        keep: int = 2,
        say: Callable[[str], None] = print,
    ) -> None:
        """Follow `HEAD.json` until `until()` is true.

        A refused delta, or a folder that cannot be read, is reported once, and tried
        again: the model stays at its state.

        Args:
            every_seconds: Time between two looks at `HEAD.json`.
            output_dir: Folder for `materialize`. Default: `in_place`.
            until: Function that ends the call.
            keep: Number of newest materialized versions to keep.
            say: Function that is called with a line about each move and problem.
        """
        last, problem = self.position, ""
        while not until():
            try:
                line = self._follow_once(output_dir, last, keep)
                last, problem = self.position, ""
                if line:
                    say(line)
            except (UserError, OSError, tf.errors.OpError) as error:
                if str(error) != problem:
                    problem = str(error)
                    say(f"Stays at {last or 'nothing'}: {problem}")
            time.sleep(every_seconds)

    def _follow_once(
        self, output_dir: PathLike | None, last: Position | None, keep: int
    ) -> str:
        start = time.perf_counter()
        if output_dir is None:
            position = self.in_place()
            seconds = time.perf_counter() - start
            return "" if position == last else f"At {position} after {seconds:.3f} s."
        path = self.materialize(output_dir, keep)
        seconds = time.perf_counter() - start
        return "" if path is None else f"Wrote {path} in {seconds:.2f} s."


def _prepare(loaded: Loaded, delta: Delta) -> Callable[[], Loaded]:
    """Return a function that applies a verified delta to a loaded model."""
    inputs: dict[str, Any] = {
        "from_sequence": tf.constant(loaded.sequence, tf.int64),
        "to_sequence": tf.constant(delta.manifest.sequence, tf.int64),
    }
    changes = by_variable(loaded.base.layout, delta.tables)
    for i, (numbers, rows) in enumerate(changes):
        inputs[f"rows_{i}"] = tf.constant(numbers)
        inputs[f"values_{i}"] = tf.constant(rows)
    inputs |= {f"dense_{j}": tf.constant(w) for j, w in enumerate(delta.dense)}
    function = loaded.model.signatures[APPLY_DELTA]

    def call() -> Loaded:
        sequence = int(function(**inputs)[SEQUENCE].numpy())
        return loaded._replace(sequence=sequence, identity=delta.manifest.state)

    return call


def _applied(loaded: Loaded, delta: Delta) -> Loaded:
    check_follows(delta.manifest, loaded.sequence, loaded.identity)
    return _prepare(loaded, delta)()
