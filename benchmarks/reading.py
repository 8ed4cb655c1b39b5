"""Rows a second of the reader: text and Parquet of several layouts, with hashing.

    python benchmarks/reading.py [--rows 300000]

The files are generated once into a temporary folder; each is read three times, in turn,
and the best time counts. All cores are used.
"""

import argparse
import pathlib
import tempfile
import time

import pyarrow.csv
import pyarrow.parquet

from pipelines import Dense, HashVocabulary, Quarantine, Schema, Sparse, Text
from pipelines.formats.encoding import encode
from pipelines.formats.scanning import scan
from pipelines.synthetic import Planted

CRITEO = Schema.criteo()
COLUMNS = CRITEO.text.columns


def make_files(folder: pathlib.Path, num_rows: int) -> dict:
    """Write the same rows in four forms: path and schema of each, by name."""
    tabs = folder / "criteo.tsv"
    Planted(seed=0).write(str(tabs), num_rows)
    read = pyarrow.csv.ReadOptions(column_names=list(COLUMNS))
    parse = pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False)
    table = pyarrow.csv.read_csv(tabs, read, parse)
    pyarrow.csv.write_csv(table, folder / "header.csv")
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    named = Schema(
        "label",
        [Dense(name, "log1p") for name in CRITEO.dense_features],
        [Sparse(name) for name in CRITEO.sparse_features],
    )
    quoted = Schema(
        named.label, named.dense, named.sparse, format=Text(header=True, quoted=True)
    )
    return {
        "Criteo, tabs": (tabs, CRITEO),
        "CSV with a header, quoted": (folder / "header.csv", quoted),
        "Parquet": (folder / "rows.parquet", CRITEO),
    }


def read_all(path: pathlib.Path, schema: Schema) -> tuple[int, float]:
    """Return the rows of a file, and the seconds that it took to number them."""
    vocabulary, start, num_rows = HashVocabulary(100_000, schema), time.time(), 0
    quarantine = Quarantine(max_bad_share=0)
    for block in scan(
        [str(path)], quarantine, schema, make=lambda rows: encode(rows, vocabulary)
    ):
        num_rows += len(block.made.labels)
    return num_rows, time.time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    num_rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(pathlib.Path(folder), num_rows)
        best = dict.fromkeys(files, float("inf"))
        for _ in range(3):
            for name, (path, schema) in files.items():
                count, seconds = read_all(path, schema)
                assert count == num_rows, (name, count)
                best[name] = min(best[name], seconds)
    for name, seconds in best.items():
        print(f"{name:<28}{num_rows / seconds:>12,.0f} rows/s")


if __name__ == "__main__":
    main()
