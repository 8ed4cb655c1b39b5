"""Models of TFRS, in one process that has Keras 2 beside Keras 3."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

import tf_dlrm

pytestmark = pytest.mark.integration

SCRIPT = pathlib.Path(__file__).parent / "tfrs_cases.py"
# Read, not imported: TFRS needs Keras 2.
CASES = [
    node.name
    for script in (SCRIPT, SCRIPT.with_name("tfrs_layer_cases.py"))
    for node in ast.parse(script.read_text()).body
    if isinstance(node, ast.FunctionDef)
    and any(getattr(d, "id", None) == "case" for d in node.decorator_list)
]


@pytest.fixture(scope="session")
def failures():
    """The traceback of each case, or None."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_equals_tfrs(name, failures):
    assert failures[name] is None, failures[name]


def test_without_keras_2_the_error_says_what_to_set(monkeypatch):
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    with pytest.raises(ImportError, match="process with TF_USE_LEGACY_KERAS=1"):
        tf_dlrm.interop.from_tfrs(object())
    monkeypatch.setitem(sys.modules, "tensorflow_recommenders", None)
    with pytest.raises(ImportError, match="install tensorflow-recommenders"):
        tf_dlrm.interop.from_tfrs(object())
