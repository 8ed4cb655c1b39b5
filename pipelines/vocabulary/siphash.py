"""SipHash-2-4 of many values at once, computed by pandas.

The hashes equal those of `tf.strings.to_hash_bucket_strong`, which the parser uses.

Reference:
    Aumasson and Bernstein 2012, "SipHash: a fast short-input PRF".
"""

import struct

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.formats.fields import Values, texts_of_keys

# Pandas applies the finalizer of SplitMix64 on top: h ^= h >> shift, h *= factor, in
# turn. An odd factor has an inverse modulo 2^64; the last step is only a shift.
_FINALIZER = ((31, 1), (27, 0x94D049BB133111EB), (30, 0xBF58476D1CE4E5B9))


def hash_values(values: Values, key: tuple[int, int]) -> np.ndarray:
    """Hash distinct values.

    Args:
        values: The values; their `keys` and `texts` are used.
        key: The two words of the key of the hash.

    Returns:
        uint64 hashes of the keys and then of the texts.
    """
    texts = [texts_of_keys(values.keys), values.texts]
    return np.concatenate([hash_texts(part, key) for part in texts])


def hash_texts(texts: pa.LargeBinaryArray, key: tuple[int, int]) -> np.ndarray:
    """Hash texts of any length, without nulls."""
    if not len(texts):
        return np.zeros(0, np.uint64)
    hashes = pd.util.hash_array(
        texts.to_numpy(zero_copy_only=False),
        encoding="latin1",  # keeps the bytes of the key unchanged
        hash_key=struct.pack("<2Q", *key).decode("latin1"),
        categorize=False,
    )
    for shift, factor in _FINALIZER:
        hashes *= np.uint64(pow(factor, -1, 1 << 64))
        hashes ^= (hashes >> np.uint64(shift)) ^ (hashes >> np.uint64(2 * shift))
    return hashes
