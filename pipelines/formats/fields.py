"""Read fields of text as numbers and distinct values, vectorized in NumPy.

Nearly every number and hashed category fits in a word of eight bytes; other fields are
read in a slower way. The rules are those of `line_rules.py`.

# n rows, V values of one feature, K distinct ones
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.formats.line_rules import LARGEST, NUMBER, SMALLEST

WORD = 8  # bytes; also the smallest padding around a buffer of text
_MASKS = np.array([(1 << (8 * n)) - 1 for n in range(WORD + 1)], np.uint64)
_ZEROS = np.uint64(0x3030303030303030)
_EMPTY_BINARY = pa.array([], pa.large_binary())
_NUMBER = rf"\A(?:{NUMBER})\z"


class Values(NamedTuple):
    """The values of one categorical feature in some rows, with codes for distinct ones.

    Attributes:
        codes: int32 `(V,)`: position of each value in `keys`, then `texts`.
        lengths: int64 `(n,)` number of values in each row; `None`: one each.
        keys: uint64 `(K,)`, ascending: the distinct values of up to eight bytes without
            NUL, as big-endian numbers. They sort like the bytes, and 0 is the empty
            value.
        texts: `pa.LargeBinaryArray` of the other distinct values, ascending.
        weights: float32 `(V,)`, the weight of each value in its bag; `None`: 1 each.
    """

    codes: np.ndarray
    lengths: np.ndarray | None
    keys: np.ndarray
    texts: pa.LargeBinaryArray
    weights: np.ndarray | None = None


class Bags(NamedTuple):
    """The separators of a field that holds several values.

    Attributes:
        separator: Bytes between the values.
        weight_separator: Bytes between a value and its weight, or `None`.
        max_values: Largest number of values read from a field; `None`: no limit.
    """

    separator: bytes
    weight_separator: bytes | None = None
    max_values: int | None = None


def count_codes(values: Values, kept: np.ndarray | None = None) -> np.ndarray:
    """Return the count of each distinct value, int64: first of keys, then of texts.

    Args:
        values: The values.
        kept: bool `(n,)`, which rows to count; default: all.
    """
    codes = values.codes
    if kept is not None:
        if values.lengths is not None:
            kept = np.repeat(kept, values.lengths)
        codes = codes[kept]
    return np.bincount(codes, minlength=len(values.keys) + len(values.texts))


def open_texts(texts: pa.Array):
    """Open a column of strings or bytes as fields; null is an empty field.

    Returns:
        The `Text`, and the int64 `(n,)` starts and lengths of its fields.
    """
    texts = pc.fill_null(texts.cast(pa.large_binary()), b"")
    data, starts, lengths = _open_binary(texts)
    text = Text(data)
    return text, starts + text.first, lengths


def distinct_of_texts(texts: pa.LargeBinaryArray) -> Values:
    """Return `Values` of texts, each of which is one value."""
    return read_values(*open_texts(texts))


def is_one_of(text, starts, lengths, marks: Sequence[bytes]) -> np.ndarray:
    """Return which fields are in `marks`: bool `(n,)`."""
    found = np.zeros(len(starts), bool)
    for mark in marks:
        equal = lengths == len(mark)
        if not mark or not equal.any():
            found |= equal
            continue
        for place in range(0, len(mark), WORD):
            part = mark[place : place + WORD]
            word = np.uint64(int.from_bytes(part, "little"))
            rows = np.flatnonzero(equal)
            words = text.words[starts[rows] + place] & _MASKS[len(part)]
            equal[rows] = words == word
        found |= equal
    return found


def texts_of_keys(keys: np.ndarray) -> pa.LargeBinaryArray:
    """Return the values that keys stand for; see `Values`."""
    data = keys.astype(">u8").view(np.uint8).reshape(-1, WORD)
    used = data != 0
    offsets = np.concatenate([[0], np.cumsum(used.sum(1, dtype=np.int64))])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data[used])]
    return pa.Array.from_buffers(pa.large_binary(), len(keys), buffers)


def key_of_text(text: bytes) -> int:
    """Return the smallest key that is not below `text`: for a short text, its key."""
    key = int.from_bytes(text[:WORD].ljust(WORD, b"\0"), "big")
    longer = len(text) > WORD or b"\0" in text
    return min(key + longer, (1 << 64) - 1)


class Text:
    """A padded buffer of bytes, also viewed as a word at every position.

    Args:
        content: The bytes; a final line end is added if there is none.

    Attributes:
        raw: The bytes with their padding.
        first: Position of the first byte of the content in `raw`.
        end: Position after the last byte of the content.
        bytes: uint8 view of `raw`.
        words: uint64 view: the eight bytes from each position, little-endian.
        has_nul: Whether the content contains a NUL.
    """

    def __init__(self, content):
        size = len(content)
        end = b"" if content[-1:] in (b"", b"\n") else b"\n"
        padded = b"".join([b"\0" * 2 * WORD, content, end, b"\0" * 2 * WORD])
        self.first, self.end = 2 * WORD, 2 * WORD + size + len(end)
        self.bytes = np.frombuffer(padded, np.uint8)
        self.words = np.ndarray((len(padded) - WORD + 1,), "<u8", padded, 0, (1,))
        self.raw = padded
        self.has_nul = b"\0" in content


def read_integers(text, starts, lengths):
    """Read fields that should match `-?[0-9]+` or be empty.

    Args:
        text: The `Text`.
        starts: `(n,)` positions of the first bytes.
        lengths: `(n,)` numbers of bytes.

    Returns:
        float64 `(n,)`, 0 for an empty field, and which fields are valid.
    """
    ends = starts + lengths
    longest = int(lengths.max(initial=0))
    first = text.bytes[starts]
    negative = (first == ord("-")) & (lengths > 0)
    digits = lengths
    if negative.any():
        digits = lengths - negative
    numbers, valid = _read_digits(text, ends, np.minimum(digits, WORD))
    valid &= ~(negative & (digits == 0))
    if longest > WORD:
        more = np.flatnonzero((digits > WORD) & (digits <= 2 * WORD))
        high, high_valid = _read_digits(text, ends[more] - WORD, digits[more] - WORD)
        numbers[more] += high * 10**WORD
        valid[more] &= high_valid
    result = numbers.astype(np.float64)
    if longest > 2 * WORD:
        for i in np.flatnonzero(digits > 2 * WORD).tolist():
            field = text.raw[ends[i] - digits[i] : ends[i]]
            # Not `isdigit`, to accept ASCII digits only.
            valid[i] = not field.strip(b"0123456789")
            result[i] = float(field) if valid[i] else 0.0
        valid &= np.isfinite(result)
    if negative.any():
        result = np.where(negative, -result, result)
    return result, valid


def read_numbers(text, starts, lengths):
    """Read fields that should hold decimal numbers, such as `-1.5e3`, or be empty.

    Valid numbers match `_NUMBER` and are finite as float32.

    Args:
        text: The `Text`.
        starts: `(n,)` positions of the first bytes.
        lengths: `(n,)` numbers of bytes.

    Returns:
        float64 `(n,)`, 0 for an empty field, and which fields are valid.
    """
    numbers, valid = read_integers(text, starts, lengths)
    others = np.flatnonzero(~valid)
    if len(others):
        texts = take_binary(text, starts[others], lengths[others])
        numbers[others], valid[others] = _read_decimals(texts)
    sizes = np.abs(numbers)
    valid &= sizes <= LARGEST  # false for NaN
    if others.size:
        numbers[sizes < SMALLEST] = 0.0
    return numbers, valid


def _read_decimals(texts):
    # Arrow reads such numbers, and apart from them only "nan" and "inf".
    valid = np.ones(len(texts), bool)
    try:
        numbers = texts.cast(pa.large_string()).cast(pa.float64())
    except pa.ArrowInvalid:
        valid = pc.match_substring_regex(texts, _NUMBER).to_numpy(zero_copy_only=False)
        numbers = np.full(len(texts), np.nan)
        numbers[valid] = texts.filter(pa.array(valid)).cast(pa.string()).cast("float64")
        return numbers, valid
    return numbers.to_numpy(zero_copy_only=False), valid


def _read_digits(text, ends, num_digits):
    """Return the `num_digits` (at most 8) bytes before `ends` as uint64 numbers.

    Also return a mask of those that consist of digits only.
    """
    words = text.words[ends - WORD]
    unused = _MASKS[WORD - num_digits]
    words = (words & ~unused) | (_ZEROS & unused)
    # A digit is 0x30 .. 0x39: its high half is 3, and stays 3 if 6 is added.
    carried = words + np.uint64(0x0606060606060606)
    high = np.uint64(0xF0F0F0F0F0F0F0F0)
    valid = ((words & high) == _ZEROS) & ((carried & high) == _ZEROS)
    # Combine neighbours to numbers of two, four and eight digits.
    words &= np.uint64(0x0F0F0F0F0F0F0F0F)
    words = (words * np.uint64(2561)) >> np.uint64(8)
    words &= np.uint64(0x00FF00FF00FF00FF)
    words = (words * np.uint64(6553601)) >> np.uint64(16)
    words &= np.uint64(0x0000FFFF0000FFFF)
    words = (words * np.uint64(42949672960001)) >> np.uint64(32)
    return words, valid


def read_values(text, starts, lengths) -> Values:
    """Find the distinct values of fields that hold one value each.

    Args:
        text: The `Text`.
        starts: `(n,)` positions of the first bytes.
        lengths: `(n,)` numbers of bytes.
    """
    is_long = lengths > WORD
    if text.has_nul:
        is_long |= _holds_nul(text, starts, lengths)
    words = text.words[starts]
    any_long = bool(is_long.any())
    if any_long:
        words, lengths_short = words[~is_long], lengths[~is_long]
    else:
        lengths_short = lengths
    if lengths_short.min(initial=WORD) < WORD:
        words = words & _MASKS[lengths_short]
    codes, keys = _distinct_keys(words)
    if not any_long:
        return Values(codes, None, keys, _EMPTY_BINARY)
    long = np.flatnonzero(is_long)
    found = _distinct_texts(take_binary(text, starts[long], lengths[long]))
    all_codes = np.empty(len(lengths), np.int32)
    all_codes[~is_long] = codes
    all_codes[long] = found[0] + len(keys)
    return Values(all_codes, None, keys, found[1])


def read_bags(
    text, starts, lengths, bags: Bags, missing: np.ndarray
) -> tuple[Values, np.ndarray]:
    """Find the distinct values of fields that may hold several.

    Args:
        text: The `Text`.
        starts: `(n,)` positions of the first bytes.
        lengths: `(n,)` numbers of bytes.
        bags: The separators and the limit.
        missing: bool `(n,)`, which fields are missing: they hold the empty value.

    Returns:
        The values, and which fields are valid: bool `(n,)`.
    """
    fields = take_binary(text, starts, np.where(missing, 0, lengths))
    pieces = pc.split_pattern(fields, bags.separator)
    counts = np.diff(np.asarray(pieces.offsets))
    data, starts, lengths = _open_binary(pieces.flatten())
    rows = np.repeat(np.arange(len(counts)), counts)
    is_alone = missing[rows]
    text, weights = Text(data), None
    starts, valid = starts + text.first, np.ones(len(counts), bool)
    if bags.weight_separator is not None:
        pieces = take_binary(text, starts, lengths)
        lengths, weights, has_weight = _split_weights(pieces, bags.weight_separator)
        valid[rows[~has_weight]] = False
    kept = (lengths > 0) | is_alone
    if bags.max_values is not None:
        # For each piece, the number of kept pieces before it in its row.
        before = np.cumsum(kept) - kept
        first = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        first = np.minimum(first, len(before) - 1)
        kept &= before - before[first[rows]] < bags.max_values
    counts = np.bincount(rows[kept], minlength=len(counts))
    values = read_values(text, starts[kept], lengths[kept])
    weights = None if weights is None else weights[kept]
    return values._replace(lengths=counts, weights=weights), valid


def _split_weights(pieces, separator):
    """Return the lengths of the values, float32 weights, and which are numbers."""
    lengths, weights, valid = [], [], []
    values = pc.binary_length(pieces).to_numpy(zero_copy_only=False).astype(np.int64)
    found = pc.split_pattern(pieces, separator, max_splits=1, reverse=True)
    has_weight = np.diff(np.asarray(found.offsets)) == 2
    last = np.asarray(found.offsets)[1:][has_weight] - 1
    texts = found.values.take(pa.array(last))
    text, starts, lengths = open_texts(texts)
    numbers, good = read_numbers(text, starts, lengths)
    good &= lengths > 0
    weights = np.ones(len(pieces), np.float32)
    weights[has_weight] = np.where(good, numbers, 1.0)
    values[has_weight] -= lengths + len(separator)
    valid = np.ones(len(pieces), bool)
    valid[has_weight] = good
    return values, weights, valid


def _distinct_keys(words):
    """Return codes of words, and distinct words as ascending big-endian numbers."""
    encoded = pa.array(words).dictionary_encode()
    keys = encoded.dictionary.to_numpy().byteswap()
    codes = encoded.indices.to_numpy()
    order = np.argsort(keys)
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return ranks[codes], keys[order]


def _distinct_texts(texts):
    encoded = texts.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return ranks[encoded.indices.to_numpy()], encoded.dictionary.take(pa.array(order))


def take_binary(text, starts, lengths) -> pa.LargeBinaryArray:
    """Copy fields into a new array."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    places = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    data = text.bytes[places]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers)


def _open_binary(array):
    """Return the bytes of an array of binaries, with starts and lengths of values."""
    if not len(array):
        return b"", np.zeros(0, np.int64), np.zeros(0, np.int64)
    offsets = np.frombuffer(array.buffers()[1], np.int64)
    offsets = offsets[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    data = b"" if data is None else memoryview(data)[offsets[0] : offsets[-1]]
    return bytes(data), offsets[:-1] - offsets[0], np.diff(offsets)


def _holds_nul(text, starts, lengths):
    words = text.words[starts] | ~_MASKS[np.minimum(lengths, WORD)]
    low, high = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
    return ((words - low) & ~words & high) != 0
