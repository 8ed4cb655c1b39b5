"""The rows in which a model differs from a state that was published."""

import numpy as np

from tf_dlrm.model import DLRM
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.serving.deltas.state import ModelState
from tf_dlrm.serving.deltas.trained_rows import RowReader


def find_changes(model: DLRM, state: ModelState) -> dict[str, np.ndarray]:
    """Return the rows whose stored values differ, by table.

    It reads all tables block by block; `PublishDeltas`, which tracks rows, does not.

    Args:
        model: The model.
        state: The state, with the layout of an export of the model.
    """
    layout = state.base.layout
    reader = RowReader(model, layout.table_dtype)
    changed = {}
    for name, num_rows, width in layout.tables:
        parts = []
        for first, end in row_ops.block_ranges(num_rows, width):
            ids = np.arange(first, end)
            now, before = reader.read(name, ids), state.read_rows(name, ids)
            # As bytes: -0.0 is not 0.0, and a NaN equals itself.
            bits = [np.ascontiguousarray(part).view(np.uint8) for part in (now, before)]
            parts.append(ids[(bits[0] != bits[1]).any(axis=1)])
        changed[name] = np.concatenate([np.zeros(0, np.int64), *parts])
    return changed
