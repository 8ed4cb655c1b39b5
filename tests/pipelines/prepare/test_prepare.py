"""`prepare` against the parser, and against itself when it was cut."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from helpers import criteo_oracle
from helpers.prepared_rows import (
    Cut,
    assert_rows,
    make_lines,
    rows_of,
    tree,
    write_lines,
)

from pipelines import criteo, prepare, records
from pipelines import vocabulary as vocabularies
from pipelines.formats import scanning
from pipelines.prepare import preparation, segments
from pipelines.quarantine import BadRowsError
from pipelines.runs.folder import RunFolder
from pipelines.vocabulary import Vocabulary


@pytest.mark.breadth(1)
@pytest.mark.parametrize("bags", [False, True], ids=["one_hot", "bags"])
def test_records_hold_what_the_parser_gives(tmp_path, bags):
    lines = make_lines(700, bags=bags)
    paths = [
        write_lines(tmp_path / "day_0", lines[:300]),
        write_lines(tmp_path / "day_1.gz", lines[300:]),
    ]
    options = prepare.Options(
        min_count=3, valid_share=0.1, test_share=0.2, rows_per_shard=100
    )
    manifest = prepare.prepare(paths, tmp_path / "out", options)
    # By time: 490 rows to train on, then 70, then 140; ids of the first ones alone.
    train = write_lines(tmp_path / "train", lines[:490])
    expected = Vocabulary.build(train, min_count=3)
    built = vocabularies.load(tmp_path / "out" / "vocabulary.tsv")
    assert built == expected and manifest.vocabulary_digest == built.digest
    assert list(manifest.schema.vocabulary_sizes) == built.sizes
    for split, part in (
        ("train", lines[:490]),
        ("valid", lines[490:560]),
        ("test", lines[560:]),
    ):
        assert_rows(rows_of(tmp_path / "out", split), part, built)
    assert [shard.num_rows for shard in manifest.shards_of("train")] == [100] * 4 + [90]
    assert records.Manifest.load(tmp_path / "out") == manifest
    manifest.verify(tmp_path / "out")
    assert not (tmp_path / "out" / preparation.WORK).exists()


@pytest.mark.integration
def test_real_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "BLOCK_BYTES", 1 << 20)
    lines = criteo_oracle.real_lines("kaggle")[:4000]
    path = write_lines(tmp_path / "day_0.gz", lines)
    prepare.prepare(path, tmp_path / "out", prepare.Options(min_count=3))
    built = vocabularies.load(tmp_path / "out" / "vocabulary.tsv")
    assert built == Vocabulary.build(path, min_count=3)
    assert_rows(rows_of(tmp_path / "out", "train"), lines, built)


def test_numpy_alone_reads_the_records(tmp_path):
    path = write_lines(tmp_path / "day_0", make_lines(50))
    prepare.prepare(path, tmp_path / "out", prepare.Options(min_count=1))
    part = tmp_path / "out" / "train" / "part-00000"
    assert np.load(f"{part}_dense.npy").shape == (50, 13)
    assert np.load(f"{part}_sparse.npy").shape == (50, 26)
    assert np.load(f"{part}_labels.npy").tolist() == [0, 1] * 25


@pytest.mark.integration
def test_splits_by_file_and_at_random(tmp_path):
    lines = make_lines(900)
    paths = [
        write_lines(tmp_path / f"day_{i}", lines[300 * i :][:300]) for i in range(3)
    ]
    options = prepare.Options(split_by="random", valid_share=0.25, min_count=1)
    manifest = prepare.prepare(
        paths[:2], tmp_path / "out", options, test_paths=paths[2]
    )
    assert manifest.num_rows("test") == 300
    assert 110 < manifest.num_rows("valid") < 190
    assert manifest.num_rows("train") + manifest.num_rows("valid") == 600
    vocabulary = vocabularies.load(tmp_path / "out" / "vocabulary.tsv")
    assert_rows(rows_of(tmp_path / "out", "test"), lines[600:], vocabulary)
    # Each row of the input is in one of the two, in its order.
    features, _ = criteo.Parser(vocabulary)(lines[:600])
    dense = [tuple(row) for row in features["dense_features"].numpy()]
    found = {s: [tuple(r[1]) for r in rows_of(tmp_path / "out", s)] for s in
             ("train", "valid")}  # fmt: skip
    assert sorted(found["train"] + found["valid"]) == sorted(dense)


@pytest.mark.integration
def test_negatives_are_sampled(tmp_path):
    path = write_lines(tmp_path / "day_0", make_lines(1000))
    options = prepare.Options(negative_sampling_rate=0.2, valid_share=0.2, min_count=1)
    manifest = prepare.prepare(path, tmp_path / "out", options)
    labels = np.array([row[0] for row in rows_of(tmp_path / "out", "train")])
    assert labels.sum() == 400 and 50 < (labels == 0).sum() < 110
    assert manifest.num_rows("valid") == 200
    assert manifest.origin["options"]["negative_sampling_rate"] == 0.2


@pytest.mark.integration
def test_multi_hot_rows_are_those_of_the_expander(tmp_path):
    from pipelines import MultiHot

    lines = make_lines(200)
    path = write_lines(tmp_path / "day_0", lines)
    options = prepare.Options(min_count=1, multi_hot="uniform", seed=3)
    prepare.prepare(path, tmp_path / "out", options)
    vocabulary = vocabularies.load(tmp_path / "out" / "vocabulary.tsv")
    expander = MultiHot(vocabulary.sizes, distribution="uniform", seed=3)
    features, _ = criteo.Parser(vocabulary)(lines)
    expected = expander.expand(features)["sparse_features"].to_list()
    assert [row[2] for row in rows_of(tmp_path / "out", "train")] == expected


OPTIONS = prepare.Options(
    min_count=2, valid_share=0.1, rows_per_shard=60, max_bad_share=0.5
)


@pytest.fixture
def logs(tmp_path):
    lines = make_lines(500, bags=True)
    lines[7] = lines[400] = b"what is this?"
    return [
        write_lines(tmp_path / "day_0", lines[:250]),
        write_lines(tmp_path / "day_1.gz", lines[250:]),
    ]


def test_two_runs_give_equal_bytes(tmp_path, logs):
    for name in ("a", "b"):
        prepare.prepare(logs, tmp_path / name, OPTIONS)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    bad = (tmp_path / "a" / "bad_rows.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[1] for line in bad] == ["8", "151"]


@pytest.mark.breadth(1)
@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 8, 12, 20, 33, 47, 60])
def test_a_cut_run_goes_on_to_the_same_end(tmp_path, logs, monkeypatch, after):
    """Cut before the n-th time that a file is put in its place, or opened to write."""
    prepare.prepare(logs, tmp_path / "whole", OPTIONS)
    left = [after]
    replace = os.replace

    def cutting(*arguments):
        if not left[0]:
            raise Cut
        left[0] -= 1
        replace(*arguments)

    monkeypatch.setattr(os, "replace", cutting)
    try:
        prepare.prepare(logs, tmp_path / "cut", OPTIONS)
    except Cut:
        with pytest.raises(FileNotFoundError, match="no finished records"):
            records.read(tmp_path / "cut")
    monkeypatch.setattr(os, "replace", replace)
    if not (tmp_path / "cut" / "manifest.json").exists():
        prepare.prepare(logs, tmp_path / "cut", OPTIONS)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_a_run_of_another_job_starts_anew(tmp_path, logs, monkeypatch, capsys):
    replace, left = os.replace, [9]

    def cutting(*arguments):
        if not left[0]:
            raise Cut
        left[0] -= 1
        replace(*arguments)

    monkeypatch.setattr(os, "replace", cutting)
    with pytest.raises(Cut):
        prepare.prepare(logs, tmp_path / "out", OPTIONS)
    monkeypatch.setattr(os, "replace", replace)
    other = prepare.Options(min_count=5, max_bad_share=0.5)
    prepare.prepare(logs, tmp_path / "out", other)
    assert "Going on" not in capsys.readouterr().out
    prepare.prepare(logs, tmp_path / "other", other)
    assert tree(tmp_path / "out") == tree(tmp_path / "other")


def test_report_counts_what_is_there(tmp_path):
    lines = make_lines(400, seed=4)
    path = write_lines(tmp_path / "day_0", lines)
    prepare.prepare(path, tmp_path / "out", prepare.Options(min_count=5))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    columns = {column["name"]: column for column in report["columns"]}
    table = [line.split(b"\t") for line in lines]
    for i in range(13):
        cells = [row[1 + i] for row in table]
        numbers = sorted(int(cell) for cell in cells if cell)
        column = columns[f"I{i + 1}"]
        assert column["missing_share"] == pytest.approx(cells.count(b"") / 400)
        assert column["num_distinct"] == len(set(numbers))
        median = numbers[-(-len(numbers) // 2) - 1]
        assert column["quantiles"]["0.5"] == median
        assert column["quantiles"]["0"] == numbers[0]
        assert column["quantiles"]["1"] == numbers[-1]
    for i in range(26):
        cells = [row[14 + i] for row in table]
        counts = {cell: cells.count(cell) for cell in set(cells) - {b""}}
        column = columns[f"C{i + 1}"]
        assert column["missing_share"] == pytest.approx(cells.count(b"") / 400)
        assert column["num_distinct"] == len(counts)
        kept = {cell: n for cell, n in counts.items() if n >= 5}
        assert column["num_kept"] == len(kept) == column["vocabulary_size"] - 1
        below = 1 - sum(kept.values()) / sum(counts.values())
        assert column["below_threshold_share"] == pytest.approx(below)
        assert column["top"][0][1] == max(counts.values())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "C26" in page and "<script" not in page


def test_too_many_bad_rows_stop_it_with_a_summary(tmp_path, logs):
    with pytest.raises(BadRowsError, match="2 of 500 rows read are bad"):
        prepare.prepare(logs, tmp_path / "out")
    assert (tmp_path / "out" / "bad_rows.tsv").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_finished_records_are_not_written_over(tmp_path, logs):
    prepare.prepare(logs, tmp_path / "out", OPTIONS)
    with pytest.raises(FileExistsError, match="already contains finished records"):
        prepare.prepare(logs, tmp_path / "out", OPTIONS)


def test_records_and_runs_do_not_share_a_folder(tmp_path, logs):
    """Each would replace the vocabulary of the other."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="already contains a run. Name another"):
        prepare.prepare(logs, tmp_path / "run", OPTIONS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    with pytest.raises(FileExistsError, match="contains prepared records"):
        RunFolder(tmp_path / "out").start()


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path, logs, monkeypatch):
    original = segments.Segments.append

    def append(self, file, *arguments):
        os.utime(logs[file], (1, 1))
        return original(self, file, *arguments)

    monkeypatch.setattr(segments.Segments, "append", append)
    with pytest.raises(ValueError, match="day_0: changed while it was"):
        prepare.prepare(logs, tmp_path / "out", OPTIONS)


def test_a_damaged_segment_is_noticed(tmp_path, logs, monkeypatch):
    original = segments.Segments.close

    def close(self):
        file = self._file and self._file.name
        original(self)
        if file and file.endswith("000001.bin"):
            content = bytearray(pathlib.Path(file).read_bytes())
            content[100] ^= 1
            pathlib.Path(file).write_bytes(content)

    monkeypatch.setattr(segments.Segments, "close", close)
    with pytest.raises(ValueError, match="segment-000001.bin: damaged"):
        prepare.prepare(logs, tmp_path / "out", OPTIONS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_count": 0},
        {"hash_buckets": 1},
        {"valid_share": 1.0},
        {"valid_share": 0.5, "test_share": 0.5},
        {"negative_sampling_rate": 0.0},
        {"rows_per_shard": 0},
        {"max_bad_share": 2.0},
        {"seed": -1},
    ],
    ids=str,
)
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match=f"`{list(wrong)[-1]}`"):
        prepare.Options(**wrong)


@pytest.mark.integration
def test_counts_that_do_not_fit_in_memory_are_exact(tmp_path):
    lines = make_lines(2000, bags=True)
    for i in range(0, 2000, 3):  # values of more than eight bytes too
        fields = lines[i].split(b"\t")
        fields[30] = b"a longer value %d" % (i % 50)
        lines[i] = b"\t".join(fields)
    path = write_lines(tmp_path / "day_0", lines)
    for name, memory in (("large", 1 << 30), ("small", 2000)):
        options = prepare.Options(min_count=2, memory_bytes=memory)
        prepare.prepare(path, tmp_path / name, options)
    assert tree(tmp_path / "small") == tree(tmp_path / "large")
    built = vocabularies.load(tmp_path / "small" / "vocabulary.tsv")
    assert built == Vocabulary.build(path, min_count=2)
    counts = {}
    for line in lines:
        value = line.split(b"\t")[30]
        counts[value] = counts.get(value, 0) + 1
    expected = sorted(
        ((v, n) for v, n in counts.items() if v and n > 1), key=lambda p: (-p[1], p[0])
    )
    assert list(zip(built.values("C17"), built.counts("C17"))) == expected


@pytest.mark.parametrize("memory_bytes", [1, 1 << 29], ids=["spilled", "in memory"])
def test_a_column_that_is_empty_in_all_rows(tmp_path, memory_bytes):
    rows = [line.split(b"\t") for line in make_lines(30)]
    lines = [b"\t".join([*row[:14], b"", *row[15:]]) for row in rows]
    path = write_lines(tmp_path / "day_0", lines)
    options = prepare.Options(min_count=2, memory_bytes=memory_bytes)
    manifest = prepare.prepare(path, tmp_path / "out", options)
    assert manifest.schema.vocabulary_sizes[0] == 1
    vocabulary = vocabularies.load(tmp_path / "out" / "vocabulary.tsv")
    assert_rows(rows_of(tmp_path / "out", "train"), lines, vocabulary)


@pytest.mark.integration
def test_a_killed_run_goes_on(tmp_path, logs):
    """SIGKILL at some moments of a process of its own."""
    prepare.prepare(logs, tmp_path / "whole", OPTIONS)
    script = (
        "import sys; from pipelines import prepare; from pipelines.prepare import "
        "segments; from pipelines.formats import scanning; "
        "scanning.BLOCK_BYTES = 4000; "
        "segments.BLOCKS_PER_SEGMENT = 3; prepare.prepare(sys.argv[2:], sys.argv[1], "
        "prepare.Options(min_count=2, valid_share=0.1, rows_per_shard=60, "
        "max_bad_share=0.5))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "cut"), *logs]
    out = tmp_path / "cut"
    for wait_for in ("state.json", "segment-000001.json", "shards.json", None):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if wait_for and list(out.rglob(wait_for)):
                process.kill()
        process.wait()
    assert process.returncode == 0 or (out / "manifest.json").exists()
    assert tree(out) == tree(tmp_path / "whole")
