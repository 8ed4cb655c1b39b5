"""Read records as a `tf.data.Dataset` of batches that can resume at any batch."""

import numpy as np
import tensorflow as tf

from pipelines.records.batch import row_splits
from pipelines.records.features import make_features
from pipelines.records.layout import Manifest
from pipelines.records.order import WINDOW_ROWS, Order
from pipelines.records.sampled import SampledStore
from pipelines.records.store import Part, Store
from pipelines.runtime import UserError
from pipelines.sampling import NegativeSampling, check_labels
from tf_dlrm.training.checkpoints import ResumableInput


def read(
    folder,
    batch_size: int = 2048,
    shuffle: bool = False,
    *,
    split: str = "train",
    seed: int | None = None,
    window_rows: int = WINDOW_ROWS,
    repeat: bool = False,
    first_batch: int = 0,
    drop_remainder: bool = False,
    worker: int = 0,
    num_workers: int = 1,
    negative_sampling: NegativeSampling | None = None,
) -> tf.data.Dataset:
    """Read records as batches for `fit`, `evaluate` or `predict`.

    The content of a batch is a function of the seed and its number, so the position of
    an iterator, saved by `tf.train.Checkpoint` or passed as `first_batch`, is exact
    within an epoch. Memory does not grow with the number of rows.

    Args:
        folder: Folder that `tf-dlrm prepare` wrote, with a `manifest.json`.
        batch_size: Rows in a batch; the last one of an epoch may have fewer.
        shuffle: Whether to shuffle, differently in each epoch: chunks of 4,096 rows
            over all the data, and rows within windows of chunks.
        split: Name of the split: `"train"`, `"valid"` or `"test"`.
        seed: Seed of the shuffle; an integer makes the order repeatable.
        window_rows: Rows of a window; three windows are in memory.
        repeat: Whether to repeat epochs without end; pass `steps_per_epoch` to `fit`
            then. Batches do not cross epochs.
        first_batch: Number of the batch to start with; with `repeat` it counts through
            the epochs.
        drop_remainder: Whether to leave out a last batch that is not full.
        worker: Number of this worker, from 0.
        num_workers: Number of workers that share each epoch in equal parts, without up
            to `num_workers - 1` rows that are left over; all must use the same seed.
        negative_sampling: The `NegativeSampling` of rows without a click, the same in
            each epoch and for all workers; default: no sampling. With sampling, the
            labels of the split are read once before the first batch.

    Returns:
        A `tf.data.Dataset` of known cardinality with elements `(features, label)`:
        `dense_features` float32 `(B, num_dense)`, `sparse_features` an int64 ragged
        tensor `(B, num_sparse, None)` (a missing value is an empty bag), label float32
        `(B,)`. If the records have weights of ids, features include `sparse_weights`;
        if they have sample weights, these are a third element.

    Raises:
        FileNotFoundError: If there are no finished records.
        ValueError: If a file is missing or its size differs from the manifest, there is
            no such split, or an argument is out of range.

    Example:

    >>> import tempfile
    >>> import numpy as np
    >>> from pipelines import records
    >>> folder = tempfile.mkdtemp()
    >>> schema = records.Schema(dense=["age"], sparse=["item"], vocabulary_sizes=[9])
    >>> with records.Writer(folder, schema) as writer:
    ...     writer.append(np.zeros(5), np.ones((5, 1)), np.arange(5)[:, None])
    >>> [len(label) for _, label in records.read(folder, batch_size=2, shuffle=True)]
    [2, 2, 1]
    """
    manifest = Manifest.load(folder)
    rows = open_rows(folder, manifest, split, negative_sampling)
    num_features = len(manifest.schema.dense), len(manifest.schema.sparse)
    options = batch_size, shuffle, seed, window_rows, repeat, first_batch
    others = drop_remainder, worker, num_workers
    return make_dataset(rows, num_features, *options, *others)


def open_rows(
    folder,
    manifest: Manifest,
    split: str,
    negative_sampling: NegativeSampling | None = None,
) -> Store | SampledStore:
    """Return the store of a split's rows; the arguments are those of `read`."""
    parts = [
        Part(
            shard.num_rows,
            *(
                shard.path(folder, part) if shard.has(part) else None
                for part in Part._fields[1:]
            ),
        )
        for shard in manifest.shards_of(split)
        if shard.num_rows
    ]
    store = Store(parts)
    if negative_sampling is None:
        return store
    are_soft = any(shard.has_soft_labels(folder) for shard in manifest.shards)
    check_labels(negative_sampling.rate, are_soft)
    return SampledStore(store, negative_sampling)


def make_dataset(
    store: Store | SampledStore,
    num_features: tuple[int, int],
    batch_size: int,
    shuffle: bool,
    seed: int | None,
    window_rows: int,
    repeat: bool,
    first_batch: int,
    drop_remainder: bool,
    worker: int,
    num_workers: int,
) -> tf.data.Dataset:
    """Return the dataset of a store's rows; the other arguments are those of `read`.

    Args:
        store: The rows.
        num_features: Numbers of dense and of sparse features.
    """
    minimum = {"batch_size": 1, "window_rows": 1, "first_batch": 0, "num_workers": 1}
    arguments = locals()
    for name, least in minimum.items():
        value = arguments[name]
        if not hasattr(value, "__index__") or value < least:
            raise UserError(f"`{name}` must be at least {least}. Received: {value!r}")
    if not 0 <= worker < num_workers:
        raise UserError(
            f"`worker` must be from 0 to num_workers - 1 = {num_workers - 1}. "
            f"Received: worker={worker!r}"
        )
    given_seed = seed
    if seed is None:
        if num_workers > 1 and shuffle:
            raise UserError(
                "Workers that share a shuffled epoch need the same `seed`: pass an "
                "integer."
            )
        seed = int(np.random.SeedSequence().entropy & 0x7FFFFFFF)
    num_rows = store.num_rows // num_workers
    num_batches = num_rows // batch_size
    if num_rows % batch_size and not drop_remainder:
        num_batches += 1
    if repeat and not num_batches:
        raise UserError(
            "`repeat=True` needs at least one row, but the split contains none."
        )
    first_batch = first_batch if repeat else min(first_batch, num_batches)

    def batches(numbers, seed):
        order = Order(store, shuffle, seed, window_rows, worker, num_workers)
        load = _Loader(order, batch_size, num_features, store)
        return numbers.map(
            load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    @tf.autograph.experimental.do_not_convert
    def numbers_from(epoch, first):
        """Yield `(epoch, number)` of batches, starting at a batch of an epoch."""
        if repeat:
            numbers = tf.data.Dataset.counter(first)
            return numbers.map(lambda i: (i // num_batches, i % num_batches))
        numbers = tf.data.Dataset.range(first, num_batches)
        return numbers.map(lambda i: (tf.cast(epoch, tf.int64), i))

    def resume(position, seed):
        begins = position.begins()
        numbers = begins.flat_map(lambda epoch, i: numbers_from(epoch, first_batch + i))
        return _finish(batches(numbers, seed))

    if repeat:
        numbers = numbers_from(None, first_batch)
    else:
        # One number for each epoch; the first is the same in each process.
        epochs = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
        numbers = epochs.flat_map(lambda epoch: numbers_from(epoch, first_batch))
    cardinality = tf.data.INFINITE_CARDINALITY if repeat else num_batches - first_batch
    dataset = batches(numbers, seed).apply(
        tf.data.experimental.assert_cardinality(cardinality)
    )
    description = {
        name: arguments[name]
        for name in ("batch_size", "shuffle", "repeat", "first_batch", "drop_remainder")
    }
    description |= {"rows": store.num_rows, "seed": given_seed}
    description |= {"worker": worker, "num_workers": num_workers}
    description["window_rows"] = window_rows if shuffle else None
    resumable = ResumableInput(
        description,
        seed,
        resume,
        num_batches=None if repeat else cardinality,
        is_endless=repeat,
        files=tuple(store.files),
    )
    return resumable.attach(_finish(dataset))


def _finish(batches):
    options = tf.data.Options()
    # A batch is a function of its number, which is the whole state.
    options.experimental_external_state_policy = (
        tf.data.experimental.ExternalStatePolicy.IGNORE
    )
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)


class _Loader:
    """Load the batch of an `(epoch, number)` as tensors."""

    def __init__(self, order, batch_size, num_features, store):
        parts = store.parts
        self._id_type = tf.as_dtype(store.id_dtype)
        self._order, self._batch_size = order, batch_size
        self._num_dense, self._num_sparse = num_features
        self._has_id_weights = "id_weights" in parts
        self._is_weighted = "weights" in parts
        # Row splits of one-hot features; batches share them without a copy.
        self._splits = np.arange(batch_size * self._num_sparse + 1)

    @tf.autograph.experimental.do_not_convert
    def __call__(self, epoch, number):
        types = [tf.float32, tf.float32, self._id_type, tf.int64]
        types += [tf.float32] * (self._has_id_weights + self._is_weighted)
        label, dense, ids, splits, *weights = tf.numpy_function(
            self._load, [epoch, number], types
        )
        label.set_shape((None,))
        dense.set_shape((None, self._num_dense))
        ids = tf.cast(tf.reshape(ids, [-1]), tf.int64)
        num_rows = tf.size(label, tf.int64)
        splits = tf.cond(
            tf.size(splits) > 0,
            lambda: splits,
            lambda: tf.constant(self._splits)[: num_rows * self._num_sparse + 1],
        )
        splits.set_shape((None,))
        for tensor in weights:
            tensor.set_shape((None,))
        features = make_features(
            dense if self._num_dense else None,
            ids,
            splits,
            weights[0] if self._has_id_weights else None,
            self._num_sparse,
            num_rows,
        )
        if self._is_weighted:
            return features, label, weights[-1]
        return features, label

    def _load(self, epoch, number):
        first = int(number) * self._batch_size
        last = min(first + self._batch_size, self._order.num_rows)
        batch = self._order.read(int(epoch), first, last)
        ids, lengths = batch.ids, batch.lengths
        if lengths is None and (ids < 0).any():  # missing ids are empty bags
            lengths = ids >= 0
            ids = ids[lengths]
        splits = np.zeros(0, np.int64)  # stands for one id in each bag
        if lengths is not None:
            splits = row_splits(lengths)
        weights = []
        if self._has_id_weights:
            own = batch.id_weights
            weights = [np.ones(len(ids), np.float32) if own is None else own]
        if self._is_weighted:
            weights.append(batch.weights)
        label = batch.labels.astype(np.float32)
        return label, batch.dense, ids, splits, *weights
