"""Lookups and updates as XLA kernels, several times faster on CPUs."""

import functools
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.embedding.engines import xla_bags, xla_updates
from tf_dlrm.embedding.engines.all_rows import AllRowsKernels
from tf_dlrm.embedding.engines.engine import Engine, PooledGradients, Step, TrainedPart
from tf_dlrm.embedding.engines.plain import PlainEngine
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime import xla
from tf_dlrm.runtime.types import Ids

if TYPE_CHECKING:
    from tf_dlrm.embedding.fused_table import FusedTable

_LONG_PART, _SHORT_PART = 8, 2  # values in a part, for long and for short bags


class XlaCpuEngine(Engine):
    """Engine that compiles fused, in-place loops with XLA and does not sort.

    Near the process's limit of memory mappings, nothing more is compiled: each call
    then uses TensorFlow's operations.
    """

    def __init__(self, table: "FusedTable") -> None:
        super().__init__(table)
        self._plain = PlainEngine(table)
        self._updates: dict[int, _PartKernels | AllRowsKernels] = {}
        self._one_hot_kernel = xla.Kernel(self._pool_one_hot, "embedding_lookup")
        self._bag_kernels = {
            (lowest, part): xla.Kernel(
                lambda handle, *packed, lowest=lowest, part=part: self._pool_bags(
                    handle, packed, lowest, part
                ),
                "embedding_lookup",
            )
            for lowest in (0, -1)
            for part in (_LONG_PART, _SHORT_PART)
        }

    def _compiles(self) -> bool:
        return xla.can_compile() and not xla.is_disabled()

    # Lookup

    def pool(
        self, handle: tf.Tensor, ids: Ids, weights: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if not self._compiles():
            return self._plain.pool(handle, ids, weights)
        num_features = len(self._table.columns)
        packed = xla_bags.pack(ids, weights, num_features)
        if packed.splits is None:
            pooled, bad = self._one_hot_kernel(handle, *packed, compiled=True)
        else:
            lowest = 0 if isinstance(ids, tf.RaggedTensor) else -1
            pooled, bad = self._pool_packed_bags(handle, packed, lowest)
        return pooled[: bags.num_examples(ids, num_features)], bad

    def _pool_packed_bags(self, handle, packed, lowest):
        """Pool bags with the kernel for long or short bags, by their mean length."""
        num_values, num_bags = tf.shape(packed.ids)[0], tf.shape(packed.splits)[0] - 1
        long, short = (
            self._bag_kernels[lowest, part] for part in (_LONG_PART, _SHORT_PART)
        )
        pooled, bad = tf.cond(
            num_values > 2 * num_bags,
            lambda: long(handle, *packed, compiled=True),
            lambda: short(handle, *packed, compiled=True),
        )
        shape = (None, len(self._table.columns), self._table.width)
        return tf.ensure_shape(pooled, shape), bad

    def _pool_one_hot(self, handle, *packed):
        return xla_bags.pool_one_hot(
            lambda rows: row_ops.gather_from(handle, rows, self._table.width),
            xla_bags.PackedIds(*packed),
            self._table.places,
        )

    def _pool_bags(self, handle, packed, lowest, part):
        return xla_bags.pool_bags(
            lambda rows: row_ops.gather_from(handle, rows, self._table.width),
            xla_bags.PackedIds(*packed),
            self._table.places,
            lowest,
            part,
        )

    # Update

    def build_optimizer(self) -> None:
        self._updates = {}
        for part in self._table.parts:
            if part.optimizer.moves_other_rows:
                self._updates[id(part)] = AllRowsKernels(part, self._table)
            elif part.optimizer.is_linear or part.slots:
                self._updates[id(part)] = _PartKernels(part, self._table)

    def update(self, batch: PooledGradients, step: Step) -> None:
        parts = self._table.parts
        if not self._compiles():
            self._plain.update_parts(parts, batch, step)
            return
        updates = [self._updates[id(p)] for p in parts if id(p) in self._updates]
        if updates:
            packed = xla_bags.pack(batch.ids, batch.weights, len(self._table.columns))
            width = batch.gradients.shape[-1]
            gradients = tf.reshape(xla.pad_rows(batch.gradients), (-1, width))
        for kernels in updates:
            check = _check_count(batch.ids) if kernels.marks_state else None
            with tf.control_dependencies([] if check is None else [check]):
                kernels.update(packed, gradients, step)
        # The other parts have no state in which to mark repeated rows.
        others = [part for part in parts if id(part) not in self._updates]
        self._plain.update_parts(others, batch, step)


class _PartKernels:
    """The kernels that update one part of a fused table."""

    def __init__(self, part: TrainedPart, table: "FusedTable") -> None:
        self._part = part
        self.marks_state = not part.optimizer.is_linear
        # First slot row of each feature; -1 for features of other parts.
        slot_offsets = np.array(
            [part.first_slot_row.get(owner.name, -1) for owner in table.owners]
        )

        def flatten(*packed):
            packed = xla_bags.PackedIds(*packed)
            flat = xla_bags.flatten(packed, table.places, slot_offsets)
            saved = None
            if self.marks_state:
                saved = xla_updates.first_column(part.slots, flat)
            return flat, saved

        def write(flat, saved, gradients, rate, number, small):
            step = Step(number, {id(part.optimizer): rate})
            batch = xla_updates.FlatBatch(flat, gradients, saved)
            xla_updates.update(part, batch, step, small)

        def kernel(function, **options):
            bound = functools.partial(function, **options) if options else function
            return xla.Kernel(bound, "embedding_update")

        self._flatten = kernel(flatten)
        self._write_small = kernel(write, small=True)
        self._write_large = kernel(write, small=False)

    def update(
        self, packed: xla_bags.PackedIds, gradients: tf.Tensor, step: Step
    ) -> None:
        """Update the part from the gradients of pooled bags, `(N, D)`."""
        num_values = packed.ids.shape.num_elements()
        if num_values is None:
            num_values = tf.size(packed.ids)
        flat, saved = self._flatten(*packed, compiled=True)
        rate = step.rate(self._part.optimizer)
        arguments = (flat, saved, gradients, rate, step.number)
        small = xla_updates.is_small(num_values, gradients.shape[-1])
        if isinstance(small, bool):
            write = self._write_small if small else self._write_large
            write(*arguments, compiled=True)
            return

        def written(kernel):
            kernel(*arguments, compiled=True)
            return tf.constant(True)

        tf.cond(
            small,
            lambda: written(self._write_small),
            lambda: written(self._write_large),
        )


def _check_count(ids):
    """Refuse more values than float32 state can number exactly.

    Returns:
        The assertion that the update must wait for, or `None` if the number of values
        is static and valid.
    """
    values = ids.values if isinstance(ids, tf.RaggedTensor) else ids
    limit = xla_updates.MAX_VALUES
    message = f"A batch may have at most {limit:,} ids for tables of equal width."
    num_values = values.shape.num_elements()
    if num_values is None:
        num_values = tf.size(values, tf.int64)
        return tf.debugging.Assert(
            num_values <= limit, [message, "Received:", num_values]
        )
    if num_values > limit:
        raise ValueError(f"{message} Received: {num_values:,}")
    return None
