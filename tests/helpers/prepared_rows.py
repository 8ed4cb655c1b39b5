"""Lines for `prepare`, and what became of them in a folder of records."""

import gzip
import pathlib

import numpy as np

from helpers import criteo_oracle
from pipelines import criteo, records


def make_lines(num_lines, seed=0, bags=False):
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(num_lines):
        line = criteo_oracle.make_line(rng, b"01"[i % 2 : i % 2 + 1])
        if bags and i % 7 == 0:
            fields = line.split(b"\t")
            fields[20], fields[21] = b"a,b,%08x" % i, b","
            line = b"\t".join(fields)
        lines.append(line)
    return lines


def write_lines(path, lines):
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "wb") as file:
        file.write(b"\n".join(lines) + b"\n")
    return str(path)


def rows_of(folder, split):
    """(label, dense, bags) of all rows, in order."""
    rows = []
    for features, label in records.read(folder, 64, split=split):
        bags = features["sparse_features"].to_list()
        rows += zip(label.numpy(), features["dense_features"].numpy(), bags)
    return rows


def assert_rows(found, lines, vocabulary):
    features, label = criteo.Parser(vocabulary)(lines)
    assert len(found) == len(lines)
    np.testing.assert_array_equal([row[0] for row in found], label)
    np.testing.assert_array_equal([row[1] for row in found], features["dense_features"])
    assert [row[2] for row in found] == features["sparse_features"].to_list()


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file()
    }


class Cut(Exception):
    """Ends a run where a kill would."""
