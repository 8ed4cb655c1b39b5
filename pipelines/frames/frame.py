"""Convert batches to data frames, to inspect the inputs of a model."""

from typing import Any, Literal

import numpy as np

from tf_dlrm import FeatureSpec


def to_dataframe(
    dataset: Any,
    spec: FeatureSpec,
    label: str = "label",
    num_rows: int | None = None,
    library: Literal["pandas", "polars"] = "pandas",
    weight: str = "weight",
) -> Any:
    """Collect batches in a data frame, the inverse of `from_dataframe`.

    Args:
        dataset: An iterable of `(features, label)`, optionally with sample weights as a
            third element, or of features, such as `pipelines.records.read` and
            `pipelines.criteo.read` return; sparse features are ragged or
            `(B, num_sparse)`.
        spec: The features, such as `parser.spec()`.
        label: Name of the label column.
        num_rows: Maximum number of rows to take; default: all. They must fit in memory.
        library: Library of the frame, `"pandas"` or `"polars"`.
        weight: Name of the column of sample weights.

    Returns:
        A pandas or polars `DataFrame` with label and weight (float32), if any, the
        dense columns (float32) and the sparse columns: int64 if each row has one id (-1
        for a missing one), lists of ids if a feature has bags.

    Raises:
        ValueError: If the batches do not have the features of `spec`, or there are no
            rows.

    Example:

    >>> import pandas, pipelines, tf_dlrm
    >>> spec = tf_dlrm.FeatureSpec(
    ...     dense=["age"], tables=[tf_dlrm.EmbeddingTable("item", 100, 8)])
    >>> frame = pandas.DataFrame({"age": [0.5, 1.5], "item": [3, 7], "label": [0, 1]})
    >>> batches = pipelines.from_dataframe(frame, spec)
    >>> pipelines.to_dataframe(batches, spec)["item"].tolist()
    [3, 7]
    """
    targets, dense, ids, lengths = [], [], [], []
    left = np.inf if num_rows is None else num_rows
    for batch in dataset:
        features, *batch_targets = batch if isinstance(batch, tuple) else (batch,)
        if "dense_features" not in features:  # the schema has no dense features
            count = int(features["sparse_features"].shape[0])
            features = {"dense_features": np.empty((count, 0)), **features}
        count = min(left, int(features["dense_features"].shape[0]))
        if not count:
            break
        left -= count
        dense.append(np.asarray(features["dense_features"])[:count])
        targets.append([np.asarray(t).reshape(-1)[:count] for t in batch_targets])
        some_ids, some_lengths = _open(features["sparse_features"][:count])
        ids.append(some_ids)
        lengths.append(some_lengths)
    if not dense:
        raise ValueError("The dataset has no rows.")
    dense, ids = np.concatenate(dense), np.concatenate(ids)
    lengths = np.concatenate(lengths)
    found = dense.shape[1], lengths.shape[1]
    if found != (spec.num_dense, spec.num_sparse):
        raise ValueError(
            f"The batches have {found[0]} dense and {found[1]} sparse features, but "
            f"`spec` has {spec.num_dense} and {spec.num_sparse}."
        )
    columns = {
        name: np.concatenate(pieces)
        for name, pieces in zip((label, weight), zip(*targets, strict=True))
    }
    columns |= {name: dense[:, i] for i, name in enumerate(spec.dense)}
    starts = np.cumsum(lengths.reshape(-1)).reshape(lengths.shape) - lengths
    for i, name in enumerate(spec.sparse_features):
        columns[name] = _column(ids, starts[:, i], lengths[:, i])
    if library == "polars":
        import polars

        return polars.DataFrame(columns)
    import pandas

    return pandas.DataFrame(columns)


def _open(sparse):
    """Return the concatenated ids without -1, and lengths `(n, F)`."""
    if hasattr(sparse, "row_lengths"):
        num_rows = int(sparse.nrows())
        lengths = np.asarray(sparse.values.row_lengths()).reshape(num_rows, -1)
        return np.asarray(sparse.flat_values), lengths
    sparse = np.asarray(sparse)
    if sparse.ndim == 2:
        sparse = sparse[:, :, None]
    present = sparse >= 0
    return sparse[present].astype(np.int64), present.sum(2)


def _column(ids, starts, lengths):
    if lengths.max(initial=0) <= 1:
        column = np.full(len(lengths), -1, np.int64)
        column[lengths == 1] = ids[starts[lengths == 1]]
        return column
    return [ids[a : a + n].tolist() for a, n in zip(starts, lengths, strict=True)]
