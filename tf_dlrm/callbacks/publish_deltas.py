"""`PublishDeltas`: publish the changes of a model while it trains."""

import base64
import time
import zlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Logs, PathLike
from tf_dlrm.serving.deltas.gate import Gate
from tf_dlrm.serving.deltas.publisher import Publication, Publisher
from tf_dlrm.serving.deltas.top_share import TopShare
from tf_dlrm.training.changed_rows import ChangedRows


class PublishDeltas(keras.callbacks.Callback):
    """Publish what training has changed, every few steps or seconds.

    The first publication is a base, a complete export. Each later one is a delta: the
    rows that batches have read since the last, and all other weights. A replica that
    applies it has every weight of a complete export at this step, bit for bit. See
    `tf_dlrm.serving.Replica`, which applies deltas, and `docs/how_to/keep_fresh.md`.

    Rows are tracked at the cost of the ids of a batch, with one byte of host memory per
    row. Of a table whose optimizer moves all rows (`DenseAdam`, or `SparseSGD` with
    `l2`), every delta has all rows.

    To lose no row when a killed run resumes, carry the callback in the checkpoint:
    `checkpoint.carry(publish=publish)` before `checkpoint.resume(...)`. A resumed run
    without it, a model that another `fit` has trained in the meantime, and a new run
    begin with a new base.

    Args:
        base_dir: Folder of the model's versions, or its address in an object store that
            `tf.io.gfile` can write to.
        every_steps: Steps between two publications.
        every_seconds: Seconds between two publications. They are made at the end of a
            step.
        rows: `"touched"`: all rows that may have changed; or a `TopShare`, with which
            replicas have older values of the other rows until the next base.
        dtype: Storage format of the tables in bases and deltas, as `table_dtype` of
            `tf_dlrm.export_saved_model`.
        full_every: Number of deltas after which the next publication is a base.
            Default: never.
        gate: The `tf_dlrm.serving.Gate` that decides whether replicas get a state.
            Default: they get every state whose values are finite.
        export: Further arguments of `tf_dlrm.export_saved_model` for bases, such as
            `{"preprocessor": parser, "max_hotness": 5}`.
        verbose: 1 prints a line for each publication, 0 prints none.

    Attributes:
        publications: The `Publication`s so far, with position, bytes and seconds.

    Raises:
        TypeError: If the model is not a `DLRM`.
        ValueError: If an argument is out of range, or another process publishes to
            `base_dir`.

    Example:

    >>> import tempfile, numpy as np, tf_dlrm
    >>> spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("a", 10, 4)])
    >>> model = tf_dlrm.DLRM(spec, (4,), (4, 1))
    >>> model.compile("adagrad")
    >>> x = {"dense_features": np.ones((8, 1)), "sparse_features": np.ones((8, 1), int)}
    >>> publish = tf_dlrm.callbacks.PublishDeltas(
    ...     tempfile.mkdtemp(), every_steps=2, verbose=0)
    >>> history = model.fit(
    ...     x, np.ones(8), batch_size=2, callbacks=[publish], verbose=0)
    >>> [str(publication.position) for publication in publish.publications]
    ['1.0', '1.1']
    >>> publish.publications[1].num_rows
    1
    """

    def __init__(
        self,
        base_dir: PathLike,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        rows: str | TopShare = "touched",
        dtype: str = "float32",
        full_every: int | None = None,
        gate: Gate | None = None,
        export: Mapping[str, Any] | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        if (every_steps is None) == (every_seconds is None):
            raise UserError(
                "Set one of `every_steps` and `every_seconds`. Received: "
                f"every_steps={every_steps!r}, every_seconds={every_seconds!r}"
            )
        limits = (("every_steps", every_steps), ("every_seconds", every_seconds))
        for name, value in limits:
            if value is not None and not value > 0:
                raise UserError(f"`{name}` must be positive. Received: {value!r}")
        self._every_steps, self._every_seconds = every_steps, every_seconds
        self._publisher = Publisher(base_dir, dtype, rows, full_every, gate, export)
        self._verbose = verbose
        self._carried: dict[str, Any] | None = None
        self._trained: Any = None  # the model and its step when `fit` ended
        self.publications: list[Publication] = []
        self.event_time: float | None = None

    # State in checkpoints

    def get_state(self) -> dict[str, Any]:
        """Return the state that a resumed run continues from, JSON-safe."""
        base, own = self._publisher.base, self._publisher
        return {
            "base": None if base is None else [base.version, base.identity],
            "sequence": own.sequence,
            "state": own.state,
            "step": self._step(),
            "changed": {
                name: _pack(rows)
                for name, rows in self._rows.peek().items()
                if len(rows)
            },
            "waiting": {name: _pack(ids) for name, (ids, _) in own.staleness().items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Set the state that `get_state` returned, for the next `fit`."""
        self._carried = dict(state)

    # Methods that Keras calls

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if not hasattr(model, "use_probe"):
            raise TypeError(
                "PublishDeltas requires a tf_dlrm.DLRM. Received: "
                f"{type(model).__name__}"
            )
        resolver = getattr(model.distribute_strategy, "cluster_resolver", None)
        if resolver is not None and resolver.cluster_spec().as_dict():
            raise UserError(
                "PublishDeltas tracks the rows that this process reads, and other "
                "workers read others: publish from a run with one process."
            )
        self._rows: ChangedRows = model.use_probe(ChangedRows)

    def on_train_begin(self, logs: Logs = None) -> None:
        own, carried = self._publisher, self._carried
        self._carried = None
        if carried is not None:
            self._rows.clear()
            self._resume(carried)
        elif self._trained != self._identity():
            own.base = None  # the next publication is a base
        self._last_step, self._last_time = self._step(), time.monotonic()
        self._overwrites = self.model.embedding.num_overwrites

    def _resume(self, carried: Mapping[str, Any]) -> None:
        """Continue the chain of the checkpoint, if it is known what has changed since.

        Deltas that were published after the checkpoint have rows that the model has not
        yet changed again: their rows differ, too.
        """
        own = self._publisher
        own.base = None
        last = own.find_last()
        if carried["base"] is None or last is None:
            return
        version, identity = carried["base"]
        if last.base != version or own.channel.read_base(version).identity != identity:
            self._say("Another base was published after the checkpoint.")
            return
        if carried["step"] != self._step():
            self._say("The model is not that of the checkpoint.")
            return
        base = own.channel.read_base(version)
        if own.channel.identity_of(base, carried["sequence"]) != carried["state"]:
            self._say("The deltas are not those of the checkpoint.")
            return
        own.adopt(version)
        for rows in (carried["changed"], carried["waiting"]):
            self._rows.mark({name: _unpack(packed) for name, packed in rows.items()})
        self._rows.mark(own.changed_since(carried["sequence"]))

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        self.publish_if_due()

    def publish_if_due(self) -> None:
        """Publish if it is time to, and steps were made since the last publication.

        `fit` calls it after each step; call it too while a `fit` waits for data.
        """
        if self._step() > self._last_step and self._is_due():
            self.publish()

    def _is_due(self) -> bool:
        if self._every_steps is not None:
            return self._step() - self._last_step >= self._every_steps
        assert self._every_seconds is not None
        return time.monotonic() - self._last_time >= self._every_seconds

    def publish(self) -> Publication:
        """Publish the present state of the model; `fit` calls it when it is due."""
        getattr(self.model, "raise_deferred", lambda: None)()
        if self._overwrites != self.model.embedding.num_overwrites:
            self._say("Tables were set or loaded, not trained: publishing a base.")
            self._publisher.base = None
        rows = self._rows.take()
        try:
            done = self._publisher.publish(self.model, rows, self.event_time)
        except BaseException:
            self._rows.mark(rows)
            raise
        if not done.is_written:
            self._rows.mark(rows)
        self._last_step, self._last_time = self._step(), time.monotonic()
        self._overwrites = self.model.embedding.num_overwrites
        self.publications.append(done)
        kind = "base" if done.is_base else f"{done.num_rows:,} rows"
        line = f"Published {done.position}: {kind}, {done.num_bytes / 1e6:,.2f} MB in "
        line += f"{done.seconds:.2f} s."
        if not done.is_written:
            line = "Nothing was published."
        if done.reason:
            line += f" Not released ({done.health}): {done.reason}"
        self._say(line)
        return done

    def on_train_end(self, logs: Logs = None) -> None:
        is_overwritten = self._overwrites != self.model.embedding.num_overwrites
        if is_overwritten or any(len(rows) for rows in self._rows.peek().values()):
            self.publish()

    def on_fit_exit(self) -> None:
        """Remember the model; called after a DLRM's `fit`, even if it fails."""
        self.model.drop_probe(ChangedRows)
        self._trained = self._identity()

    @property
    def publisher(self) -> Publisher:
        """The `Publisher`, with the channel and the rows that wait (`staleness`)."""
        return self._publisher

    def _identity(self) -> tuple[int, ...]:
        """Return what tells whether another `fit` has trained the model."""
        overwrites = self.model.embedding.num_overwrites
        return id(self.model), self._step(), overwrites

    def _step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())

    def _say(self, line: str) -> None:
        if self._verbose:
            print(line, flush=True)


def _pack(rows: np.ndarray) -> str:
    """Return ascending row numbers as text: their differences, compressed."""
    gaps = np.diff(rows, prepend=0).astype("<u4" if rows[-1] < 1 << 32 else "<u8")
    text = base64.b64encode(zlib.compress(gaps.tobytes(), 1)).decode()
    return f"{gaps.dtype.itemsize}{text}"


def _unpack(text: str) -> np.ndarray:
    gaps = np.frombuffer(zlib.decompress(base64.b64decode(text[1:])), f"<u{text[0]}")
    return np.cumsum(gaps, dtype=np.int64)
