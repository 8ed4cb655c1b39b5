"""`prepare` of compressed files, CSV and Parquet."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.prepared_rows import (
    make_lines,
    rows_of,
    tree,
    write_lines,
)

from pipelines import prepare


@pytest.mark.parametrize("form", ["parquet", "zst"])
def test_other_files_hold_the_same_rows(tmp_path, form):
    lines = make_lines(300, bags=True)
    text = write_lines(tmp_path / "day_0", lines)
    other = tmp_path / f"day_0.{form}"
    if form == "zst":
        with pa.CompressedOutputStream(str(other), "zstd") as file:
            file.write(b"\n".join(lines))
    else:
        cells = [line.decode().split("\t") for line in lines]
        names = ["label", *(f"I{i}" for i in range(1, 14))]
        columns = list(zip(*cells, strict=True))
        table = {
            name: pa.array([int(c) if c else None for c in column])
            for name, column in zip(names, columns)
        }
        table |= {
            f"C{i + 1}": pa.array([c or None for c in column])
            for i, column in enumerate(columns[14:])
        }
        pq.write_table(pa.table(table), other, row_group_size=70)
    options = prepare.Options(min_count=2, valid_share=0.1)
    for path, out in ((text, "text"), (other, "other")):
        prepare.prepare(path, tmp_path / out, options)
    found = {
        name: {k: v for k, v in tree(tmp_path / name).items() if k != "manifest.json"}
        for name in ("text", "other")
    }
    assert found["text"] == found["other"]


def test_bad_rows_of_parquet_are_set_aside(tmp_path):
    table = {"label": [1, 0, 2, None, 1, 1]}
    table |= {f"I{i}": [1, None, 3, 4, 5, 6] for i in range(2, 14)}
    table["I1"] = [1.0, None, 3.0, 4.0, 5.5, 6.0]
    table |= {f"C{i}": [b"a", b"", None, b"b", b"c", b"d"] for i in range(2, 27)}
    table["C1"] = [7, 7, 8, 8, 7, 7]
    path = tmp_path / "day.parquet"
    pq.write_table(pa.table(table), path)
    options = prepare.Options(min_count=1, max_bad_share=0.9)
    manifest = prepare.prepare(path, tmp_path / "out", options)
    assert manifest.num_rows("train") == 3
    assert [row[0] for row in rows_of(tmp_path / "out", "train")] == [1, 0, 1]
    bad = (tmp_path / "out" / "bad_rows.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[1:3] for line in bad] == [
        ["3", "the label must be 0 or 1, found 2"],
        ["4", "the label must be 0 or 1, found None"],
        ["5", "I1 must be an integer or empty, found 5.5"],
    ]
    pq.write_table(pa.table({"label": [1]}), path)
    with pytest.raises(ValueError, match="lacks the columns .*'I1'"):
        prepare.prepare(path, tmp_path / "other")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="day.parquet: damaged"):
        prepare.prepare(path, tmp_path / "other")
