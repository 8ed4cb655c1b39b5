"""Requests as no good client sends them, and what each signature makes of them.

`python bad_request_cases.py SAVED_MODEL` runs them with TensorFlow's C library, in a
process without TensorFlow's Python: unlike that, it lets tensors of any shape through
to the graph, as a server does. Prints the answer to each case, by name.
"""

import json
import pathlib
import runpy
import sys
from typing import NamedTuple

import numpy as np

C_LIBRARY = pathlib.Path(__file__).parents[2] / "tf_dlrm/serving/c_library.py"
SHAPE = "is not compatible with expected shape"
ROWS = "must have the same number of rows"
LENGTHS = "must have an entry for each of the 26 sparse features"
SUM = "must not be negative and must add up to the number"


class Case(NamedTuple):
    """A request like the recorded one, but for some inputs.

    Attributes:
        signature: Its name.
        inputs: Function of the recorded array, by input.
        refused: Regular expression of the message, or `None`.
        equals: Inputs as above of a good request with the same answer, or `None`.
    """

    signature: str
    inputs: dict
    refused: str | None = None
    equals: dict | None = None


def put(*texts):
    return lambda recorded: np.array([*texts], object)


def number(x):
    return lambda recorded: np.full_like(recorded, x)


def none(x):
    return x[:0]


def twice(axis):
    return lambda x: np.concatenate([x, x], axis)


def no_ids(x):
    return np.full_like(x, -1)


def only(*lengths):
    """Lengths of the first bags; the others are empty."""

    def change(recorded):
        result = np.zeros_like(recorded)
        result[0, : len(lengths)] = lengths
        return result

    return change


def values(count):
    return lambda recorded: np.zeros(count, recorded.dtype)


ROW = b"\t" * 38  # every field is missing
MOST, LEAST = np.iinfo(np.int64).max, np.iinfo(np.int64).min
DENSE, SPARSE = "dense_features", "sparse_features"
OWN_DENSE, OWN_SPARSE = "candidate_dense_features", "candidate_sparse_features"
VALUES, LENGTH = "sparse_values", "sparse_row_lengths"
CUT = b"\x0a\x10\x0a\x0e\x0a\x02I1\x12\x08\x1a\x06\x0a\x04\x01\x02\x03"
LONGER = b"\x0a\x20\x0a\x0d\x0a\x02I1\x12\x07\x1a\x05\x0a\x03\x01\x02\x03"


def of_padded(name, dense, sparse, rows):
    """Cases that padded ids and their dense features have in common."""
    wrong_shapes = {
        "narrow dense": {dense: lambda x: x[:, :0]},
        "wide dense": {dense: twice(1)},
        "flat dense": {dense: lambda x: x[:, 0]},
        "deep dense": {dense: lambda x: x[None]},
        # One feature would be read for all of them.
        "one feature": {sparse: lambda x: np.concatenate([x, x], 1)[:, :1, :1]},
        "many features": {sparse: twice(1)},
        "long bags": {sparse: twice(2)},
        "no bags": {sparse: lambda x: x[:, :, :0]},
        "one-hot": {sparse: lambda x: x[:, :, 0]},
        "flat ids": {sparse: lambda x: x[:, 0, 0]},
        # What `[]` is in JSON.
        "nothing": {dense: lambda x: x[:0, 0], sparse: lambda x: x[:0, 0, 0]},
    }
    ids = {
        "int64 ids": lambda x: np.where(x < 0, LEAST, MOST),
        "ids of int32 that come round": lambda x: np.where(x < 0, x, 1 << 32),
        "negative ids": lambda x: np.where(x < 0, x, -2 - x),
    }
    numbers = {"nan": np.nan, "infinity": np.inf, "-infinity": -np.inf}
    return {
        **{f"{name} {k}": Case(name, v, SHAPE) for k, v in wrong_shapes.items()},
        **{
            f"{name} {k}": Case(name, {sparse: v}, equals={sparse: no_ids})
            for k, v in ids.items()
        },
        **{
            f"{name} {k}": Case(name, {dense: number(v)}, equals={dense: number(0)})
            for k, v in numbers.items()
        },
        f"{name} few dense": Case(name, {dense: lambda x: x[:1]}, rows),
        f"{name} few ids": Case(name, {sparse: lambda x: x[:1]}, rows),
        f"{name} no ids": Case(name, {sparse: none}, rows),
    }


def of_one_row(name, inputs):
    """Shared rows of candidates: one, or the server has put requests together."""
    return {
        f"{name} {rows} rows of {each}": Case(
            name, {each: lambda x, n=rows: np.repeat(x, n, 0)}, SHAPE
        )
        for rows in (0, 2, 16)
        for each in inputs
    }


RAGGED, TSV, EXAMPLES = "serving_ragged", "serving_tsv", "serving_examples"
CANDIDATES = "serving_candidates"
CASES = {
    **of_padded("serving_default", DENSE, SPARSE, ROWS),
    **of_padded(
        CANDIDATES, OWN_DENSE, OWN_SPARSE, "must have a row for each candidate"
    ),
    **of_one_row(CANDIDATES, (DENSE, SPARSE)),
    "few shared features": Case(CANDIDATES, {SPARSE: lambda x: x[:, :1]}, SHAPE),
    "few shared dense": Case(CANDIDATES, {DENSE: lambda x: x[:, :1]}, SHAPE),
    "shared nan": Case(CANDIDATES, {DENSE: number(np.nan)}, equals={DENSE: number(0)}),
    "lengths of fewer rows": Case(RAGGED, {LENGTH: lambda x: x[1:]}, LENGTHS),
    "dense of fewer rows": Case(RAGGED, {DENSE: lambda x: x[1:]}, LENGTHS),
    "dense of no rows": Case(RAGGED, {DENSE: none}, LENGTHS),
    "wide dense of ragged": Case(RAGGED, {DENSE: twice(1)}, SHAPE),
    "lengths by feature": Case(RAGGED, {LENGTH: lambda x: x.T}, LENGTHS),
    "lengths in depth": Case(RAGGED, {LENGTH: lambda x: x[None]}, LENGTHS),
    "values of two dimensions": Case(RAGGED, {VALUES: lambda x: x[:, None]}, SHAPE),
    "too few values": Case(RAGGED, {VALUES: lambda x: x[1:]}, SUM),
    "too many values": Case(RAGGED, {VALUES: twice(0)}, SUM),
    "negative length": Case(RAGGED, {LENGTH: only(3, -1), VALUES: values(2)}, SUM),
    "sum that overflows to nothing": Case(
        RAGGED, {LENGTH: only(1 << 62, 1 << 62, 1 << 62, 1 << 62), VALUES: none}, SUM
    ),
    "sum that overflows to five": Case(
        RAGGED, {LENGTH: only(*[1 << 62] * 4, 5), VALUES: values(5)}, SUM
    ),
    "flat lengths": Case(RAGGED, {LENGTH: np.ravel}, equals={}),
    "ragged ids outside": Case(
        RAGGED, {VALUES: number(MOST)}, equals={VALUES: none, LENGTH: number(0)}
    ),
    "empty line": Case(TSV, {"lines": put(b"")}, "Not a row"),
    "line end": Case(TSV, {"lines": put(b"\n")}, "Not a row"),
    "a good and an empty line": Case(TSV, {"lines": put(ROW, b"")}, "Not a row"),
    "two lines in one": Case(TSV, {"lines": put(ROW + b"\n" + ROW)}, "Not a row"),
    "bytes": Case(TSV, {"lines": put(b"\xff" * 39)}, "Not a row"),
    "huge line": Case(TSV, {"lines": put(b"\t" * 5_000_000)}, "Not a row"),
    "no integer": Case(TSV, {"lines": put(b"0x1" + ROW)}, "Not a row"),
    "integer beyond float64": Case(TSV, {"lines": put(b"9" * 400 + ROW)}, "Not a row"),
    "label of 2": Case(TSV, {"lines": put(b"2\t" + ROW)}, "Not a row"),
    "lines in a column": Case(TSV, {"lines": lambda x: x[:, None]}, SHAPE),
    "unknown value": Case(
        TSV, {"lines": put(ROW + b"never seen")}, equals={"lines": put(ROW)}
    ),
    "huge value": Case(
        TSV, {"lines": put(ROW + b"x" * 5_000_000)}, equals={"lines": put(ROW)}
    ),
    "negative integer": Case(
        TSV, {"lines": put(b"-7" + ROW)}, equals={"lines": put(ROW)}
    ),
    "no example": Case(
        EXAMPLES, {"examples": put(b"bad")}, "Not a tf.Example, or truncated"
    ),
    "text": Case(EXAMPLES, {"examples": put(ROW)}, "Not a tf.Example, or truncated"),
    "cut example": Case(
        EXAMPLES, {"examples": put(CUT)}, "Not a tf.Example, or truncated"
    ),
    "cut between features": Case(
        EXAMPLES, {"examples": put(LONGER)}, "Not a tf.Example, or truncated"
    ),
    "length without an end": Case(
        EXAMPLES,
        {"examples": put(b"\n" + b"\x80" * 9)},
        "Not a tf.Example, or truncated",
    ),
    "three values": Case(
        EXAMPLES,
        {"examples": put(b"\x0a\x0f" + LONGER[2:])},
        "I1 must have no value or one",
    ),
    "examples in a column": Case(EXAMPLES, {"examples": lambda x: x[:, None]}, SHAPE),
    "empty example": Case(
        EXAMPLES, {"examples": put(b"")}, equals={"examples": put(b"\x0a\x00")}
    ),
}


def requests(recorded, case):
    """The request of a case, and the good one that it equals or `None`.

    Args:
        recorded: Recorded inputs by signature.
        case: A `Case`.
    """
    original = recorded[case.signature]

    def change(changes):
        return {k: changes.get(k, np.asarray)(v) for k, v in original.items()}

    bad = change(case.inputs)
    return bad, None if case.equals is None else change(case.equals)


def main(folder):
    library = runpy.run_path(str(C_LIBRARY))
    model = library["SavedModel"](folder)
    recorded = {each.signature: each for each in library["read_recorded"](folder)}
    inputs = {name: each.inputs for name, each in recorded.items()}

    def run(signature, request):
        try:
            return model.run(signature, request).tolist()
        except ValueError as error:
            return str(error)

    answers = {}
    for name, case in CASES.items():
        pair = requests(inputs, case)
        answers[name] = [r if r is None else run(case.signature, r) for r in pair]
    # After all of them the session still answers.
    for name, each in recorded.items():
        answers[f"after {name}"] = [
            run(name, each.inputs),
            each.probabilities.tolist(),
        ]
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1])
