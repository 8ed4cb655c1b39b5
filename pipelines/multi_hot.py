"""`MultiHot`: expand one-hot Criteo rows to the multi-hot rows of MLPerf's DLRM-v2.

# B rows of a batch, F features, C ids of a row: the sum of the hotness, V ids in all
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.runtime import UserError
from tf_dlrm import embedding

MLPERF_HOTNESS = (
    3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1,
)  # fmt: skip
DISTRIBUTIONS = ("uniform", "pareto")

# SplitMix64: its increment, and its finalizer as (shift, factor) pairs.
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_WORD = 2**64
_MANTISSA_BITS = 53  # integers up to 2^53 are exact in float64
_BLOCK_IDS = 2**15  # number of ids that NumPy makes at a time, to stay in the cache


class MultiHot:
    """Expand one-hot rows: the id of a feature becomes a fixed bag of ids.

    Each id has a fixed bag: the id itself, then `hotness - 1` further ids of the same
    vocabulary, drawn independently, so ids may repeat. The draws are a hash of only
    (seed, feature, id, place): a row has the same bags in any batch, on any machine, in
    NumPy and in TensorFlow. No table of bags is stored.

    Let `s(x, i)` be the number at position i (from 0) of SplitMix64 with seed x. The id
    at place p = 1, 2, ... of a bag is computed from

        u = s(s(s(seed, feature), id), p) >> 11

    in float64, each operation rounded according to IEEE 754, where `feature` is the
    position of the feature from 0 and n is the size of its vocabulary:

    - `"uniform"`: `floor(u * (n / 2^53))`.
    - `"pareto"`: `(floor((2^53 / (u + 1))^4) - 1) mod n`, with the power computed by
      squaring twice: a Pareto variable of shape 1/4, minus 1. Low ids are common, above
      all 0.

    Args:
        vocabulary_sizes: Number of ids of each feature, at most 2^53.
        hotness: Number of ids in a bag of each feature. Default: MLPerf's, for the 26
            features of Criteo: 214 ids per row.
        distribution: `"uniform"` (as in MLPerf) or `"pareto"`.
        seed: Integer in `[0, 2^63)`; another seed draws other bags.

    Raises:
        ValueError: If an argument is out of range; the message names it.

    Example:

    >>> import numpy as np
    >>> import pipelines, tensorflow as tf
    >>> expander = pipelines.MultiHot(vocabulary_sizes=[1000, 3], hotness=[4, 1])
    >>> ids = np.array([[7, 2], [7, -1]])
    >>> values, lengths = expander.expand_ids(ids)
    >>> lengths.tolist()
    [[4, 1], [4, 0]]
    >>> bool((values[:4] == values[5:]).all()), int(values[0])
    (True, 7)
    >>> batches = tf.data.Dataset.from_tensors({"sparse_features": ids})
    >>> features = next(iter(batches.map(expander.expand)))
    >>> bool((features["sparse_features"].flat_values.numpy() == values).all())
    True

    Reference:
        `torchrec_dlrm/multi_hot.py` of facebookresearch/dlrm, which makes MLPerf's
        dataset. It stores the bags of all ids in tables of `np.random` draws (24 GB at
        MLPerf's sizes). Sizes and distributions are the same here, but not the drawn
        ids. Its Pareto draws beyond 2^31 overflow and become the same id; these do not.
    """

    def __init__(
        self,
        vocabulary_sizes: Sequence[int],
        hotness: Sequence[int] = MLPERF_HOTNESS,
        distribution: str = "uniform",
        seed: int = 0,
    ):
        sizes = _check_counts("vocabulary_sizes", vocabulary_sizes, 2**_MANTISSA_BITS)
        self.vocabulary_sizes = sizes
        self.hotness = _check_counts("hotness", hotness, 2**31 - 1)
        if len(self.hotness) != len(self.vocabulary_sizes):
            raise UserError(
                "`hotness` must have one number for each of `vocabulary_sizes`. "
                f"Received: {len(self.hotness)} numbers in `hotness`, "
                f"{len(self.vocabulary_sizes)} in `vocabulary_sizes`"
            )
        if distribution not in DISTRIBUTIONS:
            raise UserError(
                f"`distribution` must be one of {DISTRIBUTIONS}. "
                f"Received: distribution={distribution!r}"
            )
        if not _is_integer(seed) or not 0 <= seed < 2**63:
            raise UserError(
                f"`seed` must be an integer in [0, 2^63). Received: seed={seed!r}"
            )
        self.distribution = distribution
        self.seed = int(seed)
        self._make_constants()

    def expand(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Expand a batch with TensorFlow operations, for `Dataset.map` and serving.

        Only one-hot rows can be expanded. A missing id stays an empty bag; id 0, the
        row of empty and unknown values, is expanded like any other. An id outside its
        vocabulary stays alone in its bag, so that the model raises an error or, in
        serving, drops it.

        Args:
            features: A batch with `"sparse_features"`: int32/int64 `(B, F)`, -1 for a
                missing id, or ragged `(B, F, None)` with at most one id (or -1) in a
                bag. Other entries are returned unchanged.

        Returns:
            The features with `"sparse_features"` as an int64 `tf.RaggedTensor`
            `(B, F, None)` of ragged rank 2 with uniform middle dimension.

        Raises:
            TypeError: If the ids are not integers.
            ValueError: If `"sparse_features"` is missing or has another shape, or if
                there are `"sparse_weights"`.
            tf.errors.InvalidArgumentError: If a bag has more than one id.

        Example:

        >>> import pipelines, tensorflow as tf
        >>> expander = pipelines.MultiHot([1000, 3], hotness=[2, 1])
        >>> ids = tf.ragged.constant([[[7], []]])
        >>> features = expander.expand({"sparse_features": ids})
        >>> features["sparse_features"].row_lengths(axis=2).to_list()
        [[2, 0]]
        """
        if "sparse_features" not in features:
            raise ValueError(
                "`features` must have the key 'sparse_features'. "
                f"Received: features with the keys {sorted(features)}"
            )
        if "sparse_weights" in features:
            raise ValueError(
                "`features` must not have 'sparse_weights', as drawn ids have no "
                "weights. Remove them to expand the ids. "
                f"Received: features with the keys {sorted(features)}"
            )
        ids_BF = self._to_one_hot(features["sparse_features"])
        valid_BF = (ids_BF >= 0) & (ids_BF < self._sizes)
        ids_BC = self._expand_tensor(ids_BF)

        def keep_all():
            return tf.reshape(ids_BC, [-1]), tf.zeros_like(ids_BF) + self._hotness

        def keep_valid():
            kept_BF = tf.not_equal(ids_BF, -1)
            kept_BC = self._compose(tf.transpose(kept_BF), self._repeat(valid_BF))
            lengths_BF = tf.where(valid_BF, self._hotness, tf.cast(kept_BF, tf.int64))
            return tf.boolean_mask(ids_BC, kept_BC), lengths_BF

        values_V, lengths_BF = tf.cond(tf.reduce_all(valid_BF), keep_all, keep_valid)
        row_splits = tf.concat([[0], tf.cumsum(tf.reshape(lengths_BF, [-1]))], axis=0)
        expanded = tf.RaggedTensor.from_uniform_row_length(
            tf.RaggedTensor.from_row_splits(values_V, row_splits, validate=False),
            len(self.hotness),
            nrows=tf.shape(ids_BF, tf.int64)[0],
            validate=False,
        )
        return {**features, "sparse_features": expanded}

    def expand_ids(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expand rows in NumPy, bit-equal to `expand`, to write files of bags.

        Args:
            ids: int32 or int64 `(n, F)`; -1 is a missing id and becomes an empty bag.

        Returns:
            `(values, lengths)`: all ids row by row, `(V,)`, and the number of ids in
            each bag, int32 `(n, F)`. `values` are int32 if `ids` are and no vocabulary
            is larger than 2^31, otherwise int64.

        Raises:
            TypeError: If `ids` are not int32 or int64.
            ValueError: If `ids` have another shape, or an id is outside its vocabulary.

        Example:

        >>> import numpy as np, pipelines
        >>> expander = pipelines.MultiHot([1000, 3], hotness=[2, 1])
        >>> values, lengths = expander.expand_ids(np.array([[7, 2], [-1, 2]]))
        >>> len(values), lengths.tolist()
        (4, [[2, 1], [0, 1]])
        """
        ids = self._check_ids(ids)
        is_there = ids >= 0
        all_there = bool(is_there.all())
        lengths = np.where(is_there, self._hotness.astype(np.int32), np.int32(0))
        is_narrow = ids.dtype == np.int32 and max(self.vocabulary_sizes) <= 2**31
        dtype = np.int32 if is_narrow else np.int64
        values = np.empty(lengths.sum(dtype=np.int64), dtype)
        num_columns = len(self._columns)
        num_rows = min(len(ids), max(1, _BLOCK_IDS // num_columns))
        words = np.empty((num_rows, num_columns), np.uint64)
        scratch = np.empty_like(words)
        end = 0
        for first in range(0, len(ids), num_rows or 1):
            rows = slice(first, first + num_rows)
            ids_BC = self._expand_array(ids[rows], words, scratch)
            if all_there:
                block = ids_BC.reshape(-1)
            else:
                block = ids_BC[np.take(is_there[rows], self._columns, axis=1)]
            start, end = end, end + len(block)
            values[start:end] = block
        return values, lengths

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        return {
            "vocabulary_sizes": list(self.vocabulary_sizes),
            "hotness": list(self.hotness),
            "distribution": self.distribution,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MultiHot":
        """Make an expander from `get_config()`."""
        return cls(**config)

    def _make_constants(self):
        """Set constants of each feature, (F,), and of the C columns of a row."""
        num_features = len(self.hotness)
        self._sizes = np.array(self.vocabulary_sizes, np.int64)
        self._hotness = np.array(self.hotness, np.int64)
        keys = [_stream(self.seed, feature) for feature in range(num_features)]
        # Including the increment of position 0, as in `_places`.
        self._keys = np.array([(key + _GOLDEN) % _WORD for key in keys], np.uint64)
        self._columns = np.repeat(np.arange(num_features), self.hotness)
        self._firsts = np.cumsum(self._hotness) - self._hotness
        places = np.arange(len(self._columns)) - self._firsts[self._columns]
        # Position of a column in the ids of the F features followed by the C columns.
        self._order = np.where(
            places == 0, self._columns, num_features + np.arange(len(places))
        )
        self._places = np.array(
            [(place + 1) * _GOLDEN % _WORD for place in places.tolist()], np.uint64
        )
        self._column_sizes = self._sizes[self._columns].astype(np.float64)

    def _to_one_hot(self, sparse_features):
        """Return int64 ids `(B, F)`, -1 for a missing id."""
        num_features = len(self.hotness)
        ids = embedding.standardize_ids(sparse_features, num_features)
        if isinstance(ids, tf.RaggedTensor):
            lengths = ids.row_lengths()
            message = (
                "`sparse_features` must have at most one id in a bag to be expanded "
                "to multi-hot. Received a bag with this number of ids:"
            )
            is_one_hot = tf.reduce_all(lengths <= 1)
            check = tf.debugging.Assert(is_one_hot, [message, tf.reduce_max(lengths)])
            with tf.control_dependencies([] if check is None else [check]):
                one_hot = ids.to_tensor(-1, shape=(None, 1))
                ids = tf.reshape(one_hot, (-1, num_features))
            ids.set_shape((sparse_features.shape[0], num_features))
        elif ids.shape.rank != 2:
            raise ValueError(
                f"`sparse_features` must be (batch, {num_features}) or ragged, with at "
                "most one id for each feature, to be expanded to multi-hot. "
                f"Received: shape {ids.shape}"
            )
        return tf.cast(ids, tf.int64)

    def _expand_tensor(self, ids_BF):
        # Columns come first, so that repeating and selecting them copies rows.
        states_BF = tf.bitcast(ids_BF, tf.uint64) * np.uint64(_GOLDEN) + self._keys
        states_CB = self._repeat(_mix_tensor(states_BF))
        words_CB = _mix_tensor(states_CB + self._places[:, None])
        words_CB = tf.bitwise.right_shift(words_CB, np.uint64(64 - _MANTISSA_BITS))
        u_CB = tf.cast(tf.bitcast(words_CB, tf.int64), tf.float64)
        sizes_C1 = self._column_sizes[:, None]
        if self.distribution == "uniform":
            drawn_CB = u_CB * (sizes_C1 * 2.0**-_MANTISSA_BITS)
        else:
            inverse_CB = 2.0**_MANTISSA_BITS / (u_CB + 1.0)
            square_CB = inverse_CB * inverse_CB
            drawn_CB = tf.floor(square_CB * square_CB) - 1.0
            drawn_CB = tf.math.floormod(drawn_CB, sizes_C1)
        return self._compose(tf.transpose(ids_BF), tf.cast(drawn_CB, tf.int64))

    def _repeat(self, tensor_BF):
        """Repeat the values of each feature for each of its columns: `(C, B)`."""
        return tf.gather(tf.transpose(tensor_BF), self._columns)

    def _compose(self, firsts_FB, others_CB):
        """Join values for the first ids and values for the others: `(B, C)`."""
        both = tf.concat([firsts_FB, others_CB], axis=0)
        return tf.transpose(tf.gather(both, self._order))

    def _expand_array(self, ids_BF, words_BC, scratch_BC):
        """Return int64 `(B, C)` in the memory of `words_BC`, with B or more rows."""
        words_BC, scratch_BC = words_BC[: len(ids_BF)], scratch_BC[: len(ids_BF)]
        drawn_BC, u_BC = words_BC.view(np.int64), scratch_BC.view(np.float64)
        states_BF = ids_BF.astype(np.int64).view(np.uint64) * np.uint64(_GOLDEN)
        states_BF += self._keys
        _mix_array(states_BF, np.empty_like(states_BF))
        np.take(states_BF, self._columns, axis=1, out=words_BC, mode="clip")
        words_BC += self._places
        _mix_array(words_BC, scratch_BC)
        words_BC >>= np.uint64(64 - _MANTISSA_BITS)
        u_BC[...] = drawn_BC
        if self.distribution == "uniform":
            u_BC *= self._column_sizes * 2.0**-_MANTISSA_BITS
        else:
            u_BC += 1.0
            np.divide(2.0**_MANTISSA_BITS, u_BC, out=u_BC)
            u_BC *= u_BC
            u_BC *= u_BC
            np.floor(u_BC, out=u_BC)
            u_BC -= 1.0
            np.fmod(u_BC, self._column_sizes, out=u_BC)
        drawn_BC[...] = u_BC
        drawn_BC[:, self._firsts] = ids_BF
        return drawn_BC

    def _check_ids(self, ids):
        ids = np.asarray(ids)
        if ids.dtype not in (np.int32, np.int64):
            raise TypeError(f"`ids` must be int32 or int64. Received: {ids.dtype}")
        num_features = len(self.hotness)
        if ids.ndim != 2 or ids.shape[1] != num_features:
            raise ValueError(
                f"`ids` must have the shape (n, {num_features}). Received: {ids.shape}"
            )
        wrong = (ids < -1) | (ids >= self._sizes)
        if wrong.any():
            row, feature = np.argwhere(wrong)[0].tolist()
            raise ValueError(
                f"`ids` must be in [0, {self.vocabulary_sizes[feature]}) in column "
                f"{feature}, or -1 for missing. Received: {ids[row, feature]} in row "
                f"{row}"
            )
        return ids


def _stream(seed, position):
    """Return the number at `position` of SplitMix64 as a Python integer."""
    word = (seed + (position + 1) * _GOLDEN) % _WORD
    for shift, factor in _ROUNDS:
        word = (word ^ (word >> shift)) * factor % _WORD
    return word ^ (word >> _LAST_SHIFT)


def _mix_tensor(words):
    for shift, factor in _ROUNDS:
        shifted = tf.bitwise.right_shift(words, np.uint64(shift))
        words = tf.bitwise.bitwise_xor(words, shifted) * np.uint64(factor)
    shifted = tf.bitwise.right_shift(words, np.uint64(_LAST_SHIFT))
    return tf.bitwise.bitwise_xor(words, shifted)


def _mix_array(words, scratch):
    """Mix words in place; `scratch` has the same shape."""
    for shift, factor in _ROUNDS:
        np.right_shift(words, np.uint64(shift), out=scratch)
        words ^= scratch
        words *= np.uint64(factor)
    np.right_shift(words, np.uint64(_LAST_SHIFT), out=scratch)
    words ^= scratch


def _is_integer(value):
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _check_counts(name, values, limit):
    counts = list(values) if np.iterable(values) else []
    if not counts or not all(_is_integer(c) and 1 <= c <= limit for c in counts):
        raise UserError(
            f"`{name}` must be a sequence of integers from 1 to {limit}. "
            f"Received: {name}={values!r}"
        )
    return tuple(int(count) for count in counts)
