"""SipHash-2-4 of many values at once, in NumPy.

Equal to `tf.strings.to_hash_bucket_strong`, which the parser uses.

Reference:
    Aumasson and Bernstein 2012, "SipHash: a fast short-input PRF".
"""

import struct

import numpy as np
import pyarrow as pa

from pipelines.formats.fields import WORD, Values

_MASK = (1 << 64) - 1
_LONG_BYTES = 4096
_START = (
    0x736F6D6570736575,
    0x646F72616E646F6D,
    0x6C7967656E657261,
    0x7465646279746573,
)


def hash_values(values: Values, key: tuple[int, int]) -> np.ndarray:
    """Hash distinct values.

    Args:
        values: `keys` and `texts` are used.
        key: The two words of the key of the hash.

    Returns:
        uint64 of the keys and then of the texts.
    """
    hashes = hash_keys(values.keys, key)
    if not len(values.texts):
        return hashes
    return np.concatenate([hashes, hash_texts(values.texts, key)])


def hash_keys(keys: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Hash values of up to eight bytes, given as big-endian numbers."""
    words = keys.byteswap()
    lengths = np.zeros(len(words), np.uint64)
    for i in range(WORD):
        lengths += words >= np.uint64(1 << (8 * i))
    is_full = lengths == WORD
    state = _State(key, len(words))
    if is_full.any():
        state.absorb(words, None if is_full.all() else is_full)
    rest = np.where(is_full, np.uint64(0), words)
    return state.finish(rest | (lengths << np.uint64(56)))


def hash_texts(texts: pa.LargeBinaryArray, key: tuple[int, int]) -> np.ndarray:
    """Hash texts of any length."""
    sizes = np.diff(_offsets(texts))
    long = np.flatnonzero(sizes > _LONG_BYTES)
    if not len(long):
        return _hash_short_texts(texts, key)
    # Side by side, all would wait for the longest.
    hashes = np.empty(len(texts), np.uint64)
    for i in long.tolist():
        hashes[i] = hash_bytes(texts[i].as_py(), key)
    short = np.flatnonzero(sizes <= _LONG_BYTES)
    hashes[short] = _hash_short_texts(texts.take(pa.array(short)), key)
    return hashes


def hash_bytes(text: bytes, key: tuple[int, int]) -> int:
    """Hash one text, in plain Python."""
    v0, v1, v2, v3 = (start ^ key[i % 2] for i, start in enumerate(_START))
    padded = text + bytes(-(len(text) + 1) % WORD) + bytes([len(text) % 256])
    for (word,) in struct.iter_unpack("<Q", padded):
        v3 ^= word
        for _ in range(2):
            v0, v1, v2, v3 = _round_of_integers(v0, v1, v2, v3)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(4):
        v0, v1, v2, v3 = _round_of_integers(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _round_of_integers(v0, v1, v2, v3):
    v0 = (v0 + v1) & _MASK
    v2 = (v2 + v3) & _MASK
    v1 = (((v1 << 13) & _MASK) | (v1 >> 51)) ^ v0
    v3 = (((v3 << 16) & _MASK) | (v3 >> 48)) ^ v2
    v0 = ((v0 << 32) & _MASK) | (v0 >> 32)
    v2 = (v2 + v1) & _MASK
    v0 = (v0 + v3) & _MASK
    v1 = (((v1 << 17) & _MASK) | (v1 >> 47)) ^ v2
    v3 = (((v3 << 21) & _MASK) | (v3 >> 43)) ^ v0
    v2 = ((v2 << 32) & _MASK) | (v2 >> 32)
    return v0, v1, v2, v3


def _offsets(texts):
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    return offsets[texts.offset : texts.offset + len(texts) + 1]


def _hash_short_texts(texts, key):
    offsets = _offsets(texts)
    lengths = np.diff(offsets)
    data = texts.buffers()[2] or b""
    data = np.concatenate([np.frombuffer(data, np.uint8), np.zeros(WORD, np.uint8)])
    words = np.ndarray((len(data) - WORD + 1,), "<u8", data, 0, (1,))
    state = _State(key, len(texts))
    for place in range(0, int(lengths.max(initial=0)) // WORD * WORD, WORD):
        has_word = lengths >= place + WORD
        at = np.where(has_word, offsets[:-1] + place, 0)
        state.absorb(words[at], has_word)
    whole = lengths // WORD * WORD
    left = (lengths - whole).astype(np.uint64)
    rest = words[offsets[:-1] + whole]
    rest &= (np.uint64(1) << (np.uint64(8) * left)) - np.uint64(1)
    return state.finish(rest | (lengths.astype(np.uint64) << np.uint64(56)))


class _State:
    def __init__(self, key, size):
        self._v = [
            np.full(size, start ^ key[i % 2], np.uint64)
            for i, start in enumerate(_START)
        ]

    def absorb(self, words, where=None):
        """One word of the message; with `where` only of those messages."""
        before = None if where is None else [v.copy() for v in self._v]
        self._v[3] ^= words
        self._round()
        self._round()
        self._v[0] ^= words
        if before is not None:
            self._v = [np.where(where, v, b) for v, b in zip(self._v, before)]

    def finish(self, last):
        self.absorb(last)
        self._v[2] ^= np.uint64(0xFF)
        for _ in range(4):
            self._round()
        return self._v[0] ^ self._v[1] ^ self._v[2] ^ self._v[3]

    def _round(self):
        v = self._v
        v[0] += v[1]
        v[2] += v[3]
        v[1] = _rotate(v[1], 13) ^ v[0]
        v[3] = _rotate(v[3], 16) ^ v[2]
        v[0] = _rotate(v[0], 32)
        v[2] += v[1]
        v[0] += v[3]
        v[1] = _rotate(v[1], 17) ^ v[2]
        v[3] = _rotate(v[3], 21) ^ v[0]
        v[2] = _rotate(v[2], 32)


def _rotate(x, bits):
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))
