"""Criteo's text of generated rows."""

import re

import numpy as np
import pytest
from helpers.planted_rows import collect

from pipelines.synthetic import category_text


def test_lines_hold_the_generated_values(planted, written):
    _, lines, _ = written
    block = collect(planted, 20_000, first_row=123)
    texts = [
        category_text(n, np.maximum(block.categories[:, n - 1], 0))
        for n in range(1, 27)
    ]
    for row in (0, 1, 777, 16_260, 16_261, 19_999):
        expected = [str(block.labels[row])]
        expected += [
            "" if missing else str(value)
            for value, missing in zip(
                block.integers[row], block.integers_missing[row], strict=True
            )
        ]
        expected += [
            "" if rank < 0 else text[row]
            for rank, text in zip(block.categories[row], texts, strict=True)
        ]
        assert lines[row].split("\t") == expected


def test_every_line_is_criteo_tsv(written):
    _, lines, _ = written
    pattern = re.compile(r"[01](\t(0|-?[1-9][0-9]*)?){13}(\t([0-9a-f]{8})?){26}")
    assert len(lines) == 20_000
    assert all(pattern.fullmatch(line) for line in lines)


def test_integers_of_any_width_and_sign_are_written():
    from pipelines.synthetic.tsv import encode_rows

    integers = np.asarray([[0, -1, 10, -2_000_000], [5, 907, -30, 1_234_567_890_123]])
    missing = np.zeros(integers.shape, bool)
    missing[1, :3] = True
    text = encode_rows(np.asarray([1, 0]), integers, missing, np.full((2, 1), -1))
    assert text == b"1\t0\t-1\t10\t-2000000\t\n0\t\t\t\t1234567890123\t\n"


def test_category_text_is_the_documented_hash():
    def fmix32(h):  # finalizer of MurmurHash3_x86_32, as published
        h ^= h >> 16
        h = h * 0x85EBCA6B & 0xFFFFFFFF
        h ^= h >> 13
        h = h * 0xC2B2AE35 & 0xFFFFFFFF
        return h ^ h >> 16

    for feature, rank in [(1, 0), (26, 0), (3, 999_999), (26, 2**27 - 1)]:
        expected = f"{fmix32(feature << 27 | rank):08x}"
        assert category_text(feature, rank) == expected


def test_category_text_keeps_shapes():
    assert category_text(1, np.zeros((2, 3), np.int32)).shape == (2, 3)
    assert category_text(1, 0).shape == ()
    assert category_text(1, []).shape == (0,)


def test_category_texts_never_collide():
    texts = np.concatenate(
        [category_text(feature, np.arange(20_000)) for feature in range(1, 27)]
    )
    assert np.unique(texts).size == texts.size


@pytest.mark.parametrize(
    ("feature", "ranks", "message"),
    [
        (0, [1], "`feature` must be in 1..26. Received: feature=0"),
        (27, [1], "Received: feature=27"),
        (1, [3, -1], "`ranks` must be in .* Received: values from -1 to 3"),
        (1, [2**27], "Received: values from 134217728"),
        (1, [0.5], "`ranks` must be integers. Received: dtype float64"),
    ],
)
def test_bad_category_text(feature, ranks, message):
    with pytest.raises(ValueError, match=message):
        category_text(feature, ranks)
