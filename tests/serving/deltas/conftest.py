"""A published model that the tests of this folder share, and copies of it to spoil."""

import shutil

import pytest
from helpers import published


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """Folder and callback of a model with the states 1.0 to 1.3."""
    return published.publish(tmp_path_factory.mktemp("original"))


@pytest.fixture
def base_dir(original, tmp_path):
    """A copy of the published model, to change."""
    shutil.copytree(original[0], tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture(scope="session")
def answers(original):
    """The answers of the full export at each state."""
    return [published.answers_of(path) for path in original[1].exports]
