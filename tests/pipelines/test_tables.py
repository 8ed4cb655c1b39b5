"""Parquet files, of any type of columns, against the lines that mean the same."""

import decimal
import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import criteo_rows

from pipelines import cli, criteo
from pipelines.formats import tables
from pipelines.formats.scanning import scan
from pipelines.log_data import count_rows, estimate_rows
from pipelines.quarantine import Quarantine
from pipelines.sampling import NegativeSampling
from pipelines.synthetic import Planted
from pipelines.vocabulary import HashVocabulary

NUM_ROWS = 6
PARSER = criteo.Parser(HashVocabulary(1000))
NAMES = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
GAPS = [1, None, 3, None, 0, 7]


def columns_of(num_rows=NUM_ROWS, **changed):
    """Columns of a table: the label alternates, the others are plain."""
    found = {"label": pa.array([i % 2 for i in range(num_rows)])}
    found |= {f"I{i}": pa.array(range(i, i + num_rows)) for i in range(1, 14)}
    found |= {
        f"C{i}": pa.array([f"{i * 7 + j:08x}" for j in range(num_rows)])
        for i in range(1, 27)
    }
    return found | changed


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def read(path):
    """All rows by the scanner: labels, numbers, and fields as lines hold them."""
    quarantine = Quarantine(max_bad_share=1)
    rows = [block.rows for block in scan([str(path)], quarantine, criteo_rows.SCHEMA)]
    return rows, quarantine


def as_lines(cells):
    """Lines of columns of Python values, `None` an empty field."""
    texts = [["" if c is None else str(c) for c in cells[name]] for name in NAMES]
    return ["\t".join(row) for row in zip(*texts, strict=True)]


def assert_equal_to_lines(path, lines):
    """What `criteo.read` gives of a file, and its lines, are what the parser gives."""
    features, label = PARSER(lines)
    (found, found_label), *rest = criteo.read(path, PARSER, len(lines))
    assert not rest and found_label.numpy().tolist() == label.numpy().tolist()
    dense = found["dense_features"].numpy(), features["dense_features"].numpy()
    np.testing.assert_array_equal(*dense)
    sparse = found["sparse_features"].to_list(), features["sparse_features"].to_list()
    assert sparse[0] == sparse[1]
    written = b"".join(lines.text for lines in criteo_rows.lines_of(path))
    np.testing.assert_array_equal(
        PARSER.features(written.split(b"\n")[:-1])["dense_features"], dense[1]
    )
    assert (
        PARSER.features(written.split(b"\n")[:-1])["sparse_features"].to_list()
        == (sparse[1])
    )


INTEGERS = {
    "floats of pandas": pa.array([1.0, None, 3.0, float("nan"), 0.0, 7.0]),
    "uint64": pa.array(GAPS, pa.uint64()),
    "int8": pa.array(GAPS, pa.int8()),
    "float16": pa.array(np.array([1, np.nan, 3, np.nan, 0, 7], np.float16)),
    "decimal": pa.array([None if g is None else decimal.Decimal(g) for g in GAPS]),
    "decimal of scale 2": pa.array(GAPS, pa.int64()).cast(pa.decimal128(22, 2)),
    "strings": pa.array(["1", "", "3", None, "0", "007"]),
    "bytes": pa.array([b"1", b"", b"3", None, b"0", b"7"]),
    "large strings": pa.array(["1", "", "3", None, "0", "7"], pa.large_string()),
    "dictionary": pa.array(GAPS).dictionary_encode(),
}


@pytest.mark.breadth(4)
@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_of_any_type(tmp_path, kind):
    """As the numbers of one column, and as the values of another."""
    changed = {"I3": INTEGERS[kind], "C5": INTEGERS[kind]}
    path = write(tmp_path / "day.parquet", columns_of(**changed))
    cells = {name: column.to_pylist() for name, column in columns_of().items()}
    last = "007" if kind == "strings" else 7
    cells |= {"I3": GAPS, "C5": [*GAPS[:5], last]}
    assert_equal_to_lines(path, as_lines(cells))


CATEGORIES = {
    "all null": (pa.nulls(NUM_ROWS), [None] * NUM_ROWS),
    "uint64 above 2^63": (pa.array([2**64 - 1] * 6, pa.uint64()), [2**64 - 1] * 6),
    "large strings": (pa.array(["a,b", "", "é", None, "a", "x"], pa.large_string()),
                      ["a,b", "", "é", None, "a", "x"]),
    "bytes of fixed size": (pa.array([b"ab"] * 6, pa.binary(2)), ["ab"] * 6),
    "dictionary": (pa.array(["a", "b", None, "a", "a", "b"]).dictionary_encode(),
                   ["a", "b", None, "a", "a", "b"]),
    "lists": (pa.array([["a", "b"], [], None, ["c"], ["d", None, "e"], ["f", ""]]),
              ["a,b", "", "", "c", "d,e", "f"]),
    "decimal32 of scale 1": (pa.array(map(decimal.Decimal, range(6)),
                                      pa.decimal32(9, 1)), [*range(6)]),
    "UUIDs of tabs": (pa.array([b"\t" * 16, None] * 3, pa.uuid()),
                      ["09090909-0909-0909-0909-090909090909", None] * 3),
    "booleans of 8 bits": (pa.ExtensionArray.from_storage(
        pa.bool8(), pa.array([1, 0, None, 1, 1, 0], pa.int8())),
        ["True", "False", None, "True", "True", "False"]),
    "booleans": (pa.array([True, None, False, True, True, False]),
                 ["True", None, "False", "True", "True", "False"]),
    "lists of booleans": (pa.array([[True, False], [], None, [True], [False], [None]]),
                          ["True,False", "", "", "True", "False", ""]),
    "lists of integers": (pa.array([[1, 2], [], None, [3], [4], [5]]),
                          ["1,2", "", "", "3", "4", "5"]),
}  # fmt: skip


@pytest.mark.breadth(3)
@pytest.mark.parametrize("kind", CATEGORIES)
def test_categories_of_any_type(tmp_path, kind):
    column, expected = CATEGORIES[kind]
    path = write(tmp_path / "day.parquet", columns_of(C9=column))
    cells = {name: column.to_pylist() for name, column in columns_of().items()}
    assert_equal_to_lines(path, as_lines(cells | {"C9": expected}))


@pytest.mark.parametrize("label", [
    pa.array([False, True] * 3), pa.array([0.0, 1.0] * 3), pa.array(["0", "1"] * 3),
], ids=["bool", "float", "string"])  # fmt: skip
def test_labels_of_any_type(tmp_path, label):
    path = write(tmp_path / "day.parquet", columns_of(label=label))
    rows, quarantine = read(path)
    assert rows[0].labels.tolist() == [0, 1] * 3 and not quarantine.num_bad


def test_a_frame_with_gaps_as_pandas_writes_it(tmp_path):
    """Integers with a gap become floats in pandas."""
    frame = pd.DataFrame({name: c.to_pylist() for name, c in columns_of().items()})
    frame.loc[1, ["I1", "I13"]] = np.nan
    frame["C1"] = [3, np.nan, 4, 4, 3, 3]
    frame["C2"] = frame["C2"].astype("category")
    frame["C3"] = [True, False] * 3
    frame["I2"] = frame["I2"].astype("Int64")
    assert frame["I1"].dtype == frame["C1"].dtype == np.float64
    frame.to_parquet(tmp_path / "day.parquet")
    text = io.StringIO()
    for name in ("I1", "I13", "C1"):
        frame[name] = frame[name].astype("Int64")
    frame.to_csv(text, sep="\t", header=False, index=False)
    assert_equal_to_lines(str(tmp_path / "day.parquet"), text.getvalue().splitlines())


def test_cells_that_are_none_are_bad_rows(tmp_path):
    changed = {
        "label": pa.array([0.0, 1.0, 0.3, None, 1.0, 1.0]),
        "I1": pa.array(["1", "2", "3", "4", "260.0", "6"]),
        "C1": pa.array([1.0, 0.5, 3.0, 4.0, 5.0, float(2**53)]),
        "C2": pa.array([["a,b"], ["b"], ["c"], ["d"], ["e"], ["f"]]),
    }
    path = write(tmp_path / "day.parquet", columns_of(**changed))
    rows, quarantine = read(path)
    assert [(row, why) for row, _, why in rows[0].bad] == [
        (0, "C2 must not contain its separator, ',', within a list, found ['a,b']"),
        (1, "C1 must contain integers below 2^53 if it has floats, found 0.5"),
        (2, "the label must be 0 or 1, found 0.3"),
        (3, "the label must be 0 or 1, found None"),
        (4, "I1 must be an integer or empty, found '260.0'"),
        (5, "C1 must contain integers below 2^53 if it has floats, found "
            "9007199254740992.0"),
    ]  # fmt: skip
    assert quarantine.num_bad == 6


def test_bad_rows_have_no_line(tmp_path):
    """`predict` scores the lines of the others."""
    changed = {
        "I1": pa.array(["1", "2.5", "3\t4", "5\n6", "7", None]),
        "C1": pa.array(["a", "b", "c", "d", "e\tf", "g\r"]),
        "C26": pa.array(["a", "b", "c", "d", "e", "g\r"]),
        "label": pa.array([1, 1, 1, 1, 1, None]),
    }
    path = write(tmp_path / "day.parquet", columns_of(**changed))
    (lines,) = criteo_rows.lines_of(path)
    assert lines.is_line.tolist() == [True] + [False] * 5
    assert [position for position, *_ in lines.bad] == [1, 2, 3, 4, 5]
    assert lines.labels.to_pylist() == [b"1"] * 5 + [None]
    assert PARSER.is_valid(lines.text.split(b"\n")[:-1], labelled=False).numpy().all()


@pytest.mark.parametrize(("column", "rule"), [
    (pa.array([0] * 6, pa.timestamp("us")), "timestamp"),
    (pa.array([0] * 6, pa.date32()), "date32"),
    (pa.array([0] * 6, pa.duration("s")), "duration"),
    (pa.array([{"a": 1}] * 6), "struct"),
    (pa.array([[["a"]]] * 6), "list"),
    (pa.array([[("a", 1)]] * 6, pa.map_(pa.string(), pa.int64())), "map"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_other_types_are_one_line(tmp_path, column, rule):
    for name, words in (
        ("I4", "must contain integers"),
        ("C4", "must contain strings"),
    ):
        path = write(tmp_path / "day.parquet", columns_of(**{name: column}))
        match = f"day.parquet: the column '{name}' {words}.*convert.*Received: {rule}"
        with pytest.raises(ValueError, match=f"(?i){match}") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "day.parquet"
    content = open(write(path, columns_of(3000)), "rb").read()
    for damaged in (
        content[:-9],
        content[:4],
        bytes([*content[:400], 9, 9, *content[402:]]),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="day.parquet: damaged Parquet") as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.integration
def test_batches_of_parquet_are_resumed_and_shuffled(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    path = write(tmp_path / "day.parquet", columns_of(50), row_group_size=20)
    whole = np.concatenate(
        [f["dense_features"] for f, _ in criteo.read(path, PARSER, 8)]
    )
    assert len(whole) == 50 and np.unique(whole[:, 0]).size == 50
    mixed = criteo.read(path, PARSER, 8, shuffle=True, seed=3)
    mixed = np.concatenate([f["dense_features"] for f, _ in mixed])
    assert not np.array_equal(mixed, whole)
    np.testing.assert_array_equal(np.sort(mixed[:, 0]), np.sort(whole[:, 0]))
    reader, row, batches = tables.BatchReader(), 0, []
    layout = criteo_rows.layout_of(path, True)
    while (batch := reader.read(path, layout, row)) is not None:
        again = tables.BatchReader().read(path, layout, row)
        assert again.equals(batch)
        batches.append(batch)
        row += len(batch)
    assert row == 50 and pa.Table.from_batches(batches).equals(pa.table(columns_of(50)))


def test_rows_of_parquet_are_counted(tmp_path):
    table = write(tmp_path / "day.parquet", columns_of(400))
    cells = {name: column.to_pylist() for name, column in columns_of(400).items()}
    (tmp_path / "day.tsv").write_text("\n".join(as_lines(cells)) + "\n")
    assert (
        count_rows([table], criteo_rows.SCHEMA) == 400 and estimate_rows([table]) == 400
    )
    kept = [
        count_rows([path], criteo_rows.SCHEMA, NegativeSampling(0.3, seed=1))
        for path in (table, str(tmp_path / "day.tsv"))
    ]
    assert kept[0] == kept[1] and 200 < kept[0] < 300


def test_rows_without_a_label(tmp_path):
    """They can be read for scoring; the label comes where it is."""
    columns = columns_of()
    del columns["label"]
    path = write(tmp_path / "day.parquet", columns)
    features = [*criteo.read(path, PARSER, labelled=False)]
    assert features[0]["dense_features"].shape == (NUM_ROWS, 13)
    with pytest.raises(ValueError, match="lacks the columns .*'label'.* It has"):
        read(path)
    (lines,) = criteo_rows.lines_of(path)
    assert lines.text.split(b"\n")[0].count(b"\t") == 38
    assert lines.labels.null_count == NUM_ROWS


def test_a_table_without_rows_is_said_so(tmp_path, capsys):
    path = write(tmp_path / "none.parquet", columns_of(0))
    for options in ([], ["--hash-buckets", "9"]):
        command = ["train", "--train", path, "--out", str(tmp_path / "run"), *options]
        assert cli.main(command) == 2
        assert f"{path} contains no valid rows." in capsys.readouterr().err


@pytest.mark.integration
def test_commands_read_parquet_as_the_lines_that_it_stands_for(tmp_path):
    """train, evaluate, predict and profile-trace; rows of any order of types."""
    rows = 400
    Planted(vocabulary_sizes=(30,) * 26).write(tmp_path / "day.tsv", rows)
    cells = [
        line.split("\t") for line in (tmp_path / "day.tsv").read_text().splitlines()
    ]
    columns = dict(zip(NAMES, zip(*cells, strict=True), strict=True))
    for name in NAMES[:14]:  # with gaps, as pandas has them
        columns[name] = [float(cell) if cell else None for cell in columns[name]]
    write(tmp_path / "day.parquet", columns, row_group_size=150)
    found = []
    for name in ("day.tsv", "day.parquet"):
        data, out = str(tmp_path / name), tmp_path / f"{name}-run"
        options = ["--bottom-mlp-dims", "8", "4", "--top-mlp-dims", "8", "1"]
        options += ["--embedding-dim", "4", "--batch-size", "64", "--min-count", "2"]
        options += ["--jit-compile", "off", "--deterministic", "--valid", data]
        run = ["--model", str(out), "--input", data, "--output"]
        for command in (
            ["train", "--train", data, "--out", str(out), *options],
            ["evaluate", *run, f"{out}/e.json"],
            ["evaluate", *run, f"{out}/s.json", "--slices", "C9", "I1"],
            ["predict", *run, f"{out}/scores.csv"],
            ["profile-trace", "--input", data, "--output", f"{out}/profile.json"],
        ):
            assert cli.main(command) == 0
        results = json.loads((out / "e.json").read_text())
        assert results["num_rows"] == rows
        scores = pd.read_csv(out / "scores.csv")[["line", "label", "probability"]]
        slices = pd.read_csv(out / "s_slices.csv").sort_values(["column", "value"])
        files = [
            (out / name).read_bytes() for name in ("vocabulary.tsv", "profile.json")
        ]
        found.append((results["auc"], *files, scores.to_csv(), slices))
    assert found[0][:-1] == found[1][:-1]
    # Row groups are other batches, which changes the last bits, and the order of ties.
    slices = [each[-1].reset_index(drop=True) for each in found]
    pd.testing.assert_frame_equal(*slices, rtol=1e-5)
