import collections
import gzip
import os
import re
import struct

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from helpers import criteo_oracle

from pipelines import vocabulary
from pipelines.formats import scanning
from pipelines.quarantine import BadRowsError, Quarantine
from pipelines.vocabulary import (
    HashVocabulary,
    Vocabulary,
    checked_file,
    counting,
    siphash,
)

# Of the reference implementation: key 00 01 .. 0f, message 00 01 .. of that length.
SIPHASH_KEY = struct.unpack("<2Q", bytes(range(16)))
SIPHASH_VECTORS = {
    0: "310e0edd47db6f72",
    1: "fd67dc93c539f874",
    2: "5a4fa9d909806c0d",
    8: "6224939a79f5f593",
    15: "e545be4961ca29a1",
}
# (number of the feature, value, id among 1,000,000), by SipHash-2-4 in plain Python.
HASH_VECTORS = [
    (1, b"", 0),
    (1, b"0c1e8f72", 798878),
    (26, b"0c1e8f72", 678273),
    (3, b"\xff\x00", 171341),
    (14, b"a longer value than one word", 178725),
]


def count(lines, labelled=True):
    """Counts of the values of good rows, in plain Python."""
    counts = [collections.Counter() for _ in range(26)]
    pieces = []

    def remember(feature, value):
        pieces.append((feature, value))
        return 1

    num_bad = 0
    for line in lines:
        pieces.clear()
        if criteo_oracle.parse(line, remember, labelled) is None:
            num_bad += 1
            continue
        for feature, value in pieces:
            counts[feature][value] += 1
    return counts, num_bad


def assert_counted(built, lines, min_count, max_size=None):
    counts, num_bad = count(lines)
    assert built.num_bad_rows == num_bad
    assert built.num_rows == len(lines) - num_bad
    for i, counter in enumerate(counts):
        kept = [(v, n) for v, n in counter.items() if n >= min_count]
        kept.sort(key=lambda pair: (-pair[1], pair[0]))
        kept = kept[: None if max_size is None else max_size - 1]
        name = f"C{i + 1}"
        assert built.values(name) == [value for value, _ in kept]
        assert built.counts(name) == [number for _, number in kept]
        assert built.sizes[i] == len(kept) + 1


@pytest.mark.integration
@pytest.mark.parametrize("min_count", [1, 10])
def test_build_counts_real_rows(min_count):
    paths = [criteo_oracle.real_path("kaggle"), criteo_oracle.real_path("terabyte")]
    lines = [*criteo_oracle.real_lines("kaggle"), *criteo_oracle.real_lines("terabyte")]
    assert_counted(Vocabulary.build(paths, min_count), lines, min_count)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("block_bytes", [2000, 1, 1 << 20])
def test_build_counts_hostile_rows(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(scanning, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(counting, "_MIN_MERGE", 20)
    lines = criteo_oracle.hostile_lines(np.random.default_rng(5), 800)
    lines = [line.replace(b"\n", b"") for line in lines]
    for i, part in enumerate((lines[:500], lines[500:])):
        opener = gzip.open if i else open
        with opener(tmp_path / f"day_{i}", "wb") as file:
            file.write(b"\n".join(part))
    seen = []
    with pytest.raises(BadRowsError, match="(?s)rows read are bad .*day_0:"):
        Vocabulary.build(f"{tmp_path}/day_*", 2, 30)
    quarantine = Quarantine(tmp_path / "bad.tsv", max_bad_share=1.0)
    built = Vocabulary.build(f"{tmp_path}/day_*", 2, 30, seen.append, quarantine)
    bad = (tmp_path / "bad.tsv").read_text().splitlines()
    assert len(bad) - 1 == quarantine.num_bad == built.num_bad_rows > 0
    assert quarantine.num_rows == len(lines)
    assert_counted(built, lines, 2, 30)
    assert seen[-1] == len(lines) and seen == sorted(seen)
    assert max(built.sizes) == 30


def test_build_refuses_files_without_a_good_row(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n" * 3)
    with pytest.raises(ValueError, match="rows.csv:1: "):
        Vocabulary.build(tmp_path / "rows.csv")


@pytest.mark.parametrize("memory_bytes", [1, 1 << 29], ids=["spilled", "in memory"])
def test_a_feature_without_values_has_one_id(tmp_path, monkeypatch, memory_bytes):
    """C1 is empty in all rows, C2 rare, C3 holds short and long values."""
    monkeypatch.setattr(
        counting.Counters.__init__, "__defaults__", (memory_bytes, None)
    )
    fields = [b"", b"rare", b"a value of many bytes", *[b"%d" % i for i in range(23)]]
    lines = [
        b"\t".join([b"1", *[b"5"] * 13, b"", b"%d" % i, *fields[2:]]) for i in range(5)
    ]
    (tmp_path / "day").write_bytes(b"\n".join(lines))
    built = Vocabulary.build(tmp_path / "day", min_count=2)
    assert_counted(built, lines, 2)
    assert built.sizes == [1, 1] + [2] * 24
    assert Vocabulary.build(tmp_path / "day", min_count=6).sizes == [1] * 26
    built.save(tmp_path / "vocabulary")
    loaded = vocabulary.load(tmp_path / "vocabulary")
    assert loaded == built and loaded.sizes == built.sizes
    for lookup in (loaded.make_lookup(), loaded.make_lookup(str(tmp_path))):
        values = tf.constant([b"", b"x", b"0", b","])
        assert [lookup.find(i, values).numpy().tolist() for i in (0, 1)] == [
            [0] * 4
        ] * 2


@pytest.mark.parametrize("argument", ["min_count", "max_size"])
def test_build_checks_its_arguments(argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be at least 1"):
        Vocabulary.build("nowhere", **{argument: 0})


def make_vocabulary(**options):
    odd = [b"b", b"a", b"\xff\xfe", b"\x00", b" ", b"#", b"# sha256 x", b"\xc3\xa9"]
    values = [odd[: i % 9] for i in range(26)]
    return Vocabulary(values, [list(range(len(v), 0, -1)) for v in values], **options)


def test_save_and_load(tmp_path):
    saved = make_vocabulary(min_count=3, max_size=9, num_rows=7, num_bad_rows=1)
    for _ in range(2):
        saved.save(tmp_path / "vocabulary")
    assert os.listdir(tmp_path) == ["vocabulary"]
    for load in (Vocabulary.load, vocabulary.load):
        loaded = load(tmp_path / "vocabulary")
        assert loaded == saved and hash(loaded) == hash(saved)
        assert loaded.digest == saved.digest
        assert loaded.sizes == saved.sizes
        for name in ("min_count", "max_size", "num_rows", "num_bad_rows"):
            assert getattr(loaded, name) == getattr(saved, name)
        for i in range(1, 27):
            assert loaded.values(f"C{i}") == saved.values(f"C{i}")
            assert loaded.counts(f"C{i}") == saved.counts(f"C{i}")


def test_digest_is_of_what_decides_the_ids():
    values = [[b"a", b"b"], [b"c"]] + [[]] * 24
    base = Vocabulary(values)
    assert base == Vocabulary(values, [[5, 4], [3]] + [[]] * 24, min_count=3)
    for other in (
        [[b"b", b"a"], [b"c"]],
        [[b"a"], [b"b", b"c"]],
        [[b"a", b"b", b"c"], []],
    ):
        assert Vocabulary(other + [[]] * 24) != base
    assert re.fullmatch("[0-9a-f]{64}", base.digest)
    assert HashVocabulary(10) == HashVocabulary([10] * 26)
    assert HashVocabulary(10) != HashVocabulary([10] * 25 + [11])
    assert HashVocabulary(10) != base


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "vocabulary"
    make_vocabulary().save(path)
    content = path.read_bytes()
    changed = content.replace(b"\tb\n", b"\tc\n", 1)
    assert changed != content
    ends = [m.end() for m in re.finditer(b"\n", content)]
    for bad in [
        changed,
        content + b"\n",
        content[:-1],
        *(content[:e] for e in ends[:-1]),
    ]:
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="vocabulary: .* was truncated or changed"):
            vocabulary.load(path)
    for bad in (b"", b"1\t2\t3\n"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="vocabulary: not a vocabulary file"):
            vocabulary.load(path)


def test_kinds_and_versions_are_told_apart(tmp_path, monkeypatch):
    path = tmp_path / "vocabulary"
    HashVocabulary(list(range(2, 28))).save(path)
    assert vocabulary.load(path).sizes == list(range(2, 28))
    assert HashVocabulary.load(path) == vocabulary.load(path)
    with pytest.raises(ValueError, match="kind 'hash', not 'values'"):
        Vocabulary.load(path)
    make_vocabulary().save(path)
    with pytest.raises(ValueError, match="kind 'values', not 'hash'"):
        HashVocabulary.load(path)
    monkeypatch.setattr(checked_file, "FORMAT_VERSION", 0)
    with pytest.raises(ValueError, match="format version 1; this version .* to 0"):
        vocabulary.load(path)


def test_failed_save_leaves_the_old_file(tmp_path):
    def lines():
        yield b"one\n"
        raise RuntimeError("disk full")

    path = tmp_path / "vocabulary"
    make_vocabulary().save(path)
    with pytest.raises(RuntimeError):
        checked_file.write(path, {}, lines())
    assert vocabulary.load(path) == make_vocabulary()
    assert os.listdir(tmp_path) == ["vocabulary"]


@pytest.mark.parametrize("value", [b"", b"a,b", b"a\tb", b"a\n", b"\r", "text"])
def test_impossible_values_are_refused(value):
    with pytest.raises(ValueError, match="A value of C2 must be non-empty bytes"):
        Vocabulary([[b"a"], [value]] + [[]] * 24)


def test_malformed_vocabularies_are_refused():
    with pytest.raises(ValueError, match="values of C1 must be distinct"):
        Vocabulary([[b"a", b"a"]] + [[]] * 25)
    with pytest.raises(ValueError, match="26 tables.*Received: 25"):
        Vocabulary([[]] * 25)
    with pytest.raises(ValueError, match="must be one of C1, .*, C26. Received: 'C27'"):
        make_vocabulary().values("C27")


@pytest.mark.parametrize("num_buckets", [1, [10] * 25, [10] * 25 + [1]])
def test_hash_sizes_are_checked(num_buckets):
    with pytest.raises(ValueError, match="`num_buckets` must be an integer or 26"):
        HashVocabulary(num_buckets)


def test_oracle_is_siphash():
    for length, expected in SIPHASH_VECTORS.items():
        hashed = criteo_oracle.siphash(SIPHASH_KEY, bytes(range(length)))
        assert struct.pack("<Q", hashed).hex() == expected


@pytest.mark.parametrize("feature, value, expected", HASH_VECTORS)
def test_hash_vectors(feature, value, expected):
    lookup = HashVocabulary(1_000_000).make_lookup()
    assert lookup.find(feature - 1, tf.constant([value])).numpy() == [expected]
    ids = criteo_oracle.hash_ids([1_000_000] * 26)
    assert (ids(feature - 1, value) if value else 0) == expected


def test_hash_equals_its_description():
    rng = np.random.default_rng(3)
    values = [rng.bytes(int(rng.integers(1, 40))) for _ in range(200)]
    sizes = [2, 3, 1000, 10**9, 2**40] + [77] * 21
    lookup = HashVocabulary(sizes).make_lookup()
    ids = criteo_oracle.hash_ids(sizes)
    for feature in range(7):
        found = lookup.find(feature, tf.constant(values)).numpy()
        assert found.tolist() == [ids(feature, value) for value in values]
        assert found.min() >= 1 and found.max() < sizes[feature]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 4096, 4097, 50_000])
def test_texts_of_any_length_hash_as_in_tensorflow(length):
    text = (b"a longer value " * 4000)[:length]
    texts = pa.array([text, b"x" * 20, text + b"!"], pa.large_binary())
    key = (3, 0xFEDCBA9876543210)
    expected = [criteo_oracle.siphash(key, t) for t in texts.to_pylist()]
    assert siphash.hash_texts(texts, key).tolist() == expected
