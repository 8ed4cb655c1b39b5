"""Text of `model.summary()`: tables, MLPs, and parameters and bytes by part."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import keras

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.layers import MLP
from tf_dlrm.runtime.units import format_bytes

if TYPE_CHECKING:
    from tf_dlrm.model import DLRM

MAX_TABLES = 30


def lines(model: "DLRM", width: int = 80) -> Iterator[str]:
    """Yield the lines of a model's summary.

    Args:
        model: A `DLRM`.
        width: Characters in a line.
    """
    spec = model.spec
    rule = "-" * width
    columns = f"{spec.num_dense} dense features, {spec.num_sparse} sparse"
    yield f'DLRM "{model.name}": {columns}'
    yield rule
    yield from _table_lines(spec.tables, width)
    yield rule
    yield _row(("Part", "Shape", "Parameters", "Bytes"), width)
    num_table = sum(table.num_parameters for table in spec.tables)
    parts = [
        ("embedding tables", f"{len(spec.tables)} tables", num_table),
        *(
            ("bottom MLP", _mlp_shape(spec.num_dense, mlp), mlp)
            for mlp in [model.bottom_mlp]
            if mlp is not None
        ),
        *((f"MLP of {n}", _mlp_shape("", m), m) for n, m in model.feature_mlps.items()),
        ("interaction", _interaction_shape(model), model.interaction),
        ("top MLP", _mlp_shape("", model.top_mlp), model.top_mlp),
    ]
    total = 0
    for name, shape, part in parts:
        count = part if isinstance(part, int) else _count(part)
        total += count
        yield _row((name, shape, f"{count:,}", format_bytes(4 * count)), width)
    yield rule
    yield _row(("Total", "", f"{total:,}", format_bytes(4 * total)), width)
    yield from _optimizer_lines(model, width)
    if model.negative_sampling_rate < 1:
        rate = model.negative_sampling_rate
        yield f"Negatives sampled at {rate:g}; predictions are corrected for this"


def _table_lines(tables: Sequence[EmbeddingTable], width: int) -> Iterator[str]:
    yield _row(("Table", "Rows x width", "Pooling", "Bytes"), width)
    largest = sorted(tables, key=lambda table: -table.num_parameters)[:MAX_TABLES]
    shown_names = {table.name for table in largest}
    for table in (table for table in tables if table.name in shown_names):
        readers = (
            "" if len(table.features) == 1 else f" ({len(table.features)} features)"
        )
        shape = f"{table.vocabulary_size:,} x {table.embedding_dim}"
        size = format_bytes(4 * table.num_parameters)
        yield _row((table.name + readers, shape, table.combiner, size), width)
    rest = [table for table in tables if table.name not in shown_names]
    if rest:
        size = format_bytes(4 * sum(table.num_parameters for table in rest))
        yield _row((f"and {len(rest)} smaller tables", "", "", size), width)


def _optimizer_lines(model: "DLRM", width: int) -> Iterator[str]:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return
    tables = model.embedding_optimizer
    optimizers = list(tables.values()) if isinstance(tables, dict) else [tables]
    names = ", ".join(dict.fromkeys(type(o).__name__ for o in optimizers))
    yield _row((f"Optimizers: {type(optimizer).__name__}, tables {names}",), width)


def _mlp_shape(num_inputs: int | str, mlp: MLP) -> str:
    return " > ".join(str(dim) for dim in (num_inputs, *mlp.dims) if dim != "")


def _interaction_shape(model: "DLRM") -> str:
    name = type(model.interaction).__name__
    num_vectors = model.spec.num_sparse + (model.bottom_mlp is not None)
    return f"{name} of {num_vectors} vectors"


def _count(layer: keras.layers.Layer) -> int:
    return sum(math.prod(variable.shape) for variable in layer.weights)


def _row(cells: Sequence[str], width: int) -> str:
    if len(cells) == 1:
        return cells[0]
    name, shape, *numbers = cells
    columns = "".join(f"{number:>14}" for number in numbers)
    left = width - len(columns)
    name_width = max(18, left // 2 - 4)
    return f"{name:<{name_width}}{shape:<{left - name_width}}{columns}"
