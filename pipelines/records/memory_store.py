"""Rows in memory, as a store that batches and shuffles are made from."""

from pipelines.records.batch import Batch, cut, id_ends


class MemoryStore:
    """The rows of a `Batch`, as a `Store`.

    Args:
        batch: The rows.

    Attributes:
        files: Its files: none.
        num_rows: Number of rows.
        id_dtype: NumPy dtype of the ids.
        parts: Names of the parts of the rows, such as `"weights"`.
    """

    files: tuple[str, ...] = ()

    def __init__(self, batch: Batch):
        self._batch, self._id_ends = batch, id_ends(batch)
        self.num_rows, self.id_dtype = len(batch.labels), batch.ids.dtype
        self.parts = {n for n, part in batch._asdict().items() if part is not None}

    def read(self, first: int, last: int) -> list[Batch]:
        """Return rows `first` .. `last - 1`, in one piece like `Store.read`."""
        return [cut(self._batch, self._id_ends, first, last)]
