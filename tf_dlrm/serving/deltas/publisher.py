"""`Publisher`: writes bases and deltas of a model in training, and moves HEAD."""

import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tf_dlrm.model import DLRM
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving.deltas import files, trained_rows
from tf_dlrm.serving.deltas import gate as gates
from tf_dlrm.serving.deltas.chain import Base
from tf_dlrm.serving.deltas.channel import Channel
from tf_dlrm.serving.deltas.difference import find_changes
from tf_dlrm.serving.deltas.format import Position
from tf_dlrm.serving.deltas.gate import Gate
from tf_dlrm.serving.deltas.operations import HISTORY, PINNED, history_with
from tf_dlrm.serving.deltas.state import ModelState, check_layout
from tf_dlrm.serving.deltas.top_share import Selection, TopShare
from tf_dlrm.serving.export import export_saved_model
from tf_dlrm.serving.quantization import TABLE_DTYPES, dequantize


class Publication(NamedTuple):
    """The result of a publication.

    Attributes:
        position: The state that it leads to.
        num_rows: Number of rows in it.
        num_bytes: Size of its files.
        seconds: Seconds that it took.
        is_written: Whether it was written. Otherwise its rows are still to be
            published.
        health: `"healthy"`, `"suspect"` or `"bad"`.
        reason: Why it is not released, or "".
    """

    position: Position
    num_rows: int
    num_bytes: int
    seconds: float
    is_written: bool
    health: str
    reason: str

    @property
    def is_base(self) -> bool:
        """True for a base, False for a delta."""
        return self.position.sequence == 0


class Publisher:
    """Writer of a channel, for one model.

    Args:
        base_dir: Folder of the model's versions, or an address.
        dtype: Storage format of the tables, in bases and deltas.
        rows: `"touched"`: all changed rows; or a `TopShare`.
        full_every: Number of deltas after which the next publication is a base.
            Default: never.
        gate: The condition for a release. Default: every finite state is released.
        export: Further arguments of `export_saved_model`, such as
            `{"preprocessor": parser}`.

    Attributes:
        channel: The channel.
        base: The base to which the next delta belongs, or `None`.
        sequence: Sequence number of the last delta.
        state: Identity of the last state.
        step: Step of the last state.
    """

    def __init__(
        self,
        base_dir: PathLike,
        dtype: str = "float32",
        rows: str | TopShare = "touched",
        full_every: int | None = None,
        gate: Gate | None = None,
        export: Mapping[str, Any] | None = None,
    ) -> None:
        if dtype not in TABLE_DTYPES:
            rule = f"`dtype` must be one of {', '.join(TABLE_DTYPES)}."
            raise UserError(f"{rule} Received: {dtype!r}")
        if rows != "touched" and not isinstance(rows, TopShare):
            rule = '`rows` must be "touched" or a `TopShare`.'
            raise UserError(f"{rule} Received: {rows!r}")
        if full_every is not None and full_every < 1:
            rule = "`full_every` must be at least 1, or None."
            raise UserError(f"{rule} Received: {full_every!r}")
        self.channel = Channel(base_dir)
        self._dtype, self._full_every = dtype, full_every
        self._gate, self._export = gate, dict(export or {})
        self._share = rows if isinstance(rows, TopShare) else None
        self._selection = Selection(rows.share) if isinstance(rows, TopShare) else None
        self._sent: ModelState | None = None  # what replicas have, for `TopShare`
        self.base: Base | None = None
        self.sequence, self.state, self.step = 0, "", 0
        self._num_faults = 0
        self._identity: dict[str, Any] = {}

    # Where a publisher begins

    def adopt(self, version: int, sequence: int | None = None) -> None:
        """Continue the deltas of a base after its last one, or after `sequence`.

        Args:
            version: Version of the base.
            sequence: Sequence number of the state to continue from; default: the last.
        """
        self.base = self.channel.read_base(version)
        manifests = self.channel.manifests(self.base)
        if sequence is None:
            sequence = manifests[-1].sequence if manifests else 0
        self.sequence = sequence
        self.state = self.channel.identity_of(self.base, sequence)
        steps = [m.facts["steps"]["to"] for m in manifests if m.sequence == sequence]
        self.step = steps[0] if steps else self.base.facts["step"]

    def find_last(self) -> Position | None:
        """Return the last state that was published, or `None`."""
        bases = self.channel.bases()
        if not bases:
            return None
        base = self.channel.read_base(bases[-1])
        manifests = self.channel.manifests(base)
        return Position(bases[-1], manifests[-1].sequence if manifests else 0)

    def changed_since(self, sequence: int) -> dict[str, np.ndarray]:
        """Return the rows in the deltas of the base after a sequence number."""
        assert self.base is not None
        changed: dict[str, np.ndarray] = {}
        for manifest in self.channel.manifests(self.base):
            if manifest.sequence <= sequence:
                continue
            delta = self.channel.read_delta(self.base, manifest.name)
            for name, own in delta.tables.items():
                changed[name] = np.union1d(changed.get(name, own.ids), own.ids)
        return changed

    # Publications

    def publish(
        self,
        model: DLRM,
        changed: Mapping[str, np.ndarray] | None,
        event_time: float | None = None,
    ) -> Publication:
        """Publish the present state of a model.

        Args:
            model: The model.
            changed: Row numbers that may differ from the last state, ascending, by
                table. `None`: publish a base.
            event_time: Time of the newest training row, in seconds since 1970.

        Returns:
            What was written. A state that is not released has a `reason`.
        """
        start = time.perf_counter()
        step = int(model.optimizer.iterations.numpy()) if model.compiled else 0
        with self.channel.locked():
            if changed is None or self.base is None or self._is_full():
                facts = self._publish_base(model, changed, step, event_time)
            else:
                facts = self._publish_delta(model, changed, step, event_time)
            if fault := facts.pop("fault"):
                health, reason = gates.BAD, fault
            else:
                self.step = step
                health, reason = self._release(model)
        seconds = time.perf_counter() - start
        assert self.base is not None
        position = Position(self.base.version, self.sequence)
        return Publication(
            position,
            **facts,
            seconds=seconds,
            is_written=not fault,
            health=health,
            reason=reason,
        )

    def publish_difference(
        self, model: DLRM, identity: Mapping[str, Any]
    ) -> Publication:
        """Publish the rows in which a model differs from the last state.

        Args:
            model: The model.
            identity: JSON-safe values that determine the graph of an export, such as
                its vocabulary. If they are not those of the newest base, or shapes
                differ, a base is published.
        """
        self._identity = dict(identity)
        last, changed = self.find_last(), None
        if last is not None:
            base = self.channel.read_base(last.base)
            layout = trained_rows.layout_of(model, self._dtype)
            if base.facts.get("identity") == self._identity and base.layout == layout:
                self.adopt(last.base)
                state = ModelState.load(self.channel, last.base)
                state.move_to(self.channel, last.sequence)
                changed = find_changes(model, state)
        return self.publish(model, changed)

    def _is_full(self) -> bool:
        return self._full_every is not None and self.sequence >= self._full_every

    def _publish_base(
        self,
        model: DLRM,
        changed: Mapping[str, np.ndarray] | None,
        step: int,
        event_time: float | None,
    ) -> dict[str, Any]:
        options = {**self._export, "table_dtype": self._dtype, "updatable": True}
        if files.is_local(self.channel.base_dir):
            path = export_saved_model(model, self.channel.base_dir, **options)
        else:
            path = self._export_remotely(model, options)
        layout = trained_rows.layout_of(model, self._dtype)
        prefix = files.join(path, "variables", "variables")
        variables = model.embedding.lookup_variables
        check_layout(prefix, layout, [int(v.shape[0]) for v in variables])
        facts = {"step": step, "event_time": event_time, "identity": self._identity}
        version = int(path.rpartition("/")[2])
        self.base = self.channel.write_base(version, layout, facts)
        self.sequence, self.state = 0, self.base.identity
        if self._selection is not None:
            sizes = {table: size for table, size, _ in layout.tables}
            for name, ids in (changed or {}).items():
                self._selection.see(name, sizes[name], ids)
            self._selection.reset()
            self._sent = ModelState.load(self.channel, version, verify=False)
        num_bytes = sum(own["bytes"] for own in self.base.facts["files"].values())
        num_rows = sum(rows for _, rows, _ in layout.tables)
        return {"num_rows": num_rows, "num_bytes": num_bytes, "fault": ""}

    def _export_remotely(self, model: DLRM, options: dict[str, Any]) -> str:
        """Export to a temporary folder, and copy it to an object store."""
        names = files.names_in(self.channel.base_dir)
        version = max([0, *(int(n) for n in names if n.isdecimal())]) + 1
        with tempfile.TemporaryDirectory() as folder:
            local = export_saved_model(model, folder, version, **options)
            target = self.channel.version_dir(version)
            files.copy_tree(str(pathlib.Path(local)), target)
        return target

    def _publish_delta(
        self,
        model: DLRM,
        changed: Mapping[str, np.ndarray],
        step: int,
        event_time: float | None,
    ) -> dict[str, Any]:
        assert self.base is not None
        reader = trained_rows.RowReader(model, self._dtype)
        chosen = self._with_moving(model, changed)
        facts: dict[str, Any] = {"rows": "touched"}
        if self._selection is not None:
            chosen, stale = self._choose(reader, chosen)
            facts = {"rows": {"top_share": self._selection_share}, "waiting": stale}
        tables = reader.read_tables(chosen)
        dense = trained_rows.dense_of(model)
        fault = reader.fault or trained_rows.find_not_finite(dense)
        if fault:
            if self._selection is not None:
                self._selection.add_back(chosen, self.step)
            return {"num_rows": 0, "num_bytes": 0, "fault": fault}
        manifest = self.channel.write_delta(
            self.base,
            tables,
            dense,
            {
                **facts,
                "first": self.sequence + 1,
                "sequence": self.sequence + 1,
                "parents": [self.state],
                "steps": {"from": self.step, "to": step},
                "event_time": event_time,
            },
        )
        self.sequence, self.state = manifest.sequence, manifest.state
        if self._sent is not None:
            self._sent.apply(self.channel.read_delta(self.base, manifest.name))
        folder = self.channel.folder_of(self.base.version, manifest.name)
        sizes = [files.size_of(files.join(folder, n)) for n in files.names_in(folder)]
        num_rows = sum(len(own.ids) for own in tables.values())
        return {"num_rows": num_rows, "num_bytes": sum(sizes), "fault": ""}

    def _with_moving(
        self, model: DLRM, changed: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        trainable = {t.name: t for t in model.spec.tables if t.trainable}
        chosen = {name: ids for name, ids in changed.items() if name in trainable}
        for name in trained_rows.moving_tables(model):
            chosen[name] = np.arange(trainable[name].vocabulary_size)
        return chosen

    # TopShare

    @property
    def _selection_share(self) -> float:
        assert self._share is not None
        return self._share.share

    def _choose(
        self, reader: trained_rows.RowReader, changed: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Return the rows to publish, and how many rows wait in each table."""
        assert self._selection is not None and self.base is not None
        if self._sent is None:
            self._sent = ModelState.load(self.channel, self.base.version, verify=False)
            self._sent.move_to(self.channel, self.sequence)
        changes = {}
        sizes = {table: size for table, size, _ in self.base.layout.tables}
        for name, ids in changed.items():
            waiting = self._selection.add(name, sizes[name], ids, self.step)
            now = self._values(reader.read(name, waiting), name)
            sent = self._values(self._sent.read_rows(name, waiting), name)
            changes[name] = np.linalg.norm(now - sent, axis=1)
        for name, (ids, _) in self._selection.since.items():
            if name not in changes:
                changes[name] = np.zeros(len(ids))
        chosen = self._selection.choose(changes)
        stale = [
            {"name": name, "rows": len(ids), "since_step": int(steps.min())}
            for name, (ids, steps) in self._selection.since.items()
            if len(ids)
        ]
        return chosen, stale

    def _values(self, stored: np.ndarray, table: str) -> np.ndarray:
        """Return stored rows as float32."""
        assert self.base is not None
        if stored.dtype != np.uint8:
            return stored.astype(np.float32)
        bits = 8 if self._dtype == "int8" else 4
        parts = []
        for first, width in sorted(
            {(p.first_column, p.num_columns) for p in self.base.layout.places_of(table)}
        ):
            columns = (width - 4) * 8 // bits
            block = np.ascontiguousarray(stored[:, first : first + width])
            parts.append(dequantize(block, columns, bits).numpy())
        return np.concatenate(parts, axis=1)

    def staleness(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the rows that wait to be published by `TopShare`, by table.

        Returns:
            Row numbers, and for each the step since which replicas have an older row.
        """
        if self._selection is None:
            return {}
        return {name: own for name, own in self._selection.since.items() if len(own[0])}

    # HEAD

    def _release(self, model: DLRM) -> tuple[str, str]:
        """Move HEAD to the last state if it is fit; return its health and a reason."""
        assert self.base is not None
        head = self.channel.read_head()
        results: dict[str, float] = {}
        reason, health = "", gates.HEALTHY
        if self._gate is not None:
            results = gates.evaluate(model, self._gate.window)
            released = None if head is None else head.get("results")
            reason = self._gate.bounds.find_fault(results, released or None)
            self._num_faults = self._num_faults + 1 if reason else 0
            if reason:
                is_bad = self._num_faults >= self._gate.patience
                return gates.BAD if is_bad else gates.SUSPECT, reason
        pinned = "" if head is None else head.get(PINNED, "")
        if head and pinned and not (pinned == "monitor" and self._gate is not None):
            place = Position(head["base"], head["sequence"])
            return health, (
                f"A rollback ({pinned}) has pinned HEAD to {place}: release it."
            )
        position = Position(self.base.version, self.sequence)
        facts = {
            "health": health,
            "results": results,
            "step": self.step,
            HISTORY: history_with(head),
        }
        self.channel.move_head(position, self.state, facts)
        return health, reason
