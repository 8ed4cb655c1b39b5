"""Planted rows, generated once for all tests here."""

import numpy as np
import pytest
from helpers.planted_rows import NUM_ROWS, collect

from pipelines.synthetic import Planted


@pytest.fixture(scope="session")
def planted():
    return Planted(seed=0)


@pytest.fixture(scope="session")
def rows(planted):
    return collect(planted, NUM_ROWS)


@pytest.fixture(scope="session")
def written(planted, tmp_path_factory):
    """`(report, lines, probabilities)` of a log written to disk."""
    directory = tmp_path_factory.mktemp("written")
    path, probabilities_path = directory / "log.tsv", directory / "truth.npy"
    report = planted.write(
        path, 20_000, first_row=123, probabilities_path=probabilities_path
    )
    lines = path.read_bytes().decode("ascii").split("\n")
    assert lines.pop() == ""
    return report, lines, np.load(probabilities_path)
