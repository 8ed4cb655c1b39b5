"""Where torch is: in this interpreter, or in the one that TF_DLRM_TORCH_PYTHON names.

Torch has no part in the project's dependencies; its scripts run in processes of their
own.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "torch_dlrm.py"


@functools.cache
def find():
    named = os.environ.get("TF_DLRM_TORCH_PYTHON")
    program = (
        "import importlib.util as u; raise SystemExit(u.find_spec('torch') is None)"
    )
    for python in filter(None, (named, sys.executable)):
        if subprocess.run([python, "-c", program]).returncode == 0:
            return python


def run(command, folder):
    """Runs a command of torch_dlrm.py, which reads and writes files of `folder`."""
    python = find()
    if python is None:
        pytest.skip("no torch here: TF_DLRM_TORCH_PYTHON names a Python that has it")
    done = subprocess.run(
        [python, str(SCRIPT), command, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
