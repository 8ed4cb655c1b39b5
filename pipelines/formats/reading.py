"""Read the files of a log as a `tf.data.Dataset` of full batches of valid rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from pipelines.files import Paths, expand_paths, stamp
from pipelines.formats import row_form
from pipelines.formats.encoding import encode
from pipelines.formats.layout import Wanted
from pipelines.formats.scanning import ChunkReader, changed
from pipelines.quarantine import Quarantine
from pipelines.records.batch import take
from pipelines.runtime import UserError, remote_files
from pipelines.sampling import NegativeSampling, check_labels
from tf_dlrm.training.checkpoints import ResumableInput

BLOCK_BYTES = 4 << 20
_MAX_PARALLEL_FILES = 8
# Without this, AutoGraph would convert a function and all that it calls at each start.
_as_it_is = tf.autograph.experimental.do_not_convert


def read(
    paths: Paths,
    parser: Any,
    batch_size: int = 2048,
    shuffle: bool = False,
    *,
    labelled: bool = True,
    shuffle_buffer: int = 100_000,
    seed: int | None = None,
    repeat: bool = False,
    drop_remainder: bool = False,
    quarantine: Quarantine | None = None,
    worker: int = 0,
    num_workers: int = 1,
    negative_sampling: NegativeSampling | None = None,
) -> tf.data.Dataset:
    """Read click logs as batches for `fit`, `evaluate` or `predict`.

    Bad rows go to the quarantine and never into a batch; valid rows fill the batches.
    Without shuffling, rows are in the order of the files. With it, up to 8 files are
    read at a time, in a different order in each epoch, and their rows are permuted
    window by window.

    `tf.train.Checkpoint` can save the position of an iterator, and
    `tf_dlrm.callbacks.ResumableTraining` resumes training within an epoch (earlier
    lines are read again, at the speed of reading).

    Args:
        paths: A path, a glob, or a sequence of them; text, plain or compressed, or
            Parquet.
        parser: A `Parser`; its schema defines the columns.
        batch_size: Rows in a batch; the last one may have fewer.
        shuffle: Whether to shuffle, differently in each epoch.
        labelled: Whether rows must have a label. If not, the dataset has only features,
            for `predict`, and the label's column may be absent.
        shuffle_buffer: Rows in a window of the shuffle (0.16 kB each; two windows are
            in memory).
        seed: Seed of the shuffle; an integer makes the order repeatable.
        repeat: Whether to repeat epochs without end; batches then cross epochs.
        drop_remainder: Whether to leave out a last batch that is not full.
        quarantine: Collects bad rows. Default: `Quarantine()`, which counts them and
            fails if more than one in 10,000 rows is bad.
        worker: Number of this worker, from 0.
        num_workers: Number of workers that share the files; each reads every
            `num_workers`-th file.
        negative_sampling: The `NegativeSampling` of labelled rows without a click, the
            same in each epoch and for all workers. Default: no sampling.

    Returns:
        A `tf.data.Dataset` of `(features, label)`, with the sample weight as a third
        element if the schema has weights, or of features if not `labelled`:
        `dense_features` float32 `(B, num_dense)`, `sparse_features` int64 ragged
        `(B, num_sparse, None)`, `sparse_weights` of the same shape if values of bags
        have weights, label and weight float32 `(B,)`.

    Raises:
        FileNotFoundError: If a file is missing or a glob matches nothing.
        ValueError: If a path is a directory, all files are empty, or a number is not
            positive. During reading, the dataset raises an error with the text of a
            `ValueError` or `BadRowsError` for a truncated file or too many bad rows.

    Example:

    >>> import os, tempfile
    >>> import pipelines.criteo, pipelines.vocabulary
    >>> path = os.path.join(tempfile.mkdtemp(), "day_0")
    >>> with open(path, "w") as file:
    ...     for _ in range(5):
    ...         _ = file.write("1" + "\\t7" * 13 + "\\t0c1e8f72" * 26 + "\\n")
    >>> parser = pipelines.criteo.Parser(pipelines.vocabulary.HashVocabulary(1000))
    >>> train = pipelines.criteo.read(path, parser, batch_size=4)
    >>> [label.shape[0] for features, label in train]
    [4, 1]
    """
    for name, value in (("batch_size", batch_size), ("shuffle_buffer", shuffle_buffer)):
        if not hasattr(value, "__index__") or value < 1:
            raise UserError(f"`{name}` must be at least 1. Received: {name}={value!r}")
    paths = expand_paths(paths)
    if not 0 <= worker < num_workers:
        raise UserError(
            f"`worker` must be from 0 to num_workers - 1 = {num_workers - 1}. "
            f"Received: worker={worker!r}"
        )
    if len(paths) < num_workers:
        raise UserError(
            f"{num_workers} workers need at least {num_workers} files. Received: "
            f"{len(paths)}. Any number of workers can share records, which `tf-dlrm "
            "prepare` writes."
        )
    if negative_sampling is not None and not labelled:
        raise UserError("`negative_sampling` needs labels. Received: labelled=False")
    if negative_sampling is not None:
        check_labels(negative_sampling.rate, parser.schema.label.soft)
    numbers = range(len(paths))[worker::num_workers]
    paths = paths[worker::num_workers]
    source = _Source(
        paths, parser, labelled, quarantine or Quarantine(), negative_sampling, numbers
    )
    num_files = len(source.paths)
    drawn = int(np.random.SeedSequence().entropy & 0x7FFFFFFF)

    def epoch_rows(files, seeds):
        if not shuffle:
            return files.flat_map(source.rows)
        rows = files.interleave(
            source.rows,
            cycle_length=min(num_files, _MAX_PARALLEL_FILES),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return _shuffle(rows, shuffle_buffer, seeds)

    def numbered_epoch(epoch, seed):
        """Return the rows of an epoch in an order determined by its number."""
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        files = tf.range(num_files, dtype=tf.int64)
        if shuffle:
            files = _permute(files, key)
        seeds = tf.data.Dataset.counter(1).map(
            lambda window: tf.random.experimental.stateless_fold_in(key, window)
        )
        return epoch_rows(tf.data.Dataset.from_tensor_slices(files), seeds)

    def resume(position, seed):
        @_as_it_is
        def batches_from(epoch, first):
            rows = numbered_epoch(epoch, seed)
            if repeat:
                rows = tf.data.Dataset.counter().flat_map(
                    lambda epoch: numbered_epoch(epoch, seed)
                )
            return rows.rebatch(batch_size, drop_remainder).skip(first)

        return finish(position.begins().flat_map(batches_from))

    def finish(batches):
        batches = batches.map(
            source.form.to_batch,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        options = tf.data.Options()
        # Blocks are read by Python functions of (file, offset), so that a checkpoint
        # needs only the position of an iterator.
        options.experimental_external_state_policy = (
            tf.data.experimental.ExternalStatePolicy.IGNORE
        )
        # Workers of `tf.distribute` train on parts of each batch.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return batches.with_options(options).prefetch(tf.data.AUTOTUNE)

    files = tf.data.Dataset.range(num_files)
    if shuffle:
        files = files.shuffle(num_files, seed=seed)
    seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
    rows = epoch_rows(files, seeds.map(lambda seed: tf.stack([seed, 0])))
    rows = rows.repeat() if repeat else rows
    sampled = negative_sampling
    description = {
        "batch_size": batch_size,
        "shuffle": shuffle,
        "shuffle_buffer": shuffle_buffer if shuffle else None,
        "seed": seed,
        "repeat": repeat,
        "drop_remainder": drop_remainder,
        "negative_sampling": sampled and [sampled.rate, sampled.seed],
        "files": [[remote_files.name_of(p), remote_files.size_of(p)] for p in paths],
    }
    resumable = ResumableInput(
        description,
        drawn if seed is None else seed,
        resume,
        is_endless=repeat,
        files=tuple(paths),
    )
    return resumable.attach(finish(rows.rebatch(batch_size, drop_remainder)))


def _shuffle(rows, window_rows, seeds):
    """Permute the rows of windows, with seeds that are part of an iterator's state."""
    windows = tf.data.Dataset.zip((rows.rebatch(window_rows), seeds))

    @_as_it_is
    def permute(window, seed):
        order = _permute(tf.range(tf.size(window[0])), seed)
        return tuple(tf.gather(column, order) for column in window)

    return windows.map(permute, num_parallel_calls=2, deterministic=True)


def _permute(values, seed):
    return tf.random.experimental.stateless_shuffle(values, seed)


def _serialize(batch):
    """Return rows of a table as bytes, to put into a tensor."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


class _Source:
    """The valid rows of files, read block by block and decoded in parallel.

    TensorFlow's `TextLineDataset` is not used because it drops every carriage return,
    even inside a line, and mistakes a truncated gzip file for a short one.
    """

    def __init__(self, paths, parser, labelled, quarantine, sampling, numbers):
        self.paths = paths
        self._vocabulary = parser.vocabulary
        self._quarantine = quarantine
        quarantine.schema = parser.vocabulary.schema
        self._sampling, self._numbers = sampling, numbers
        schema = parser.vocabulary.schema
        self.form = row_form.RowForm(schema, labelled, parser.expand)
        self._reader = ChunkReader(schema, Wanted(label=labelled), BLOCK_BYTES)
        for path in paths:
            self._reader.layout(path)  # reports a missing column at once
        self._stamps = [stamp(path) for path in paths]
        self._unfinished = set(range(len(paths)))

    @_as_it_is
    def rows(self, file: tf.Tensor) -> tf.data.Dataset:
        """Return the dataset of one file: the rows of each block as `RowTensors`."""
        start = (tf.constant(0, tf.int64), tf.constant(0, tf.int64))

        def next_block(state, _):
            offset, first_line = state
            block, num_bytes, num_lines = tf.numpy_function(
                self._read, [file, offset], (tf.string, tf.int64, tf.int64)
            )
            block.set_shape(())
            num_bytes.set_shape(())
            num_lines.set_shape(())
            state = (offset + num_bytes, first_line + num_lines)
            return state, (block, first_line, num_lines)

        def decode(block, first_line, num_lines):
            types = (*self.form.types, tf.int64, tf.string, tf.string)
            *row, bad, lines, reasons = tf.numpy_function(
                self._decode, [file, first_line, block], types
            )
            row = tuple(self.form.with_shapes(row))
            return row, (first_line, num_lines, bad, lines, reasons)

        def record(row, found):
            num_lines = tf.numpy_function(self._record, [file, *found], tf.int64)
            num_lines.set_shape(())
            return row, num_lines

        blocks = tf.data.Dataset.counter().scan(start, next_block)
        decoded = blocks.map(
            decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        # In order, up to the end of the file, which is a block without lines.
        recorded = decoded.map(record)
        recorded = recorded.take_while(lambda _, num_lines: num_lines > 0)
        return recorded.map(lambda row, _: row)

    def _read(self, file, offset):
        chunk = self._reader.read(self.paths[file], int(offset))
        if not chunk.size:
            self._check_unchanged(file)
        content = chunk.content or b""
        if not isinstance(content, bytes):
            content = _serialize(content)
        # An object array, because NumPy drops NULs at the end of plain bytes.
        content = np.array(content, object)
        return content, np.int64(chunk.size), np.int64(chunk.num_rows)

    def _check_unchanged(self, file):
        if stamp(self.paths[file]) != self._stamps[file]:
            raise UserError(changed(self.paths[file]))

    def _decode(self, file, first_line, block):
        path = self.paths[file]
        if block and self._reader.is_table(path):
            block = pa.ipc.open_stream(block).read_next_batch()
        rows = self._reader.take_apart(path, block)
        positions, lines, reasons = [], [], []
        for position, line, reason in rows.bad:
            positions.append(position)
            lines.append(line)
            reasons.append(reason.encode())
        batch = encode(rows, self._vocabulary)
        if self._sampling is not None:
            good = np.delete(np.arange(rows.num_lines), positions)
            batch = self._sample(batch, int(file), int(first_line), good)
        return (
            *self.form.pack(batch),
            np.array(positions, np.int64),
            np.array(lines, object),
            np.array(reasons, object),
        )

    def _sample(self, batch, file, first_line, good):
        """Leave out negatives; `good` has the positions of the rows in their block."""
        number = self._numbers[file]  # the same for any number of workers
        kept = self._sampling.keep(number, first_line + good, batch.labels)
        self._sampling.record(number, first_line, int((~kept).sum()))
        return take(batch, np.flatnonzero(kept))

    def _record(self, file, first_line, num_lines, bad, lines, reasons):
        first_line, num_lines = int(first_line), int(num_lines)
        bad_lines = [
            (first_line + position, line, reason.decode())
            for position, line, reason in zip(bad.tolist(), lines, reasons, strict=True)
        ]
        self._quarantine.record(self.paths[file], first_line, num_lines, bad_lines)
        if not num_lines:
            self._unfinished.discard(int(file))
            if not self._unfinished:
                self._quarantine.check()
        return np.int64(num_lines)
