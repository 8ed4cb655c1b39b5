"""Hashes of ids with TensorFlow's operations: slots, and random numbers by id."""

import zlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

ROW_SALT, ADMISSION_SALT, SKETCH_SALT = 1, 2, 3
_MASK = (1 << 64) - 1


def murmur(ids: tf.Tensor) -> tf.Tensor:
    """Return `murmur_hash3_2x64(id, 0, 0)` of int64 ids, as uint64.

    Reference:
        FBGEMM's `zero_collision_hash`; MurmurHash3 by Austin Appleby, public domain.
    """
    k = _unsigned(ids) * _word(0x87C37B91114253D5)
    k = _rotate(k, 31) * _word(0x4CF5AD432745937F)
    five, sixteen = _word(5), _word(16)
    h1 = _rotate(k, 27) * five + _word(0x52DCE729)
    h2 = h1 * five + _word(0x38495AB5)
    h1, h2 = tf.bitwise.bitwise_xor(h1, sixteen), tf.bitwise.bitwise_xor(h2, sixteen)
    h1 += h2
    h2 += h1
    h1, h2 = _finish(h1), _finish(h2)
    h1 += h2
    h2 += h1
    return tf.bitwise.bitwise_xor(h1, h2)


def keys(seeds: Sequence[int], names: Sequence[str], salt: int) -> np.ndarray:
    """Return the uint64 key of each table, from its seed and name."""
    words = [
        (seed & _MASK) ^ (zlib.crc32(name.encode()) << 32) ^ salt
        for seed, name in zip(seeds, names, strict=True)
    ]
    return np.array([_splitmix_of(word) for word in words], np.uint64)


def bits(ids: tf.Tensor, key: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Return random 64 bits, uint64, keyed by id, key and number.

    Args:
        ids: int64.
        key: uint64 from `keys`, one for each id.
        numbers: int64, broadcast to the ids.
    """
    state = _splitmix(tf.bitwise.bitwise_xor(_unsigned(ids), key))
    return _splitmix(state + _unsigned(numbers))


def uniform(ids: tf.Tensor, key: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Return random float32 numbers in [0, 1), multiples of 2^-24; see `bits`."""
    high = tf.bitwise.right_shift(bits(ids, key, numbers), _word(40))
    return tf.cast(_signed(high), tf.float32) * tf.constant(2.0**-24)


def modulo(hashes: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Return uint64 hashes modulo int64 sizes, as int64."""
    return _signed(tf.math.floormod(hashes, _unsigned(sizes)))


def quotient(hashes: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Return uint64 hashes divided by int64 sizes and rounded down, uint64."""
    sizes = tf.broadcast_to(_unsigned(sizes), tf.shape(hashes))
    return tf.math.floordiv(hashes, sizes)


def _word(value):
    return tf.constant(value, tf.uint64)


def _unsigned(values):
    return tf.bitcast(values, tf.uint64)


def _signed(values):
    return tf.bitcast(values, tf.int64)


def _rotate(x, count):
    left = tf.bitwise.left_shift(x, _word(count))
    return tf.bitwise.bitwise_or(left, tf.bitwise.right_shift(x, _word(64 - count)))


def _xor_shift(x, count):
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _word(count)))


def _finish(k):
    k = _xor_shift(k, 33) * _word(0xFF51AFD7ED558CCD)
    return _xor_shift(_xor_shift(k, 33) * _word(0xC4CEB9FE1A85EC53), 33)


def _splitmix(x):
    x = x + _word(0x9E3779B97F4A7C15)
    x = _xor_shift(x, 30) * _word(0xBF58476D1CE4E5B9)
    return _xor_shift(_xor_shift(x, 27) * _word(0x94D049BB133111EB), 31)


def _splitmix_of(x):
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
