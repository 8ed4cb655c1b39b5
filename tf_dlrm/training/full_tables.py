"""A warning when a growing table is nearly full."""

import warnings
from typing import TYPE_CHECKING, Any

import keras

from tf_dlrm.runtime.types import Logs

if TYPE_CHECKING:
    from tf_dlrm.training.row_sparse_model import RowSparseModel

FULL = 0.9
_ADVICE = {
    None: "New ids will read the fallback",
    "lru": "New ids will replace those that were not seen for the longest time",
    "lfu": "New ids will replace the rarest ones",
}


def grows(model: "RowSparseModel") -> bool:
    """Return whether the model has growing tables."""
    return any(table.growing is not None for table in model.spec.tables)


class FullTables(keras.callbacks.Callback):
    """Callback that warns, once for each growing table, at a load of 90 %."""

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        embedding: Any = self.model.embedding
        for table in self.model.spec.tables:
            if table.growing is None or table.name in self._warned:
                continue
            seen = embedding.occupancy(table.name)
            if seen.load < FULL:
                continue
            self._warned.add(table.name)
            warnings.warn(
                f"Growing table '{table.name}' is {seen.load:.0%} full: "
                f"{seen.num_ids:,} ids in {seen.num_slots:,} slots. "
                f"{_ADVICE[table.growing.evict]}. To "
                "keep more ids, choose a larger `vocabulary_size`; to admit fewer, "
                "raise `min_count`; to forget old ones, set `expire_after_steps`.",
                stacklevel=2,
            )
