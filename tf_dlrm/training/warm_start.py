"""`warm_start`: continue from an older model whose tables have other rows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError

_WITHOUT_MEANING = (
    "name",
    "dtype",
    "trainable",
    "frozen",
    "dropout",
)  # options that may differ between the models
_SCALARS = ("iteration", "learning_rate")  # variables of an optimizer, besides slots


@dataclasses.dataclass(frozen=True)
class WarmTable:
    """Numbers of rows of a table after a warm start.

    Attributes:
        name: Name of the table.
        num_kept: Number of rows copied from the older model, with their state.
        num_new: Number of rows with initial values.
        num_dropped: Number of rows of the older model that the new one does not have.
        num_bytes: Copied bytes of rows and state.
    """

    name: str
    num_kept: int
    num_new: int
    num_dropped: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class WarmStartResult:
    """Result of a warm start, which prints as a table.

    Attributes:
        tables: A `WarmTable` for each table.
        iterations: Number of steps that the older model was trained for. The optimizers
            continue from this number.
    """

    tables: tuple[WarmTable, ...]
    iterations: int

    @property
    def total(self) -> WarmTable:
        """The sums over all tables."""
        counts = [dataclasses.astuple(table)[1:] for table in self.tables]
        return WarmTable("all", *(sum(column) for column in zip(*counts)))

    def describe(self) -> dict:
        """Return the result as JSON-safe values."""
        return {
            "iterations": self.iterations,
            "tables": [dataclasses.asdict(table) for table in self.tables],
        }

    def __str__(self) -> str:
        lines = [f"{'table':<16}{'kept':>14}{'new':>14}{'dropped':>14}{'MB kept':>12}"]
        for table in (*self.tables, self.total):
            lines.append(
                f"{table.name:<16}{table.num_kept:>14,}{table.num_new:>14,}"
                f"{table.num_dropped:>14,}{table.num_bytes / 1e6:>12,.1f}"
            )
        return "\n".join(lines)


def warm_start(
    model: keras.Model,
    old_model: keras.Model,
    row_maps: Mapping[str, np.ndarray] | None = None,
) -> WarmStartResult:
    """Copy weights and optimizer state from an older model with the same architecture.

    Rows of tables move to their new positions together with their optimizer state. Rows
    that the older model does not have keep their initial values and state. All other
    weights (MLPs, interaction) are copied with their optimizer state. The optimizers
    continue to count iterations, which Adam and learning rate schedules need. The new
    model keeps its own learning rate and dropout seeds.

    Tables may be sharded in one model and not in the other. Memory must hold both
    models and copies of one table at a time.

    Args:
        model: The new `DLRM`, compiled.
        old_model: The older `DLRM`, compiled with the same kinds of optimizers, for
            example from `keras.saving.load_model`. It is not changed.
        row_maps: Dict of table names to integer arrays `(rows of the older model,)`
            with the row in the new model, or -1 for none. Tables without a map keep
            their rows, so their size must be the same in both models. A growing table
            of the new model takes ids: pass the id of each row of the older model. If
            the table grows in both models, pass no map: ids, rows and state are copied.

    Returns:
        The numbers of copied, new and dropped rows, by table.

    Raises:
        ValueError: If the models differ in more than the rows of tables (the message
            names each difference), or if a map is invalid. Nothing was changed.

    Example:

    >>> import numpy as np, tf_dlrm
    >>> def make_model(rows):
    ...     spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("a", rows, 4)])
    ...     model = tf_dlrm.DLRM(spec, (4,), (4, 1))
    ...     model.compile("adagrad")
    ...     return model
    >>> yesterday, today = make_model(rows=3), make_model(rows=4)
    >>> result = tf_dlrm.training.warm_start(today, yesterday, {"a": [0, 3, -1]})
    >>> before, after = (m.embedding.get_table("a") for m in (yesterday, today))
    >>> bool((after[[0, 3]] == before[[0, 1]]).all()), result.total.num_new
    (True, 2)
    """
    _check_same(model, old_model)
    row_maps = _check_maps(model, old_model, dict(row_maps or {}))
    old_state = old_model.embedding.get_state([])
    tables = tuple(
        _move_table(model, old_model, name, row_map, old_state["iterations"])
        for name, row_map in row_maps.items()
    )
    _copy(_dense_weights(old_model), _dense_weights(model))
    old, new = old_model.optimizer, model.optimizer
    _copy(_slots(old), _slots(new))
    new.iterations.assign(old.iterations.numpy())
    return WarmStartResult(tables, int(old.iterations.numpy()))


def _move_table(
    model: keras.Model,
    old_model: keras.Model,
    name: str,
    row_map: np.ndarray,
    iterations: int,
) -> WarmTable:
    old, new = old_model.embedding, model.embedding
    if _grows(model, name):
        return _move_growing(new, old, name, row_map, iterations)
    rows = new.get_table(name)
    num_rows, num_bytes = len(rows), _move(old.get_table(name), rows, row_map)
    new.set_table(name, rows)
    del rows  # free the memory before the state is copied
    slots = new.get_state([name])["slots"][name]
    old_slots = old.get_state([name])["slots"][name]
    for slot, values in slots.items():
        num_bytes += _move(old_slots[slot], values, row_map)
    new.set_state({"iterations": iterations, "slots": {name: slots}})
    num_kept = int((row_map >= 0).sum())
    return WarmTable(
        name, num_kept, num_rows - num_kept, len(row_map) - num_kept, num_bytes
    )


def _grows(model: keras.Model, name: str) -> bool:
    return any(t.growing is not None for t in model.spec.tables if t.name == name)


def _move_growing(
    new: Any, old: Any, name: str, ids: np.ndarray, iterations: int
) -> WarmTable:
    """Copy a table to a growing one: by its own ids, or those of its rows."""
    if len(ids):
        own = np.flatnonzero(ids >= 0)
        slots = old.get_state([name])["slots"][name]
        state = {slot: values[own] for slot, values in slots.items()}
        num_lost = new.set_rows(name, ids[own], old.get_table(name)[own], state)
        num_old = len(ids)
    else:
        num_old = old.occupancy(name).num_ids
        placement = new.copy_growing(name, old)
        num_lost = 0 if placement is None else placement.num_lost
        own = np.arange(num_old)
    new.set_state({"iterations": iterations, "slots": {}})
    num_kept = len(own) - num_lost
    num_rows = new.occupancy(name).num_slots
    num_bytes = 4 * num_kept * new.live_rows(name).rows.shape[1]
    return WarmTable(name, num_kept, num_rows - num_kept, num_old - num_kept, num_bytes)


def _move(source: np.ndarray, target: np.ndarray, row_map: np.ndarray) -> int:
    """Copy rows to their new positions; return their number of bytes."""
    num_bytes = 0
    for a, b in row_ops.block_ranges(*source.shape):
        is_kept = row_map[a:b] >= 0
        rows = source[a:b][is_kept]
        target[row_map[a:b][is_kept]] = rows
        num_bytes += rows.nbytes
    return num_bytes


def _dense_weights(model: keras.Model) -> list[keras.Variable]:
    """Return the weights that do not belong to tables, without seeds."""
    return [w for w in model.weights if not model.embedding.owns(w)]


def _slots(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    return [v for v in optimizer.variables if v.name not in _SCALARS]


def _copy(sources: list[keras.Variable], targets: list[keras.Variable]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.assign(source.numpy())


def _check_maps(
    model: keras.Model, old_model: keras.Model, row_maps: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Return a valid int64 map for each table, in the order of the tables."""
    old_sizes = {t.name: t.vocabulary_size for t in old_model.spec.tables}
    unknown = sorted(set(row_maps) - set(old_sizes))
    if unknown:
        raise UserError(
            f"`row_maps` names tables that the models do not have: {unknown}. Tables: "
            f"{', '.join(old_sizes)}"
        )
    checked = {}
    for table in model.spec.tables:
        name, size = table.name, table.vocabulary_size
        if table.growing is not None:
            checked[name] = _check_ids(old_model, name, row_maps.get(name))
            continue
        if name not in row_maps:
            if size != old_sizes[name]:
                raise UserError(
                    f"Table '{name}' has {old_sizes[name]:,} rows in the older model "
                    f"and {size:,} in the new one, so `row_maps` must contain it."
                )
            checked[name] = np.arange(size)
            continue
        row_map = np.asarray(row_maps[name])
        if row_map.shape != (old_sizes[name],) or row_map.dtype.kind not in "iu":
            raise UserError(
                f"`row_maps` of '{name}' must have {old_sizes[name]:,} integers, one "
                "for each row of the older model. Received: "
                f"{row_map.dtype} of shape {row_map.shape}"
            )
        checked[name] = row_map = row_map.astype(np.int64)
        targets = np.sort(row_map[row_map != -1])
        if len(targets) and not 0 <= targets[0] <= targets[-1] < size:
            raise UserError(
                f"Values in `row_maps` of '{name}' must be -1 or rows from 0 to "
                f"{size - 1:,}. Received: values from {targets[0]:,} to "
                f"{targets[-1]:,}"
            )
        if (targets[1:] == targets[:-1]).any():
            repeated = targets[1:][targets[1:] == targets[:-1]][0]
            raise UserError(
                f"`row_maps` of '{name}' contains row {repeated:,} more than once."
            )
    return checked


def _check_ids(old_model: keras.Model, name: str, ids: Any) -> np.ndarray:
    """Return the ids of the rows of the older model; empty if its table grows, too."""
    num_rows = {t.name: t.vocabulary_size for t in old_model.spec.tables}[name]
    if _grows(old_model, name):
        if ids is not None:
            raise UserError(
                f"Table '{name}' grows in both models, so its ids are copied. Leave it "
                "out of `row_maps`."
            )
        return np.zeros(0, np.int64)
    if ids is None:
        raise UserError(
            f"Table '{name}' takes new ids in the new model only: `row_maps` must "
            f"contain the id of each of its {num_rows:,} rows in the older model."
        )
    ids = np.asarray(ids)
    if ids.shape != (num_rows,) or ids.dtype.kind not in "iu":
        raise UserError(
            f"`row_maps` of '{name}' must have {num_rows:,} integers, the id of each "
            f"row of the older model. Received: {ids.dtype} of shape {ids.shape}"
        )
    own = ids[ids >= 0]
    if len(np.unique(own)) < len(own):
        raise UserError(f"`row_maps` of '{name}' contains an id more than once.")
    return ids.astype(np.int64)


def _check_same(model: keras.Model, old_model: keras.Model) -> None:
    for name, own in (("model", model), ("old_model", old_model)):
        if getattr(own, "optimizer", None) is None:
            raise UserError(
                f"`{name}` must be compiled, because a warm start copies the state of "
                "optimizers."
            )
    for describe in (_architecture, _shapes):
        old, new = describe(old_model), describe(model)
        differing = [
            f"{name} was {old.get(name)}, is {new.get(name)}"
            for name in dict.fromkeys((*old, *new))
            if old.get(name) != new.get(name)
        ]
        if differing:
            raise UserError(
                "A warm start needs two models that differ only in the rows of their "
                f"tables: {'; '.join(differing)}."
            )


def _architecture(model: keras.Model) -> dict:
    """Return everything that two models must have in common, by name."""
    spec = model.spec
    properties = {
        "negative_sampling_rate": model.negative_sampling_rate,
        "the list of dense features": list(spec.dense),
        "the list of tables": [table.name for table in spec.tables],
    }
    for table in spec.tables:
        for name in ("embedding_dim", "combiner", "features"):
            properties[f"{name} of table {table.name}"] = getattr(table, name)
    layers = {"top_mlp": model.top_mlp}
    if model.bottom_mlp is not None:
        layers["bottom_mlp"] = model.bottom_mlp
    layers |= {f"the MLP of {name}": mlp for name, mlp in model.feature_mlps.items()}
    for name, mlp in layers.items():
        for key, value in _config(mlp).items():
            properties[f"{key} of {name}"] = value
    kind = type(model.interaction).__name__
    words = [kind, *_words(_config(model.interaction))]
    properties["the interaction"] = " ".join(words)
    properties["the optimizer"] = type(model.optimizer).__name__
    optimizers = model.embedding_optimizer
    for table in spec.tables:
        own = optimizers[table.name] if isinstance(optimizers, dict) else optimizers
        properties[f"the optimizer of table {table.name}"] = type(own).__name__
    return properties


def _shapes(model: keras.Model) -> dict:
    """Return shapes that `_architecture` may not see, as in a user's layer."""
    weights, slots = _dense_weights(model), _slots(model.optimizer)
    return {
        "the shapes of the weights": [tuple(w.shape) for w in weights],
        "the shapes of the optimizer's state": [tuple(s.shape) for s in slots],
    }


def _config(layer: keras.layers.Layer) -> dict:
    config = keras.saving.serialize_keras_object(layer)["config"]
    return {k: v for k, v in config.items() if k not in _WITHOUT_MEANING}


def _words(config: dict) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(config.items())]
