"""Profiles: what is measured of arrays and of files, and their file."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
from helpers import lru_oracle

import pipelines
from pipelines.synthetic import FeatureProfile, Profile, profile, profile_logs
from pipelines.synthetic.distances import BIN_EDGES


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).zipf(1.2, 6000) % 2000


@pytest.fixture(scope="module")
def measured(ids):
    return profile(ids.reshape(-1, 2))


def expected_feature(ids):
    """Counts of an access list, by the oracle."""
    distances = lru_oracle.distances(ids)
    seen = [d for d in distances if d >= 0]
    counts = np.histogram(seen, BIN_EDGES)[0]
    bins = np.flatnonzero(counts)
    pairs = tuple(zip(BIN_EDGES[bins].tolist(), counts[bins].tolist()))
    return len(set(ids)), len(ids), pairs


def check(feature, ids):
    found = (feature.num_distinct, feature.num_accesses, feature.distances)
    assert found == expected_feature(ids)
    assert feature.num_new == len(set(ids))
    assert feature.counts().sum() == len(ids)


def test_a_profile_is_what_lists_say(ids, measured):
    assert measured.names == ("C1", "C2")
    assert measured.num_rows == 3000
    for feature, column in zip(measured.features, ids.reshape(-1, 2).T, strict=True):
        check(feature, column.tolist())
        assert feature.vocabulary_size == feature.num_distinct
        assert feature.bag_sizes == ((1, 3000),)


def test_a_profile_of_bags():
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 4, (500, 3))
    ids = rng.integers(0, 60, lengths.sum())
    got = profile(ids, lengths, vocabulary_sizes=(70, 80, 90), names=["a", "b", "c"])
    assert got.vocabulary_sizes == (70, 80, 90) and got.names == ("a", "b", "c")
    bags = np.split(ids, np.cumsum(lengths.reshape(-1))[:-1])
    for number, feature in enumerate(got.features):
        check(feature, np.concatenate(bags[number::3]).tolist())
        sizes, counts = np.unique(lengths[:, number], return_counts=True)
        assert feature.bag_sizes == tuple(zip(sizes.tolist(), counts.tolist()))


def test_pieces_do_not_matter(ids, monkeypatch):
    whole = profile(ids)
    monkeypatch.setattr("pipelines.synthetic.profiling.PIECE_ACCESSES", 50)
    from pipelines.synthetic.profiling import _Meter

    meter = _Meter()
    for start in range(0, len(ids), 37):
        part = ids[start : start + 37]
        meter.add(part, np.ones(len(part), int))
    assert meter.finish("C1", None) == whole.features[0]


def test_hit_rates_are_those_of_caches(ids):
    feature = profile(ids).features[0]
    for rows in (0, 1, 2, 10, 100, 255, 256):
        assert feature.hit_rate(rows) == pytest.approx(
            lru_oracle.hits(ids.tolist(), rows) if rows else 0.0, abs=1e-12
        )
    for rows in (300, 333, 1000, 1500):  # within the share of a bin
        bin_share = (feature.counts()[1:] / 6000)[np.searchsorted(BIN_EDGES, rows) - 1]
        found = feature.hit_rate(rows)
        assert abs(found - lru_oracle.hits(ids.tolist(), rows)) <= bin_share + 1e-12
    assert feature.hit_rate(10**9) == 1 - feature.num_distinct / 6000


def test_merging_adds(ids):
    one, two = profile(ids[:2000]), profile(ids[2000:])
    both = one.merge(two).features[0]
    first, second = one.features[0], two.features[0]
    np.testing.assert_array_equal(both.counts(), first.counts() + second.counts())
    assert both.num_accesses == 6000 and both.num_rows == 6000
    assert both.num_distinct == max(first.num_distinct, second.num_distinct)
    with pytest.raises(ValueError, match="same features.* Received: .*'C1'.*'other'"):
        one.merge(profile(ids, names=["other"]))


# Files of rows


def texts(num_rows):
    """Fields of 26 columns with empty, short, long and many values."""
    rng = np.random.default_rng(7)
    pool = ["", "a", "b", "93ab5d10", "longer than eight", "another long one", "a,b"]
    pool += ["b,longer than eight,a", *[f"{i:08x}" for i in range(300)]]
    columns = []
    for _ in range(26):
        columns.append([pool[i] for i in rng.zipf(1.3, num_rows) % len(pool)])
    return list(zip(*columns))


def write_log(path, rows):
    lines = [b"0" + b"\t" * 14 + "\t".join(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")


def check_logs(got, rows):
    for number, feature in enumerate(got.features):
        bags = [row[number].split(",") for row in rows]
        check(feature, [value for bag in bags for value in bag])
        sizes, counts = np.unique([len(bag) for bag in bags], return_counts=True)
        assert feature.bag_sizes == tuple(zip(sizes.tolist(), counts.tolist()))


def test_logs_are_one_sequence(tmp_path, monkeypatch):
    """Over blocks, pieces and files."""
    monkeypatch.setattr("pipelines.formats.scanning.BLOCK_BYTES", 20_000)
    monkeypatch.setattr("pipelines.synthetic.profiling.PIECE_ACCESSES", 300)
    rows = texts(800)
    write_log(tmp_path / "0.tsv", rows[:500])
    write_log(tmp_path / "1.tsv", rows[500:])
    told = []
    got = profile_logs([tmp_path / "0.tsv", tmp_path / "1.tsv"], progress=told.append)
    assert got.names == tuple(f"C{i}" for i in range(1, 27))
    check_logs(got, rows)
    assert told == sorted(told) and told[-1] == 800 and len(told) > 3


def test_bad_rows_are_left_out(tmp_path):
    rows = texts(100)
    path = tmp_path / "log.tsv"
    write_log(path, rows)
    path.write_bytes(path.read_bytes() + b"no row\n")
    quarantine = pipelines.Quarantine(max_bad_share=0.1)
    check_logs(profile_logs([path], quarantine), rows)
    assert quarantine.num_bad == 1
    with pytest.raises(ValueError, match="1 of 101 rows"):
        profile_logs([path])
    path.write_bytes(b"no row\n")
    with pytest.raises(ValueError, match="log.tsv contains no valid rows"):
        profile_logs([path], pipelines.Quarantine(max_bad_share=1))


@pytest.mark.integration
def test_real_rows(real_rows):
    path = real_rows / "criteo_kaggle_sample.tsv.gz"
    got = profile_logs([path])
    with gzip.open(path, "rt") as file:
        columns = list(zip(*(line.rstrip("\n").split("\t")[14:] for line in file)))
    assert got.num_rows == len(columns[0]) and len(got.features) == len(columns)
    for number in (2, 5, 18):
        check(got.features[number], columns[number])


# The file


@pytest.mark.parametrize("name", ["p.json", "p.json.gz"])
def test_saved_and_loaded(measured, tmp_path, name):
    measured.save(tmp_path / name)
    assert Profile.load(tmp_path / name) == measured
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_file_holds_no_ids(tmp_path):
    profile([123_456_789, 987_654_321]).save(tmp_path / "p.json")
    text = (tmp_path / "p.json").read_text()
    assert "123456789" not in text and "987654321" not in text


def damage(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["features"][0].update(name="x"), "its checksum is wrong"),
        (lambda c: c["features"][0].update(num_accesses=5), "must add up"),
        (lambda c: c["features"][0].pop("name"), "is damaged .*name"),
        (lambda c: c["features"].clear(), "at least one profile, .*Received: 0"),
        (lambda c: c.update(exact_below=8), "checksum is wrong"),
        (lambda c: c.update(format_version=2), "version 2; .* reads 1"),
        (lambda c: c.pop("format"), "not a profile of tf_dlrm"),
    ],
)
def test_damage_is_refused(measured, tmp_path, change, message):
    path = tmp_path / "p.json"
    measured.save(path)
    damage(path, change)
    with pytest.raises(ValueError, match=f"p.json: .*{message}"):
        Profile.load(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"1", b"\xff\xfe", b'{"a": 1}'])
@pytest.mark.parametrize("name", ["p.json", "p.json.gz"])
def test_other_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="p.json.*: not a profile of tf_dlrm"):
        Profile.load(tmp_path / name)


def test_cut_files_are_refused(measured, tmp_path):
    for name in ("p.json", "p.json.gz"):
        measured.save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="not a profile of tf_dlrm"):
            Profile.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Profile.load(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="`path` must be in an existing directory"):
        measured.save(tmp_path / "absent" / "p.json")


# Errors

GOOD = FeatureProfile("C1", 3, 3, 10, ((0, 4), (2, 3)), ((1, 10),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary_size": 0}, r"`vocabulary_size\[0\]` must be an integer"),
        ({"num_distinct": -1}, "`num_distinct` must be an integer of at least 0"),
        ({"num_accesses": 1.5}, "`num_accesses` must be an integer"),
        ({"num_accesses": 11}, "'C1' is not valid: `bag_sizes` must add up"),
        ({"vocabulary_size": 2}, "`num_distinct` must be between"),
        ({"distances": ((0, 5), (2, 3))}, "`num_distinct` must be between"),
        ({"distances": ((2, 3), (0, 4))}, "`distances` must increase"),
        (
            {"distances": ((0, -4),)},
            "`distances` must increase and have positive counts",
        ),
        ({"distances": ((0, 4), (257, 3))}, "must be starts of bins"),
        ({"distances": ((0, 4), (3, 3))}, "a distance must be below"),
    ],
)
def test_impossible_profiles(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GOOD, **change)


def test_features_must_have_the_same_rows():
    other = FeatureProfile("C2", 1, 1, 1, (), ((1, 1),))
    with pytest.raises(
        ValueError, match=r"of the same rows.* 2 profiles of .*\[1, 10\]"
    ):
        Profile((GOOD, other))
    with pytest.raises(
        ValueError, match=r"names .*|Names of features must be distinct"
    ):
        Profile((GOOD, GOOD))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5],), "`ids` must be integers. Received: dtype float64"),
        (([[[1]]],), r"Received: shape \(1, 1, 1\)"),
        (([],), "must have rows. Received: shape"),
        (([1, 2], [[1, 2]]), r"`lengths` must .* shape \(1, 2\) .* shape \(2,\)"),
        (([1, 2], None, (5, 5)), "`vocabulary_sizes` must .* the 1 features.*: 2"),
        (([1, 2], None, (1,)), "`num_distinct` must be between"),
        (([1, 2], None, None, ("a", "b")), "`names` must .* Received: 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        profile(*arguments)
