"""`EmbeddingProjector`: rows of tables as labeled points."""

import io
import pathlib
import re
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from tensorboard.plugins import projector

from tf_dlrm.callbacks.watcher import TRAIN, Watcher
from tf_dlrm.runtime import disk
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Logs, PathLike


class EmbeddingProjector(Watcher):
    """Write rows of some tables for TensorBoard's projector after each epoch.

    Vectors and labels are text files in `<log_dir>/train/projector`, which each epoch
    replaces. The callback writes the first rows of a table. These belong to the most
    frequent values if ids are sorted by frequency, as in `pipelines.Vocabulary`.

    Args:
        log_dir: Folder of the run's logs.
        tables: Names of the tables.
        labels: Dict of table names to the labels of their rows, from id 0. Rows of
            other tables are labeled with their ids.
        max_rows: Maximum number of rows per table.

    Raises:
        ValueError: If there is no such table, or `max_rows` is not positive.
    """

    def __init__(
        self,
        log_dir: PathLike,
        tables: Sequence[str],
        labels: dict[str, Sequence[str]] | None = None,
        max_rows: int = 10_000,
    ) -> None:
        super().__init__(log_dir)
        if isinstance(tables, str) or not tables:
            raise UserError(
                "`tables` must be a list of at least one table name. Received: "
                f"{tables!r}"
            )
        if max_rows < 1:
            raise UserError(f"`max_rows` must be at least 1. Received: {max_rows}")
        self._tables, self._labels = tuple(tables), dict(labels or {})
        self._max_rows = max_rows

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        names = [table.name for table in model.spec.tables]
        unknown = [name for name in self._tables if name not in names]
        if unknown:
            raise UserError(
                f"There is no table {', '.join(unknown)} for the projector. Tables: "
                f"{', '.join(names)}"
            )

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        folder = self.log_dir / TRAIN / "projector"
        also = (tf.errors.OpError,)
        with disk.explaining("rows for the projector", folder, also=also):
            self._write_tables(folder)

    def _write_tables(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = projector.ProjectorConfig()
        sizes = {t.name: t.vocabulary_size for t in self.model.spec.tables}
        for name in self._tables:
            num_rows = min(sizes[name], self._max_rows)
            rows = self.model.embedding.get_rows(name, np.arange(num_rows))
            file = re.sub(r"[^\w.-]", "_", name)
            _write_vectors(folder / f"{file}.tsv", rows)
            self._write_labels(folder / f"{file}_labels.tsv", name, num_rows)
            entry = config.embeddings.add()
            entry.tensor_name = f"{name}: first {num_rows:,} of {sizes[name]:,} rows"
            entry.tensor_shape.extend(rows.shape)
            entry.tensor_path = f"projector/{file}.tsv"
            entry.metadata_path = f"projector/{file}_labels.tsv"
        projector.visualize_embeddings(str(self.log_dir / TRAIN), config)

    def _write_labels(self, path: pathlib.Path, name: str, num_rows: int) -> None:
        labels = self._labels.get(name, ())
        with open(path, "w", encoding="utf-8") as file:
            if not len(labels):  # a file with one column has no header
                file.writelines(f"{i}\n" for i in range(num_rows))
                return
            file.write("value\tid\n")
            for i in range(num_rows):
                label = _one_line(labels[i]) if i < len(labels) else ""
                file.write(f"{label or i}\t{i}\n")


def _write_vectors(path: pathlib.Path, rows: np.ndarray) -> None:
    text = io.BytesIO()
    np.savetxt(text, rows, fmt="%.6g", delimiter="\t")
    path.write_bytes(text.getvalue())


def _one_line(label: object) -> str:
    return re.sub(r"\s", " ", str(label)).strip()
