"""Read the binary layout of torchrec and MLPerf DLRM in batches."""

import os
from collections.abc import Sequence

import tensorflow as tf

from pipelines.files import expand_paths
from pipelines.records.order import WINDOW_ROWS
from pipelines.records.record_batches import make_dataset
from pipelines.records.store import Part, Store, read_header
from pipelines.runtime import UserError

_SUFFIX = "_dense.npy"


def read_npy(
    dense_paths,
    batch_size: int = 2048,
    shuffle: bool = False,
    *,
    vocabulary_sizes: Sequence[int] | None = None,
    seed: int | None = None,
    window_rows: int = WINDOW_ROWS,
    repeat: bool = False,
    first_batch: int = 0,
    drop_remainder: bool = False,
    worker: int = 0,
    num_workers: int = 1,
) -> tf.data.Dataset:
    """Read the files that torchrec and MLPerf DLRM write for Criteo's logs.

    Next to each `day_0_dense.npy`, float32 `(rows, 13)`, there must be
    `day_0_sparse.npy`, int32 `(rows, 26)`, and `day_0_labels.npy`, `(rows, 1)` or
    `(rows,)`. Files are read in pieces, never as a whole.

    Args:
        dense_paths: The `*_dense.npy` files: a path, a glob, or a sequence of them.
        vocabulary_sizes: Sizes to take ids modulo, like torchrec's `hashes`; default:
            ids must already be in their tables.
        batch_size: Rows in a batch; the last one of an epoch may have fewer.
        shuffle: Whether to shuffle, differently in each epoch.
        seed: Seed of the shuffle; an integer makes the order repeatable.
        window_rows: Rows of a window of the shuffle; three windows are in memory.
        repeat: Whether to repeat epochs without end.
        first_batch: Number of the batch to start with; with `repeat` it counts through
            the epochs.
        drop_remainder: Whether to leave out a last batch that is not full.
        worker: Number of this worker, from 0.
        num_workers: Number of workers that share each epoch.

    Returns:
        A `tf.data.Dataset` of the same elements as `records.read`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not a NumPy array of numbers, or the shapes of arrays
            do not match.

    Example:

    >>> import os, tempfile
    >>> import numpy as np
    >>> from pipelines import records
    >>> day = os.path.join(tempfile.mkdtemp(), "day_0")
    >>> np.save(day + "_dense.npy", np.ones((4, 13), np.float32))
    >>> np.save(day + "_sparse.npy", np.ones((4, 26), np.int32))
    >>> np.save(day + "_labels.npy", np.ones((4, 1), np.int32))
    >>> features, label = next(iter(records.read_npy(day + "_dense.npy")))
    >>> features["sparse_features"].shape, label.shape
    (TensorShape([4, 26, None]), TensorShape([4]))

    Reference:
        `torchrec.datasets.criteo.BinaryCriteoUtils`.
    """
    parts, widths = [], set()
    for dense in expand_paths(dense_paths):
        if not dense.endswith(_SUFFIX):
            raise UserError(
                f"`dense_paths` must be files '*{_SUFFIX}'. Received: {dense!r}"
            )
        stem = dense.removesuffix(_SUFFIX)
        paths = [f"{stem}_{part}.npy" for part in ("labels", "dense", "sparse")]
        for path in paths:
            if not os.path.exists(path):
                raise FileNotFoundError(f"There is no {path!r} next to {dense!r}.")
        shapes = [read_header(path)[1] for path in paths]
        if len({shape[0] for shape in shapes}) > 1 or len(shapes[2]) != 2:
            raise UserError(f"The shapes of {stem}_*.npy do not match: {shapes}")
        widths.add((shapes[1][1], shapes[2][1]))
        parts.append(Part(shapes[0][0], *paths, None))
    if len(widths) > 1:
        raise UserError(f"The files have different numbers of features: {widths}")
    (num_features,) = widths
    if vocabulary_sizes is not None and len(vocabulary_sizes) != num_features[1]:
        raise UserError(
            f"`vocabulary_sizes` must have {num_features[1]} entries. "
            f"Received: {len(vocabulary_sizes)}"
        )
    options = batch_size, shuffle, seed, window_rows, repeat, first_batch
    others = drop_remainder, worker, num_workers
    return make_dataset(Store(parts, vocabulary_sizes), num_features, *options, *others)
