"""Shared set-up of the tests: quiet logs, seeds, XLA, no cache, and the real rows."""

import collections
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TF_DLRM_CACHE"] = "off"  # tests neither read nor write the user's

import keras
import pytest

from tf_dlrm.runtime import accelerators, xla

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"


def pytest_generate_tests(metafunc):
    """A test marked `engines` runs by TensorFlow's kernels, and twice more.

    Under XLA in the integration tier, and in the slow one with the steps that a GPU
    would get, on the CPU.
    """
    if metafunc.definition.get_closest_marker("engines"):
        others = {"xla": pytest.mark.integration, "accelerator": pytest.mark.slow}
        others = [pytest.param(name, marks=mark) for name, mark in others.items()]
        metafunc.parametrize("engine", ["plain", *others], indirect=True)


def spread(group, number):
    """`number` of the group, far apart: from the first to the last.

    Of the product of parameters these differ in the inner and in the outer ones.
    """
    steps = max(number - 1, 1)
    kept = {round(i * (len(group) - 1) / steps) for i in range(number)}
    return [item for i, item in enumerate(group) if i in kept]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Deal the cases of a test marked `breadth(n, m)` to the tiers, far apart.

    The default tier has n of them, the integration tier m in all (by default the rest);
    the others are slow. Of the cases of other engines, n counts as 0. What is slow runs
    only where `-m` names it, in whichever file it is.
    """
    groups = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("breadth"):
            engine = item.callspec.params.get("engine")
            groups[item.path, item.originalname, engine].append(item)
    for (*_, engine), group in groups.items():
        default, *integration = group[0].get_closest_marker("breadth").args
        kept = spread(group, min(len(group), *integration, len(group)))
        is_other = engine in ("xla", "accelerator")
        thin = spread(kept, 0 if is_other else min(default, len(kept)))
        for item in group:
            if item not in kept:
                item.add_marker(pytest.mark.slow)
            elif item not in thin and engine != "accelerator":
                item.add_marker(pytest.mark.integration)
    if "slow" not in (config.option.markexpr or ""):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(autouse=True, scope="session")
def _no_xla():
    """XLA takes seconds to compile: tables are made without it by default."""
    with xla.disabled():
        yield


@pytest.fixture(autouse=True)
def engine(request, monkeypatch):
    """`"plain"` where the test does not say otherwise.

    Tests marked `xla` decide for themselves, as a user's program does.
    """
    engine = getattr(request, "param", "plain")
    if request.node.get_closest_marker("xla"):
        engine = "xla"
    if engine == "accelerator":
        monkeypatch.setattr(accelerators, "first", lambda: "/device:CPU:0")
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
