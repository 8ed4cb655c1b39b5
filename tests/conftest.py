"""Shared set-up of the tests: quiet logs, seeds, and where the real rows are."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(7)


@pytest.fixture(scope="session")
def real_rows():
    """The folder of real Criteo rows; the project itself ships generated data only."""
    if not DATA.is_dir():
        pytest.skip("real Criteo rows (../shared/data) are not here")
    return DATA
