"""Shared set-up of the tests: quiet logs, seeds, XLA, and where the real rows are."""

import collections
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest

from tf_dlrm.runtime import xla

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"


def pytest_generate_tests(metafunc):
    """A test marked `engines` runs by TensorFlow's kernels, and once more under XLA."""
    if metafunc.definition.get_closest_marker("engines"):
        compiled = pytest.param("xla", marks=pytest.mark.integration)
        metafunc.parametrize("engine", ["plain", compiled], indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Of a test marked `breadth(n)` n cases are in the default tier, far apart.

    And what is slow runs only where `-m` names it, in whichever file it is.
    """
    if "slow" not in (config.option.markexpr or ""):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    cases = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("breadth"):
            cases[item.path, item.originalname].append(item)
    for group in cases.values():
        (number,) = group[0].get_closest_marker("breadth").args
        kept = {i * len(group) // number for i in range(number)}
        for i, item in enumerate(group):
            if i not in kept:
                item.add_marker(pytest.mark.integration)


@pytest.fixture(autouse=True, scope="session")
def _no_xla():
    """XLA takes seconds to compile: tables are made without it by default."""
    with xla.disabled():
        yield


@pytest.fixture(autouse=True)
def engine(request):
    """`"plain"` where the test does not say otherwise.

    Tests marked `xla` decide for themselves, as a user's program does.
    """
    engine = getattr(request, "param", "plain")
    if request.node.get_closest_marker("xla"):
        engine = "xla"
    with xla.disabled(False if engine == "plain" else None):
        yield engine


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(7)


@pytest.fixture(scope="session")
def real_rows():
    """The folder of real Criteo rows; the project itself ships generated data only."""
    if not DATA.is_dir():
        pytest.skip("real Criteo rows (../shared/data) are not here")
    return DATA
