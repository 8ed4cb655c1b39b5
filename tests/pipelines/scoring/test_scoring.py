"""Scores of files: those of `model.predict`, a line for each line, whatever comes."""

import csv
import gzip
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from helpers.small_model import make_model

import pipelines
import tf_dlrm
from pipelines import scoring
from pipelines.quarantine import BadRowsError


def open_zstd(path, mode):
    return pa.CompressedOutputStream(str(path), "zstd")


OPENERS = {"": open, ".gz": gzip.open, ".zst": open_zstd}


def score(model, paths, output, **options):
    """Scores; returns the counts and the rows of the output as dicts."""
    counts = scoring.score_files(model, paths, output, **options)
    opener = gzip.open if str(output).endswith(".gz") else open
    with opener(output, "rt", newline="") as file:
        return counts, list(csv.DictReader(file))


def probabilities(rows):
    return np.array([float(row["probability"] or "nan") for row in rows])


@pytest.mark.breadth(0, 2)
@pytest.mark.parametrize("suffix", OPENERS)
@pytest.mark.parametrize("labelled", [True, False])
def test_scores_are_those_of_predict(
    trained, exported, lines, tmp_path, suffix, labelled
):
    path = tmp_path / f"log{suffix}"
    kept = lines if labelled else [line.split(b"\t", 1)[1] for line in lines]
    with OPENERS[suffix](path, "wb") as file:
        file.write(b"\n".join(kept))  # the last line has no end
    output = tmp_path / "scores.csv"
    counts, rows = score(exported, path, output, batch_size=64)
    assert counts == {"num_rows": 300, "num_bad_rows": 0}
    model, parser, _ = trained
    batches = pipelines.criteo.read(path, parser, batch_size=50, labelled=False)
    expected = model.predict(batches, verbose=0)[:, 0]
    np.testing.assert_allclose(probabilities(rows), expected, atol=1e-6)
    assert len(np.unique(expected)) > 200
    assert [row["line"] for row in rows] == [str(i) for i in range(1, 301)]
    assert {row["file"] for row in rows} == {str(path)}
    labels = [line[:1].decode() if labelled else "" for line in lines]
    assert [row["label"] for row in rows] == labels
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "scores.csv"]


def test_every_digit_of_a_probability_is_written(exported, lines, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"\n".join(lines[:64]))
    _, rows = score(exported, path, tmp_path / "scores.csv")
    expected = exported.score(tf.constant(lines[:64]))
    np.testing.assert_array_equal(np.float32(probabilities(rows)), expected)


def test_odd_rows_are_scored_and_bad_rows_line_up(trained, exported, lines, tmp_path):
    unlabelled = lines[1].split(b"\t", 1)[1]
    bag = lines[2][: lines[2].rfind(b"\t")] + b"\t0c1e8f72,a,b"
    mixed = [
        b"\xef\xbb\xbf" + lines[0],  # a byte-order mark
        b"",
        unlabelled + b"\r",
        bag,
        b"\xef\xbb\xbf" + unlabelled,
        b"not a row",
        lines[3] + b"\xff\0",  # bytes that are no text, NUL at the end
        lines[4].replace(b"\t", b"\t\t", 1),
        b"2" + lines[5][1:],
        lines[6],
        b"\xef",
    ]
    bad = [1, 5, 7, 8, 10]
    path = tmp_path / "a, b.tsv"  # a comma in the name
    path.write_bytes(b"\n".join(mixed))
    output = tmp_path / "scores.csv"
    options = {"max_bad_share": 1, "batch_size": 3, "keep": ["C1", "I13"]}
    counts, rows = score(exported, path, output, **options)
    assert counts == {"num_rows": 11, "num_bad_rows": 5}
    assert {row["file"] for row in rows} == {str(path)}
    model, parser, _ = trained
    good = [i for i in range(len(mixed)) if i not in bad]
    features = parser.features(tf.constant([mixed[i] for i in good]))
    expected = np.full(len(mixed), np.nan)
    expected[good] = model(features)[:, 0]
    np.testing.assert_allclose(probabilities(rows), expected, atol=1e-6)
    labels = {0: lines[0], 3: lines[2], 6: lines[3], 9: lines[6]}
    expected = [labels[i][:1].decode() if i in labels else "" for i in range(11)]
    assert [row["label"] for row in rows] == expected
    listed = (tmp_path / "scores.csv.bad_rows.tsv").read_text().splitlines()[1:]
    assert [int(line.split("\t")[1]) for line in listed] == [i + 1 for i in bad]
    for i, (row, line) in enumerate(zip(rows, mixed, strict=True)):
        cells = line.removesuffix(b"\r").decode("utf-8", "surrogateescape").split("\t")
        cells = {40: cells, 39: ["", *cells]}.get(len(cells), [""] * 40)
        assert [row["C1"], row["I13"]] == [cells[14], cells[13]], i


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_kept_columns_are_unchanged(ending, tmp_path):
    """Texts with quotes, delimiters and line ends; large ids, times; a bad row."""
    text = pipelines.Text(quoted=True)
    schema = pipelines.Schema("click", ["price"], ["item"], format=text)
    users = ["a,b", 'say "hi"', "two\nlines", "", "ü", "NA", " x "]
    frame = pd.DataFrame(
        {
            "user, or guest": users,
            "price": ["1", "2", "free", "4", "", "6.50", "7"],
            "id": np.arange(7) + 2**60,
            "item": [f"i{n}" for n in range(7)],
            "score": [0.1, 2.0, -3.5, 1e-9, 5e20, 6.25, 7.75],
            "day": ["2026-01-31", "", "x", "a;b", "2", "-", "1"],
        }
    )
    path = tmp_path / "hour=10" / f"rows.{ending}"  # a column in a folder's name
    path.parent.mkdir()
    if ending == "csv":
        frame.to_csv(path, index=False)
    else:
        frame["day"] = pd.to_datetime(["2026-01-31 10:30"] * 6 + [None])
        frame.to_parquet(path)
    parser = pipelines.Parser(pipelines.vocabulary.HashVocabulary(50, schema=schema))
    model = tf_dlrm.DLRM(parser.spec(4), (4,), (1,))
    model = scoring.of_keras(model, parser, scoring.Source("run", []))
    keep = ["id", "user, or guest", "price", "score", "day", "hour"]
    options = {"max_bad_share": 1, "batch_size": 3, "keep": keep}
    counts, rows = score(model, path, tmp_path / "scores.csv", **options)
    assert counts == {"num_rows": 7, "num_bad_rows": 1}
    assert [i for i, row in enumerate(rows) if not row["probability"]] == [2]
    assert list(rows[0]) == ["file", "line", "label", "probability", *keep]
    for name in keep[:3]:
        assert [row[name] for row in rows] == frame[name].astype(str).tolist()
    assert [float(row["score"]) for row in rows] == frame["score"].tolist()
    assert {row["hour"] for row in rows} == {"10"}
    if ending == "csv":
        assert [row["day"] for row in rows] == frame["day"].tolist()
    else:
        times = pd.to_datetime([row["day"] or None for row in rows])
        assert times.equals(pd.DatetimeIndex(frame["day"])) and rows[6]["day"] == ""


def test_columns_that_cannot_be_kept(exported, lines, tmp_path):
    (tmp_path / "log").write_bytes(lines[0])
    for keep, message in (
        (["C1", "C1"], "`keep` must name each column once"),
        (["label"], "and none of file, line, label, probability"),
        (["user"], r"log: lacks the columns \['user'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            scoring.score_files(exported, tmp_path / "log", tmp_path / "s", keep=keep)
    names = exported.schema.text.columns
    cells = {name: ["0", "1"] for name in names} | {"bag": [["a"], ["b", "c"]]}
    pq.write_table(pa.table(cells), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="'bag' contains several values in a cell"):
        path = tmp_path / "log.parquet"
        scoring.score_files(exported, path, tmp_path / "s", keep=["bag"])


def test_batches_of_bad_rows_alone(exported, lines, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"no\n" * 70 + b"\n".join(lines[:10]) + b"\n\n")
    options = {"max_bad_share": 1, "batch_size": 32}
    counts, rows = score(exported, path, tmp_path / "s.csv", **options)
    assert counts == {"num_rows": 81, "num_bad_rows": 71}
    expected = exported.score(tf.constant(lines[:10]))
    found = probabilities(rows)
    np.testing.assert_allclose(found[70:80], expected, atol=1e-6)
    assert np.isnan(found[:70]).all() and np.isnan(found[80])


def test_several_files_and_an_empty_one(exported, lines, tmp_path):
    for name, part in (("a", lines[:5]), ("b", []), ("c", lines[5:8])):
        (tmp_path / name).write_bytes(b"".join(line + b"\n" for line in part))
    counts, rows = score(exported, f"{tmp_path}/[abc]", tmp_path / "s.csv.gz")
    assert counts["num_rows"] == 8
    assert [(row["file"][-1], row["line"]) for row in rows] == [
        *(("a", str(i)) for i in range(1, 6)),
        *(("c", str(i)) for i in range(1, 4)),
    ]
    expected = exported.score(tf.constant(lines[:8]))
    np.testing.assert_allclose(probabilities(rows), expected, atol=1e-6)
    with pytest.raises(ValueError, match="files are empty"):
        scoring.score_files(exported, tmp_path / "b", tmp_path / "t.csv")


def test_parquet_is_scored_as_the_lines_that_it_stands_for(exported, lines, tmp_path):
    """With a gap among integers, a row without a label, and a bad row."""
    names = [
        "label",
        *(f"I{i}" for i in range(1, 14)),
        *(f"C{i}" for i in range(1, 27)),
    ]
    rows = [line.decode().split("\t") for line in lines[:70]]
    rows[3][0], rows[5][2], rows[9][1] = "", "", "2.5"
    columns = zip(*([cell or None for cell in row] for row in rows), strict=True)
    table = pa.table(dict(zip(names, columns, strict=True)))
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=25)
    text = ["\t".join(row if row[0] else row[1:]) for row in rows]
    (tmp_path / "log.tsv").write_text("\n".join(text))
    found = []
    for name in ("log.parquet", "log.tsv"):
        options = {"max_bad_share": 0.1, "batch_size": 16}
        counts, scores = score(exported, tmp_path / name, tmp_path / "s", **options)
        assert counts == {"num_rows": 70, "num_bad_rows": 1}
        found.append(
            [[row[c] for c in ("line", "label", "probability")] for row in scores]
        )
        (tmp_path / "s").unlink()
    assert found[0] == found[1] and found[0][3][1] == found[0][9][2] == ""


def test_what_cannot_be_read_is_an_error_and_no_output(exported, lines, tmp_path):
    packed = gzip.compress(b"\n".join(lines))
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) // 2])
    output = tmp_path / "scores.csv"
    with pytest.raises(ValueError, match=r"cut\.gz: .* is truncated or damaged"):
        scoring.score_files(exported, tmp_path / "cut.gz", output)
    pq.write_table(pa.table({"label": [1]}), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="log.parquet: lacks the columns"):
        scoring.score_files(exported, tmp_path / "log.parquet", output)
    (tmp_path / "log").write_bytes(lines[0])
    for name in ("scores.parquet", "scores.csv.zst"):
        with pytest.raises(ValueError, match="only plain text and gzip"):
            scoring.score_files(exported, tmp_path / "log", tmp_path / name)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        scoring.score_files(exported, tmp_path / "log", output, batch_size=0)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cut.gz", "log.parquet", "log"}


def test_too_many_bad_rows_and_how_to_go_on(exported, lines, tmp_path, capsys):
    path, output = tmp_path / "log", tmp_path / "scores.csv"
    path.write_bytes(b"\n".join([*lines[:9], b"no", *lines[9:20]]))
    with pytest.raises(BadRowsError, match="1 of 21 rows"):
        scoring.score_files(exported, path, output)
    assert not output.exists()
    capsys.readouterr()
    counts, rows = score(exported, path, output, max_bad_share=0.1)
    assert counts == {"num_rows": 21, "num_bad_rows": 1}
    assert "Resuming after 21 rows that were scored before." in capsys.readouterr().out
    assert [i for i, row in enumerate(rows) if not row["probability"]] == [9]
    listed = (tmp_path / "scores.csv.bad_rows.tsv").read_text().splitlines()
    assert len(listed) == 2 and "\t10\t" in listed[1]


def test_the_newest_version_or_the_one_that_is_named(tmp_path):
    for name in ("2", "10", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(b"")
    for path, version in ((".", "10"), ("10", "10"), ("2", "2")):
        assert scoring.find(tmp_path / path).path == str(tmp_path / version)


@pytest.mark.integration
def test_models_that_cannot_score_lines(tmp_path):
    with pytest.raises(ValueError, match="no folder .*nowhere"):
        scoring.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="contains no SavedModel"):
        scoring.load(tmp_path)
    (tmp_path / "7").mkdir()
    with pytest.raises(
        ValueError, match="7, the newest version, contains no SavedModel"
    ):
        scoring.load(tmp_path)
    tf_dlrm.export_saved_model(make_model(), tmp_path / "bare")
    message = "no signature serving_tsv.*it has serving_default.*preprocessor=parser"
    with pytest.raises(ValueError, match=message):
        scoring.load(tmp_path / "bare")
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": x}, [tf.TensorSpec((None,), tf.string)])
    tf.saved_model.save(module, str(tmp_path / "f"), {"serving_tsv": module.f})
    with pytest.raises(
        ValueError, match="must take `lines` and return `probabilities`"
    ):
        scoring.load(tmp_path / "f")


MEMORY = """
import os, resource, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from pipelines import scoring
model, folder = scoring.load(sys.argv[1]), sys.argv[2]
with open(f"{folder}/lines", "rb") as file:
    lines = file.read()

def peak_mb(times):
    with open(f"{folder}/log{times}", "wb") as file:
        for _ in range(times):
            file.write(lines)
    output = f"{folder}/scores{times}.csv"
    counts = scoring.score_files(model, f"{folder}/log{times}", output, batch_size=1024)
    assert counts["num_rows"] == 300 * times
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

peak_mb(60)
print(-peak_mb(61) + peak_mb(500))
"""


@pytest.mark.integration
def test_memory_does_not_grow_with_the_input(trained, lines, tmp_path):
    """30 MB of lines and 8 MB of output more; a third of the lines is allowed."""
    (tmp_path / "lines").write_bytes(b"".join(line + b"\n" for line in lines))
    command = [sys.executable, "-c", MEMORY, str(trained[2]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 10


def write_parts(exported, paths, folder, num_parts):
    """Score each part; return the joined bytes of the outputs, and the rows of each."""
    joined, counts = b"", []
    for number in range(1, num_parts + 1):
        output = folder / f"{number}_of_{num_parts}.csv"
        options = {"batch_size": 16, "max_bad_share": 1.0}
        count = scoring.score_files(
            exported, paths, output, **options, part=(number, num_parts)
        )
        joined, counts = joined + output.read_bytes(), [*counts, count["num_rows"]]
    return joined, counts


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_outputs_of_parts_joined_equal_one_run(exported, lines, tmp_path, suffix):
    """Bytes included: batches are the same, whichever part they are in."""
    paths = []
    for number, own in enumerate((lines[:170], [b"bad", *lines[170:]])):
        paths.append(str(tmp_path / f"log_{number}{suffix}"))
        with OPENERS[suffix](paths[-1], "wb") as file:
            file.write(b"\n".join(own) + b"\n")
    whole, _ = write_parts(exported, paths, tmp_path, 1)
    assert whole.count(b"\n") == 302
    for num_parts in (2, 3, 30):  # there are 20 batches: of 30 parts, some are empty
        joined, counts = write_parts(exported, paths, tmp_path, num_parts)
        assert joined == whole
        assert sum(counts) == 301
        assert max(counts) <= 16 * -(-20 // num_parts)


def test_outputs_of_parts_of_parquet_joined_equal_one_run(exported, lines, tmp_path):
    names = ["label"]
    names += [f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)]
    rows = [line.decode().split("\t") for line in lines]
    columns = zip(*([cell or None for cell in row] for row in rows), strict=True)
    path = tmp_path / "log.parquet"
    table = pa.table(dict(zip(names, columns, strict=True)))
    pq.write_table(table, path, row_group_size=25)
    whole, _ = write_parts(exported, path, tmp_path, 1)
    joined, counts = write_parts(exported, path, tmp_path, 3)
    assert joined == whole
    assert sum(counts) == 300 and min(counts) > 0


@pytest.mark.parametrize("part", [(0, 3), (4, 3)])
def test_a_part_that_does_not_exist(exported, lines, tmp_path, part):
    (tmp_path / "log").write_bytes(lines[0])
    with pytest.raises(ValueError, match="`part` must be the number of a part"):
        scoring.score_files(exported, tmp_path / "log", tmp_path / "out", part=part)
