"""Files of Criteo lines -> a `tf.data.Dataset` of full batches of good rows."""

from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.files import BlockReader, Paths, expand_paths
from pipelines.quarantine import Quarantine

_MAX_PARALLEL_FILES = 8


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
) -> tf.data.Dataset:
    """Reads Criteo logs as batches for `fit`, `evaluate` or `predict`.

    Bad rows never reach a batch: they go to the quarantine, and good rows fill the
    batches. Without shuffling, rows come in the order of the files. With it, up to
    8 files are read at a time, in another order each epoch, and mixed in a buffer.
    The position of an iterator can be saved with `tf.train.Checkpoint`.

    Args:
        paths: A path, a glob, or a sequence of them; plain or gzip files.
        parser: A `criteo.Parser`.
        batch_size: Rows in a batch; the last one may have fewer.
        shuffle: Whether to shuffle, anew in each epoch.
        labelled: Whether rows must have a label. If not, the data set has features
            only, for `predict`, and lines may have 39 columns or 40.
        shuffle_buffer: Rows in the shuffle buffer, as text (about 0.3 kB each).
        seed: Seed of the shuffle; an integer makes the order repeatable.
        repeat: Whether to start over without end; batches then cross the epochs.
        drop_remainder: Whether to leave out a last batch that is not full.
        quarantine: Where bad rows go. `None`: `Quarantine()`, which counts them
            and fails at more than one in 10,000.

    Returns:
        A `tf.data.Dataset` of `(features, label)`, or of features, as the parser
        gives them: `dense_features` float32 `(B, 13)`, `sparse_features` int64
        ragged `(B, 26, None)`, label float32 `(B,)`.

    Raises:
        FileNotFoundError: If a file is missing or a glob matches nothing.
        ValueError: If a path is a directory, all files are empty, or a number is
            not positive. While it is read, the data set raises an error with the
            text of the `ValueError` or `BadRowsError` for a gzip file that was cut
            short and for too many bad rows.

    Example:

    >>> import os, tempfile
    >>> import pipelines.criteo, pipelines.vocabulary
    >>> path = os.path.join(tempfile.mkdtemp(), "day_0")
    >>> with open(path, "w") as file:
    ...     for _ in range(5):
    ...         _ = file.write("1" + "\\t7" * 13 + "\\t68fd1e64" * 26 + "\\n")
    >>> parser = pipelines.criteo.Parser(pipelines.vocabulary.HashVocabulary(1000))
    >>> train = pipelines.criteo.read(path, parser, batch_size=4)
    >>> [label.shape[0] for features, label in train]
    [4, 1]
    """
    for name, value in (("batch_size", batch_size), ("shuffle_buffer", shuffle_buffer)):
        if not hasattr(value, "__index__") or value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value!r}")
    source = _Source(expand_paths(paths), parser, labelled, quarantine or Quarantine())
    num_files = len(source.paths)
    files = tf.data.Dataset.range(num_files)
    if shuffle:
        files = files.shuffle(num_files, seed=seed)
        lines = files.interleave(
            source.lines,
            cycle_length=min(num_files, _MAX_PARALLEL_FILES),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        lines = lines.unbatch().shuffle(shuffle_buffer, seed=seed)
        lines = lines.repeat() if repeat else lines
        lines = lines.batch(batch_size, drop_remainder)
    else:
        lines = files.flat_map(source.lines)
        lines = lines.repeat() if repeat else lines
        lines = lines.rebatch(batch_size, drop_remainder)
    batches = lines.map(
        lambda lines, plain: parser.parse(lines, plain, labelled),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    options = tf.data.Options()
    # Blocks are read by Python functions of (file, offset), so that the position of
    # an iterator is all that a checkpoint needs.
    options.experimental_external_state_policy = (
        tf.data.experimental.ExternalStatePolicy.IGNORE
    )
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)


class _Source:
    """The good lines of files, read block by block in Python.

    TensorFlow's own `TextLineDataset` will not do: it drops every carriage return,
    also inside a line, and takes a gzip file that was cut short for a short file.
    """

    def __init__(self, paths, parser, labelled, quarantine):
        self.paths = paths
        self._parser = parser
        self._labelled = labelled
        self._quarantine = quarantine
        self._reader = BlockReader()
        self._unfinished = set(range(len(paths)))

    def lines(self, file: tf.Tensor) -> tf.data.Dataset:
        """The data set of one file: of each block, `(n,)` lines and which are plain."""
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

        def good_lines(block, first_line, num_lines):
            lines = tf.strings.split(block, "\n")
            valid, plain = self._parser.check(lines, self._labelled)
            bad = tf.where(tf.logical_not(valid))[:, 0]
            arguments = [file, first_line, num_lines, bad, tf.gather(lines, bad)]
            recorded = tf.numpy_function(self._record, arguments, tf.int64)
            with tf.control_dependencies([recorded]):
                good = tf.cond(
                    tf.equal(tf.size(bad), 0),
                    lambda: (lines, plain),
                    lambda: (
                        tf.boolean_mask(lines, valid),
                        tf.boolean_mask(plain, valid),
                    ),
                )
            return good, num_lines

        blocks = tf.data.Dataset.counter().scan(start, next_block)
        lines = blocks.map(good_lines).take_while(lambda _, num_lines: num_lines > 0)
        return lines.map(lambda good, _: good).prefetch(2)

    def _read(self, file, offset):
        block = self._reader.read(self.paths[file], int(offset))
        num_lines = block.count(b"\n") + (not block.endswith(b"\n"))
        # An object array, since NumPy drops the NULs at the end of plain bytes.
        return (
            np.array(block.removesuffix(b"\n"), dtype=object),
            np.int64(len(block)),
            np.int64(num_lines if block else 0),
        )

    def _record(self, file, first_line, num_lines, bad, lines):
        # The end of a file comes as a block of no lines. It splits into one, an empty
        # and so bad one, which the quarantine takes no notice of.
        first_line, num_lines = int(first_line), int(num_lines)
        bad_lines = [
            (first_line + position, line, self._parser.reason(line, self._labelled))
            for position, line in zip(bad.tolist(), lines.tolist(), strict=True)
        ]
        self._quarantine.record(self.paths[file], first_line, num_lines, bad_lines)
        if not num_lines:
            self._unfinished.discard(int(file))
            if not self._unfinished:
                self._quarantine.check()
        return np.int64(num_lines)
